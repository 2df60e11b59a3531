from .impala_space import ImpalaCells as ImpalaCells
from .pixel_game import PixelGame as PixelGame
from .ppo import PUBLISHED as PUBLISHED
from .ppo import Agent as Agent
from .ppo import PpoTerms as PpoTerms
from .procgen import Procgen as Procgen
from .stable_baselines import (
    SearchLogger as SearchLogger,
)
from .stable_baselines import (
    policy_kwargs as policy_kwargs,
)
from .stable_baselines import (
    supernet_of as supernet_of,
)
from .task import VectorEnvMaker as VectorEnvMaker
