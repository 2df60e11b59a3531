"""A classifier in scikit-learn's form: a small network that is slimmed, or searched, while it is fitted.

The tests run scikit-learn's own checks of estimators on it, and name those that it does not pass by design.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from archgrad.choices.modules import OpChoice
from archgrad.copy_and_run import in_mode
from archgrad.costs.count import macs
from archgrad.errors import ConfigError
from archgrad.methods.darts import darts
from archgrad.methods.dnal.dnal import dnal
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.spaces.nasbench201 import nasbench201_cells
from archgrad.spaces.slim.slimmable import slim
from archgrad.tasks import Classification
from archgrad.training.recipe import Recipe

MakeNetwork = Callable[[tuple[int, ...], int], nn.Module]
_BATCH = 1024


class ArchgradClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fits a network to arrays, and slims it or searches it on the way.

    `X` is `[N, F]` features or `[N, C, H, W]` images. Features are standardized by column, images by channel. All
    samples are trained on and none is held out: what `found_` reports is on the training data, so judge by
    `cross_val_score` or data of your own.

    Args:
        method: "slim" trains a network and closes channels (DNAL; with a limit both at once); "search" decides
            operations (DARTS).
        limit: share of the network's MACs that may stay, or None for no limit; of the most expensive network of the
            space when searching.
        width: units of a hidden layer, or channels of the first convolution.
        epochs: passes over the data in all.
        batch_size: samples in a batch.
        network: None for a small network by the shape of `X`, or a function from (shape of a sample, classes) to a
            network; for "search" to a network that contains choices.
        recipe: how weights are trained; None for `Recipe()`, where a limit lets weights and gates learn together.
        folder: of the run and its report; None: in memory only.
        device: "cpu", "auto", "cuda", "cuda:N" or "mps".
        random_state: seed, None, or a `numpy.random.RandomState`.

    Attributes:
        classes_: the labels, `[K]`.
        n_features_in_: F, or C.
        network_: the plain network, standardized inputs to logits `[N, K]`.
        found_: what the method handed back: architecture, costs, history, `report()`.

    Raises:
        ConfigError: (in `fit`) an unknown method, or samples that are neither features nor images.
        LimitError: (in `fit`) a limit that no network meets.

    Example:
        >>> import sklearn.datasets, archgrad as ag
        >>> X, y = sklearn.datasets.load_iris(return_X_y=True)
        >>> classifier = ag.ArchgradClassifier(width=16, epochs=3, random_state=0).fit(X, y)
        >>> classifier.predict_proba(X[:2]).shape
        (2, 3)
    """

    def __init__(
        self,
        *,
        method: str = "slim",
        limit: float | None = 0.5,
        width: int = 64,
        epochs: int = 60,
        batch_size: int = 64,
        network: MakeNetwork | None = None,
        recipe: Recipe | None = None,
        folder: str | Path | None = None,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.method = method
        self.limit = limit
        self.width = width
        self.epochs = epochs
        self.batch_size = batch_size
        self.network = network
        self.recipe = recipe
        self.folder = folder
        self.device = device
        self.random_state = random_state

    def __getstate__(self) -> dict[str, Any]:
        # Estimators are pickled by scikit-learn's convention, results of archgrad are not.
        state: dict[str, Any] = super().__getstate__()
        return state | ({"found_": vars(state["found_"])} if "found_" in state else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | ({"found_": Found(**state["found_"])} if "found_" in state else {}))

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train, and slim or search, on `X` `[N, F]` or `[N, C, H, W]` with labels `y` `[N]`; returns itself."""
        if self.method not in ("slim", "search"):
            raise ConfigError(f'method={self.method!r} is not known. Give "slim" or "search"')
        if not isinstance(self.width, int | np.integer) or self.width < 1:
            raise ConfigError(f"width={self.width!r} was given. Allowed is a whole number of at least 1")
        valid: tuple[Any, Any] = validate_data(self, X, y, dtype=np.float32, allow_nd=True)
        x, labels = valid
        check_classification_targets(labels)
        if x.ndim not in (2, 4):
            raise ConfigError(f"X has the shape {x.shape}. Give features [N, F], or images [N, C, H, W]")
        self.classes_, indices = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ConfigError(f"y holds one class alone ({self.classes_[0]!r}); give samples of two or more classes")
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        self.mean_ = x.mean(axes, keepdims=True, dtype=np.float64)
        deviation = x.std(axes, keepdims=True, dtype=np.float64)
        self.scale_ = np.where(deviation > 0, deviation, 1.0)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with _own_randomness():
            torch.manual_seed(seed)
            self.found_ = self._found(self._standardized(x), torch.from_numpy(indices), seed)
        self.network_ = in_mode(self.found_.network.cpu())
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """The probability of each class, `[N, K]`, in the order of `classes_`, for `X` as in `fit`."""
        check_is_fitted(self)
        inputs = self._standardized(validate_data(self, X, dtype=np.float32, allow_nd=True, reset=False))
        with torch.no_grad():
            logits = torch.cat([self.network_(part) for part in torch.split(inputs, _BATCH)])
        probabilities: NDArray[np.float64] = logits.double().softmax(1).numpy()
        return probabilities

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The likeliest label of each sample, `[N]`, for `X` as in `fit`."""
        likeliest = self.predict_proba(X).argmax(1)
        labels: NDArray[Any] = self.classes_[likeliest]
        return labels

    def _standardized(self, x: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(((x - self.mean_) / self.scale_).astype(np.float32))

    def _found(self, x: Tensor, y: Tensor, seed: int) -> Found:
        # Copies, since a task refuses parts that share samples; nothing is decided by the other two.
        parts = [(x.clone(), y.clone()) for _ in range(3)]
        classes = len(self.classes_)
        task = Classification(*parts, batch_size=min(self.batch_size, len(x)), classes=classes)
        run = Run(epochs=self.epochs, seed=seed, folder=self.folder, device=self.device, progress=False)
        limit = None if self.limit is None else macs(task.example).at_most(fraction=self.limit)
        default = functools.partial(plain if self.method == "slim" else searchable, width=self.width)
        make, recipe = self.network or default, self.recipe or Recipe()
        called = callable(make) and not isinstance(make, nn.Module)
        network = make(tuple(x.shape[1:]), classes) if called else None
        if not isinstance(network, nn.Module):
            raise ConfigError(
                f"network={make!r} gives no network. Allowed is a function from (shape of a sample, classes) to a "
                f"torch.nn.Module, or None"
            )
        if self.method == "slim":
            return dnal(slim(network, task.example), task, run, limit=limit, recipe=recipe)
        return darts(network, task, run, limit=limit, recipe=recipe)


def plain(shape: tuple[int, ...], classes: int, *, width: int = 64) -> nn.Module:
    """A network to slim, for samples of this shape: `[N, F]` or `[N, C, H, W]` to logits `[N, classes]`."""
    if len(shape) == 1:
        return nn.Sequential(
            nn.Linear(shape[0], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
        )  # fmt: skip
    return nn.Sequential(
        *_convolution(shape[0], width), *_convolution(width, width, stride=2), *_convolution(width, 2 * width),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes),
    )  # fmt: skip


def searchable(shape: tuple[int, ...], classes: int, *, width: int = 64) -> nn.Module:
    """A space to search, for samples of this shape: `[N, F]` or `[N, C, H, W]` to logits `[N, classes]`."""
    if len(shape) == 3:
        return nasbench201_cells(channels=max(width // 4, 4), cells=1, classes=classes, in_channels=shape[0])

    def choice(name: str) -> OpChoice:
        return OpChoice(
            {
                "relu": nn.Sequential(nn.Linear(width, width), nn.ReLU()),
                "tanh": nn.Sequential(nn.Linear(width, width), nn.Tanh()),
                "narrow": nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width)),
                "identity": nn.Identity(),
            },
            name=name,
        )

    return nn.Sequential(
        nn.Linear(shape[0], width), nn.ReLU(), choice("first"), choice("second"), nn.Linear(width, classes)
    )  # fmt: skip


def _convolution(before: int, after: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Restore the random states of torch, numpy and `random`, which a run seeds."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)
