"""What a network is judged on: the `Task` contract, and classification of your own data."""

from archgrad.tasks.augmentation import crop, cutout, flip
from archgrad.tasks.classification import Classification
from archgrad.tasks.datasets import Samples, digits, load
from archgrad.tasks.task import Batch, Inputs, Task

__all__ = ["Batch", "Classification", "Inputs", "Samples", "Task", "crop", "cutout", "digits", "flip", "load"]
