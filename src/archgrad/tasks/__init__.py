"""What a network is judged on: the `Task` contract, and classification of your own data."""

from archgrad.tasks.augmentation import crop, cutout, flip
from archgrad.tasks.classification import Classification
from archgrad.tasks.data_path import load
from archgrad.tasks.datasets import Samples, digits
from archgrad.tasks.task import Batch, Checkable, Inputs, PerSample, Splittable, Task, require

__all__ = [
    "Batch",
    "Checkable",
    "Classification",
    "Inputs",
    "PerSample",
    "Samples",
    "Splittable",
    "Task",
    "crop",
    "cutout",
    "digits",
    "flip",
    "load",
    "require",
]
