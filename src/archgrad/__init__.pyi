"""The public names and where each is defined: the one list, for `__init__.py` and for type checkers."""

from .choices.access import (
    draw as draw,
    hold as hold,
    logits as logits,
    relax as relax,
    restrict as restrict,
    sample as sample,
    using as using,
    weights as weights,
)
from .choices.architecture import Architecture as Architecture
from .choices.decide import decide as decide
from .choices.gate import Gate as Gate
from .choices.lazy_candidates import Lazy as Lazy
from .choices.modules import InputChoice as InputChoice, OpChoice as OpChoice
from .choices.relaxations import (
    gumbel_softmax as gumbel_softmax,
    scaled_sigmoid as scaled_sigmoid,
    softmax as softmax,
    two_temperature as two_temperature,
)
from .classifier import ArchgradClassifier as ArchgradClassifier
from .control.nnilqr import nnilqr as nnilqr
from .costs.count import macs as macs, params as params
from .costs.energy import energy as energy, peak_power as peak_power
from .costs.file_latency import measure_files as measure_files
from .costs.file_size import file_size as file_size
from .costs.latency import latency as latency
from .costs.limits import Limit as Limit, black_box as black_box
from .costs.memory import peak_memory as peak_memory
from .errors import (
    ArchgradError as ArchgradError,
    ArchitectureError as ArchitectureError,
    ChoiceError as ChoiceError,
    ConfigError as ConfigError,
    DataError as DataError,
    InputError as InputError,
    LimitError as LimitError,
    MissingExtra as MissingExtra,
    ModelError as ModelError,
    NonFiniteError as NonFiniteError,
    ResourceError as ResourceError,
    RunError as RunError,
)
from .extract.discretize import build as build
from .extract.export import (
    export_executorch as export_executorch,
    export_onnx as export_onnx,
    export_program as export_program,
)
from .gates.gate_trainer import GateTrainer as GateTrainer
from .gates.importance import cut as cut, importance as importance
from .methods.darts import darts as darts
from .methods.darts_prime.darts_prime import darts_prime as darts_prime
from .methods.dnal.dnal import dnal as dnal
from .methods.dnal.front import slim_front as slim_front
from .methods.freenas.freenas import freenas as freenas
from .methods.monas.monas import monas as monas
from .methods.multimodal_random.multimodal_random import multimodal_random as multimodal_random
from .methods.pruning_transfer.pruning_transfer import pruning_transfer as pruning_transfer
from .methods.pruning_transfer.transfer import transfer as transfer
from .methods.radars.radars import radars as radars
from .methods.random_search import random_search as random_search
from .methods.toponas.toponas import toponas as toponas
from .methods.unas.unas import unas as unas
from .multimodal.av_digits import av_digits as av_digits
from .multimodal.encoders import (
    audio_encoder as audio_encoder,
    image_encoder as image_encoder,
    vector_encoder as vector_encoder,
    waveform_encoder as waveform_encoder,
)
from .multimodal.fusion import fusion as fusion
from .multimodal.modalities import Modalities as Modalities
from .results.derive import derive as derive
from .results.front import Front as Front, FrontPoint as FrontPoint
from .results.result import Found as Found
from .rl.impala_space import impala_cells as impala_cells, impala_network as impala_network
from .rl.rl_darts import rl_darts as rl_darts
from .rl.task import Reinforcement as Reinforcement
from .run.output import Output as Output
from .run.run import Run as Run
from .run.signals import Stopped as Stopped
from .spaces.darts import darts_cells as darts_cells, darts_network as darts_network
from .spaces.mobile import mobile_backbone as mobile_backbone, mobile_network as mobile_network
from .spaces.nasbench201 import nasbench201_cells as nasbench201_cells, nasbench201_network as nasbench201_network
from .spaces.slim.slimmable import frozen as frozen, slim as slim
from .spaces.slim.vocabulary import trim_vocabulary as trim_vocabulary
from .supernets.prior import prior as prior, warm_start as warm_start
from .tasks.augmentation import crop as crop, cutout as cutout, flip as flip
from .tasks.classification import Classification as Classification
from .tasks.datasets import digits as digits
from .tasks.distilled import Distilled as Distilled
from .tasks.metrics import higher as higher, lower as lower, over_part as over_part
from .tasks.splits import Split as Split
from .tasks.supervised import Supervised as Supervised
from .tasks.tabular_benchmark import Tabular as Tabular
from .training.fit import fit as fit, recalibrate as recalibrate
from .training.recipe import Recipe as Recipe, adam as adam, adamw as adamw, sgd as sgd
from .training.schedules import warm_up_cosine as warm_up_cosine
from .trials.finalists import Finalists as Finalists

__version__: str
