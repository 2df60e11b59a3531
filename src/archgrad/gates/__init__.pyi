from .gate_optimizer import GateOptimizer as GateOptimizer
from .selection import (
    GateConstraint as GateConstraint,
)
from .selection import (
    WidthRounding as WidthRounding,
)
from .selection import (
    gates as gates,
)
from .selection import (
    uniform as uniform,
)
