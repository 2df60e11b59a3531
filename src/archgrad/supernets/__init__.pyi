from .bilevel import (
    EverySteps as EverySteps,
    UpdateSchedule as UpdateSchedule,
    alternate as alternate,
    logit_rate as logit_rate,
)
from .lifecycle import Described as Described, train_and_report as train_and_report
from .prior import prior_of_candidates as prior_of_candidates
