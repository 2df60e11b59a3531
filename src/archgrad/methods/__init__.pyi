from .darts_prime.dynamic_schedule import DynamicSchedule as DynamicSchedule
from .darts_prime.options import DartsPrimeTerms as DartsPrimeTerms
from .darts_prime.regularizers import Admm as Admm, Proximity as Proximity, regularized as regularized
from .monas.monas import MonasTerms as MonasTerms
from .monas.rewards import Reward as Reward, accurate as accurate, mixed as mixed, soft as soft, under as under
from .multimodal_random.intervention_card import card as card
from .pruning_transfer.pruning_transfer import PruningTerms as PruningTerms
from .pruning_transfer.transfer import TransferProtocol as TransferProtocol
from .radars.offload import OffloadedSupernet as OffloadedSupernet
from .radars.rounds import RadarsTerms as RadarsTerms
from .radars.single_path import ShrinkingPolicy as ShrinkingPolicy, SinglePathTrainer as SinglePathTrainer
from .radars.subspaces import Priced as Priced
from .toponas.topology_schedule import PassiveAggressive as PassiveAggressive
from .toponas.toponas import ToponasTerms as ToponasTerms
from .unas.objective import Branched as Branched, UnasTerms as UnasTerms
from .unas.unas import adam_of_unas as adam_of_unas
