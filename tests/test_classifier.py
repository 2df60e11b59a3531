"""The estimator in scikit-learn's form, by scikit-learn's own checks and on data of both shapes."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import nn

import archgrad as ag
from archgrad.errors import ConfigError, LimitError

# These need accuracy, so a longer fit.
LONGER = {"check_classifiers_train"}
# The slowest, and not about classifiers: prediction with y of other shapes, in a pipeline.
LEFT_OUT = {"check_fit_score_takes_y", "check_estimators_dtypes", "check_classifiers_classes"}


def checks(which: set[str], *, but: bool = False, epochs: int) -> list[Any]:
    estimator = ag.ArchgradClassifier(epochs=epochs, width=8, random_state=0)
    return [(one, check) for one, check in estimator_checks_generator(estimator) if (name_of(check) in which) != but]


def name_of(check: Any) -> str:
    return str(check.func.__name__)


@pytest.mark.parametrize(
    ("estimator", "check"),
    [pytest.param(*pair, id=name_of(pair[1])) for pair in checks(LONGER | LEFT_OUT, but=True, epochs=4)],
)
def test_it_passes_the_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "check"),
    [pytest.param(*pair, id=f"{name_of(pair[1])}{k}") for k, pair in enumerate(checks(LONGER | LEFT_OUT, epochs=40))],
)
def test_it_passes_the_longer_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def digits() -> list[np.ndarray]:
    bunch = load_digits()
    return train_test_split(bunch.data, bunch.target, test_size=0.3, random_state=0)


def test_it_learns_digits_under_its_limit(digits: list[np.ndarray]) -> None:
    x, other, y, truth = digits
    names = np.array([f"digit {k}" for k in range(10)])
    fitted = ag.ArchgradClassifier(epochs=12, random_state=0, limit=0.5).fit(x, names[y])
    assert fitted.score(other, names[truth]) > 0.93
    odds = fitted.predict_proba(other)
    assert odds.shape == (len(other), 10) and np.allclose(odds.sum(1), 1)
    assert (fitted.classes_[odds.argmax(1)] == fitted.predict(other)).all()
    whole = 64 * 64 + 64 * 64 + 64 * 10
    assert fitted.found_.costs["macs"] <= 0.5 * whole
    assert all(type(module).__module__.startswith("torch.") for module in fitted.network_.modules())
    again = pickle.loads(pickle.dumps(fitted))
    assert (again.predict(other) == fitted.predict(other)).all()
    assert again.found_.report() == fitted.found_.report()


@pytest.mark.parametrize("method", ["slim", "search"])
def test_it_takes_images(method: str, digits: list[np.ndarray]) -> None:
    x, _, y, _ = digits
    images = x[:200].reshape(-1, 1, 8, 8)
    fitted = ag.ArchgradClassifier(method=method, epochs=4, width=8, limit=None, random_state=0).fit(images, y[:200])
    assert fitted.predict_proba(images).shape == (200, 10) and fitted.n_features_in_ == 1


def test_it_searches_features(digits: list[np.ndarray]) -> None:
    x, other, y, truth = digits
    fitted = ag.ArchgradClassifier(method="search", epochs=10, width=32, limit=0.9, random_state=0).fit(x, y)
    assert set(fitted.found_.architecture) == {"first", "second"}
    assert fitted.score(other, truth) > 0.9


def test_the_same_seed_gives_the_same_and_leaves_other_randomness_alone(digits: list[np.ndarray]) -> None:
    x, _, y, _ = digits
    estimator = ag.ArchgradClassifier(epochs=3, width=8, random_state=3)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = estimator.fit(x[:100], y[:100]).predict_proba(x)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert (clone(estimator).fit(x[:100], y[:100]).predict_proba(x) == first).all()


def test_a_network_of_ones_own(digits: list[np.ndarray]) -> None:
    def make(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(*shape, 24), nn.Tanh(), nn.Linear(24, classes))

    x, _, y, _ = digits
    fitted = ag.ArchgradClassifier(network=make, epochs=3, random_state=0).fit(x[:100], y[:100])
    assert isinstance(fitted.network_[1], nn.Tanh) and fitted.network_[0].out_features <= 12


@pytest.mark.parametrize("method", ["slim", "search"])
def test_its_recipe_trains_the_weights(method: str, digits: list[np.ndarray]) -> None:
    x, _, y, _ = digits
    recipe = ag.Recipe(ag.adamw, clip=1.0)
    fitted = ag.ArchgradClassifier(method=method, limit=0.9, epochs=3, width=8, recipe=recipe, random_state=0)
    record = clone(fitted).fit(x[:100], y[:100]).found_.record["settings"]
    told = record["recipe"]["optimizer_factory"]
    assert told == "adamw(learning_rate=0.001, weight_decay=0.05)" and record["recipe"]["clip"] == 1.0


def test_what_it_refuses(digits: list[np.ndarray]) -> None:
    x, _, y, _ = digits
    with pytest.raises(ConfigError, match='Give "slim" or "search"'):
        ag.ArchgradClassifier(method="prune").fit(x, y)
    with pytest.raises(ConfigError, match="Give features"):
        ag.ArchgradClassifier().fit(x.reshape(-1, 8, 8), y)
    with pytest.raises(ConfigError, match="one class alone"):
        ag.ArchgradClassifier().fit(x, np.zeros(len(x)))
    with pytest.raises(LimitError, match="lowest reachable"):
        ag.ArchgradClassifier(limit=0.001, epochs=3).fit(x, y)
    with pytest.raises(NotFittedError):
        ag.ArchgradClassifier().predict(x)
