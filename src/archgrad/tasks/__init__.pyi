from .augmentation import crop as crop
from .augmentation import cutout as cutout
from .augmentation import flip as flip
from .classification import Classification as Classification
from .data_path import load as load
from .datasets import digits as digits
from .distilled import Distilled as Distilled
from .metrics import higher as higher
from .metrics import lower as lower
from .samples import Samples as Samples
from .splits import Split as Split
from .supervised import Supervised as Supervised
from .tabular import DATA as DATA
from .task import (
    Batch as Batch,
)
from .task import (
    Checkable as Checkable,
)
from .task import (
    Inputs as Inputs,
)
from .task import (
    PerSample as PerSample,
)
from .task import (
    Scored as Scored,
)
from .task import (
    Splittable as Splittable,
)
from .task import (
    Task as Task,
)
from .task import (
    require as require,
)
