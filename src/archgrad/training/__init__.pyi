from .compiled_steps import compiled as compiled
from .fit import optimize as optimize
from .joined_optimizer import JoinedOptimizer as JoinedOptimizer
from .recipe import darts_sgd as darts_sgd
from .schedules import constant as constant
from .step import load_batch as load_batch, take_step as take_step
