from .gate_optimizer import GateOptimizer as GateOptimizer
from .selection import (
    GateConstraint as GateConstraint,
    full as full,
    gates as gates,
    uniform as uniform,
)
from .width_rounding import WidthRounding as WidthRounding
