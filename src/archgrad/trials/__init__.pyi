from .pareto import hypervolume as hypervolume
from .random_sampling import (
    best_so_far as best_so_far,
)
from .random_sampling import (
    chance_of_top as chance_of_top,
)
from .random_sampling import (
    expected_best as expected_best,
)
from .successive_halving import Halving as Halving
from .workers import Job as Job
from .workers import Outcome as Outcome
from .workers import Workers as Workers
