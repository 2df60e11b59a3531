from .activations import (
    jacob_cov as jacob_cov,
    linear_regions as linear_regions,
    meco as meco,
    naswot as naswot,
    swap as swap,
    zen as zen,
)
from .agreement import rank_agreement as rank_agreement
from .az_nas_parts import expressivity as expressivity, progressivity as progressivity, trainability as trainability
from .combined import az_nas as az_nas, rank_vote as rank_vote, te_nas as te_nas
from .counts import macs as macs, params as params
from .flow import mean_channels as mean_channels, synflow_each as synflow_each
from .gradients import (
    fisher as fisher,
    grad_norm as grad_norm,
    grasp as grasp,
    ntk_condition as ntk_condition,
    snip as snip,
    synflow as synflow,
    zico as zico,
)
