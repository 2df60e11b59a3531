from .benchmark_systems import cart_pole as cart_pole, vehicle as vehicle
from .dynamics_networks import dynamics_space as dynamics_space
from .gymnasium_system import GymnasiumSystem as GymnasiumSystem
from .ilqr import IlqrResult as IlqrResult, classical_ilqr as classical_ilqr
from .nnilqr import DYNAMICS_RECIPE as DYNAMICS_RECIPE, NnilqrTerms as NnilqrTerms
from .system import (
    Cost as Cost,
    Equations as Equations,
    Policy as Policy,
    System as System,
    Trajectory as Trajectory,
    quadratic_cost as quadratic_cost,
)
from .transitions import Transitions as Transitions
