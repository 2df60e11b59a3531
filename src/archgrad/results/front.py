"""What a method for several budgets hands back: a network for each, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from archgrad.choices.architecture import Architecture
from archgrad.errors import ConfigError, RunError
from archgrad.report import notebook, page, text
from archgrad.report.data.run_folder import write_record
from archgrad.results.result import Found


@dataclass(frozen=True)
class FrontPoint:
    """A network of a front.

    Attributes:
        fraction: its budget, as a fraction of what the whole network takes.
        valid: its score on the validation part.
        found: the network with its architecture, its score on the test part, its costs and its report.

    Example:
        >>> import torch, archgrad as ag
        >>> found = ag.Found(ag.Architecture({}), torch.nn.Linear(2, 2), score=0.9, costs={"macs": 4.0})
        >>> point = ag.FrontPoint(0.5, 0.91, found)
        >>> point.valid, point.score, point.costs["macs"]
        (0.91, 0.9, 4.0)
    """

    fraction: float
    valid: float
    found: Found

    @property
    def network(self) -> nn.Module:
        """The plain network, in eval mode."""
        return self.found.network

    @property
    def architecture(self) -> Architecture:
        """One pick per gate."""
        return self.found.architecture

    @property
    def score(self) -> float | None:
        """On the test part where there is one."""
        return self.found.score

    @property
    def costs(self) -> Mapping[str, float]:
        """What the network takes, by the name of the cost."""
        return self.found.costs


@dataclass(frozen=True, repr=False)
class Front:
    """Networks at several budgets, of one run.

    Attributes:
        cost: the name of the cost that is bounded.
        whole: the network that nothing was removed from; its fraction is 1.
        points: one for each budget, the largest first.
        higher_is_better: whether a higher score is better.
        record: everything that the report shows, as JSON.

    Example:
        >>> import torch, archgrad as ag
        >>> net = torch.nn.Linear(2, 2)
        >>> found = ag.Found(ag.Architecture({}), net)
        >>> whole, half, tenth = (ag.FrontPoint(f, v, found) for f, v in ((1.0, 0.91), (0.5, 0.908), (0.1, 0.9)))
        >>> front = ag.Front("macs", whole, (half, tenth))
        >>> front.smallest(within=0.5).fraction, front.smallest(within=1.5).fraction, front.smallest(0.1).fraction
        (0.5, 0.1, 1.0)
    """

    cost: str
    whole: FrontPoint
    points: Sequence[FrontPoint]
    higher_is_better: bool = True
    record: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        rows = ", ".join(f"{point.fraction:g}: {point.valid:.6g}" for point in (self.whole, *self.points))
        return f"Front({self.cost}; valid scores {rows})"

    def _repr_html_(self) -> str:
        """Figures of all networks, for a notebook."""
        return notebook.summary(self.record, picks=[])

    def smallest(self, within: float = 0.5) -> FrontPoint:
        """The network of the smallest budget whose validation score is at most `within` points below the whole's.

            score(whole) - score(network) <= within / 100                  scores that are higher-is-better shares
            loss of score of the network  <= within / 100 * |score(whole)|   every other score

        A share is a score in [0, 1] at every point of the front, such as an accuracy: 0.5 is half a percentage
        point. Every other score (an error, a loss, an accuracy in per cent, a PSNR), higher- or lower-is-better,
        may be worse by `within` per cent of the whole network's. Where no smaller network is within, it is `whole`.

        Raises:
            ConfigError: `within` is no number of at least 0.
        """
        check_within(within)
        scores = [point.valid for point in (self.whole, *self.points)]
        share = self.higher_is_better and all(0.0 <= score <= 1.0 for score in scores)
        allowed = within / 100 * (1.0 if share else abs(self.whole.valid))
        sign = 1.0 if self.higher_is_better else -1.0
        # Scores are means over samples, so that what is exactly at the edge is not to fall off it by a last bit.
        close = [p for p in self.points if sign * (self.whole.valid - p.valid) <= allowed + 1e-9]
        return min(close, key=lambda point: point.fraction, default=self.whole)

    def report(self) -> str:
        """All networks as a table in plain text."""
        return text.plain(self.record)

    def folder_of(self, point: FrontPoint) -> str:
        """The folder of a point's files, in that of the run."""
        return f"{self.cost}-{point.fraction:g}"

    def save(self, folder: str | Path) -> None:
        """Write record.json, report.html with the picture of the front, and a folder for each point.

        The folder of a point, such as macs-0.5, holds what `Found.save` writes.

        Raises:
            RunError: the disk is full, or the folder cannot be written in.
        """
        folder = Path(folder)
        for point in self.points:
            point.found.save(folder / self.folder_of(point))
        try:
            write_record(folder, self.record)
            page.write(folder)
        except OSError as error:
            raise RunError(
                f"the front could not be written to {folder}: {error}; make room there and run again"
            ) from error


def check_within(within: object) -> None:
    """Raise ConfigError for what is no number of points."""
    if isinstance(within, bool) or not isinstance(within, int | float) or not 0.0 <= within < math.inf:
        raise ConfigError(
            f"within={within!r} was given. Allowed are points of the score from 0 up, such as 0.5 for half a point."
        )
