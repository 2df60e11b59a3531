from .job import Job as Job, Outcome as Outcome
from .pareto import front as front, hypervolume as hypervolume
from .random_sampling import (
    best_so_far as best_so_far,
    chance_of_top as chance_of_top,
    expected_best as expected_best,
)
from .successive_halving import Halving as Halving
from .workers import Workers as Workers
