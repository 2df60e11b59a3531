from .access import choices as choices
from .estimators import (
    DecayingBaseline as DecayingBaseline,
    Loss as Loss,
    log_probability as log_probability,
    one_hot as one_hot,
    pathwise as pathwise,
    rebar as rebar,
    score_function as score_function,
)
from .policies import Uniform as Uniform
from .relaxations import Open as Open
from .subsets import topologies as topologies, topology as topology, without_topology as without_topology
