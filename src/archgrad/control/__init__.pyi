from .benchmark_systems import cart_pole as cart_pole
from .benchmark_systems import vehicle as vehicle
from .dynamics_networks import dynamics_space as dynamics_space
from .gymnasium_system import GymnasiumSystem as GymnasiumSystem
from .ilqr import IlqrResult as IlqrResult
from .ilqr import classical_ilqr as classical_ilqr
from .nnilqr import DYNAMICS_RECIPE as DYNAMICS_RECIPE
from .nnilqr import NnilqrTerms as NnilqrTerms
from .system import (
    Cost as Cost,
)
from .system import (
    Equations as Equations,
)
from .system import (
    Policy as Policy,
)
from .system import (
    System as System,
)
from .system import (
    Trajectory as Trajectory,
)
from .system import (
    quadratic_cost as quadratic_cost,
)
from .transitions import Transitions as Transitions
