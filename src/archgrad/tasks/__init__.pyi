from .augmentation import (
    brightness as brightness,
    crop as crop,
    cutout as cutout,
    flip as flip,
    mask as mask,
    rotate as rotate,
)
from .classification import Classification as Classification
from .data_path import load as load
from .datasets import digits as digits
from .distilled import Distilled as Distilled
from .metrics import higher as higher, lower as lower, over_part as over_part
from .samples import Samples as Samples
from .splits import Split as Split
from .supervised import Supervised as Supervised
from .tabular_benchmark import DATA as DATA
from .task import (
    Batch as Batch,
    Checkable as Checkable,
    Inputs as Inputs,
    PerSample as PerSample,
    Scored as Scored,
    Splittable as Splittable,
    Task as Task,
    require as require,
)
