from .activations import (
    jacob_cov as jacob_cov,
)
from .activations import (
    linear_regions as linear_regions,
)
from .activations import (
    meco as meco,
)
from .activations import (
    naswot as naswot,
)
from .activations import (
    swap as swap,
)
from .activations import (
    zen as zen,
)
from .agreement import rank_agreement as rank_agreement
from .combined import az_nas as az_nas
from .combined import rank_vote as rank_vote
from .combined import te_nas as te_nas
from .counts import macs as macs
from .counts import params as params
from .flow import mean_channels as mean_channels
from .flow import synflow_each as synflow_each
from .gradients import (
    fisher as fisher,
)
from .gradients import (
    grad_norm as grad_norm,
)
from .gradients import (
    grasp as grasp,
)
from .gradients import (
    ntk_condition as ntk_condition,
)
from .gradients import (
    snip as snip,
)
from .gradients import (
    synflow as synflow,
)
from .gradients import (
    zico as zico,
)
from .progress import expressivity as expressivity
from .progress import progressivity as progressivity
from .progress import trainability as trainability
