from .access import choices as choices
from .estimators import (
    DecayingBaseline as DecayingBaseline,
)
from .estimators import (
    Loss as Loss,
)
from .estimators import (
    log_probability as log_probability,
)
from .estimators import (
    one_hot as one_hot,
)
from .estimators import (
    pathwise as pathwise,
)
from .estimators import (
    rebar as rebar,
)
from .estimators import (
    score_function as score_function,
)
from .policies import Uniform as Uniform
from .relaxations import Open as Open
from .subsets import topologies as topologies
from .subsets import topology as topology
from .subsets import without_topology as without_topology
