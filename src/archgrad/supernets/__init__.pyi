from .bilevel import (
    EverySteps as EverySteps,
)
from .bilevel import (
    UpdateSchedule as UpdateSchedule,
)
from .bilevel import (
    alternate as alternate,
)
from .bilevel import (
    logit_rate as logit_rate,
)
from .lifecycle import Described as Described
from .lifecycle import train_and_report as train_and_report
from .prior import prior_of_candidates as prior_of_candidates
