from .device import seconds_per_call as seconds_per_call
from .nonfinite import term as term
