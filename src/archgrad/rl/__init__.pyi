from .impala_space import ImpalaCells as ImpalaCells
from .pixel_game import PixelGame as PixelGame
from .ppo import PUBLISHED as PUBLISHED, Agent as Agent, PpoTerms as PpoTerms
from .procgen import Procgen as Procgen
from .stable_baselines import SearchLogger as SearchLogger, policy_kwargs as policy_kwargs, supernet_of as supernet_of
from .task import VectorEnvMaker as VectorEnvMaker
