from .gate_optimizer import GateOptimizer as GateOptimizer
from .selection import (
    GateConstraint as GateConstraint,
    WidthRounding as WidthRounding,
    gates as gates,
    uniform as uniform,
)
