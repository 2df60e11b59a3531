"""What a network is judged on: the `Task` contract, and supervised learning on your own data."""

from archgrad.tasks.augmentation import crop, cutout, flip
from archgrad.tasks.classification import Classification
from archgrad.tasks.data_path import load
from archgrad.tasks.datasets import digits
from archgrad.tasks.distilled import Distilled
from archgrad.tasks.metrics import higher, lower
from archgrad.tasks.samples import Samples
from archgrad.tasks.splits import Split
from archgrad.tasks.supervised import Supervised
from archgrad.tasks.task import Batch, Checkable, Inputs, PerSample, Splittable, Task, require

__all__ = [
    "Batch",
    "Checkable",
    "Classification",
    "Distilled",
    "Inputs",
    "PerSample",
    "Samples",
    "Split",
    "Splittable",
    "Supervised",
    "Task",
    "crop",
    "cutout",
    "digits",
    "flip",
    "higher",
    "load",
    "lower",
    "require",
]
