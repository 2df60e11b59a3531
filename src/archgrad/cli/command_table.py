"""The table of the commands whose options are a schema."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from archgrad.cli.command_output import Outcome
from archgrad.cli.interruptible_imports import interruptible
from archgrad.cli.schemas.control import ControlOptions
from archgrad.cli.schemas.demo import DemoOptions
from archgrad.cli.schemas.init import InitOptions
from archgrad.cli.schemas.options import Options
from archgrad.cli.schemas.score import ScoreOptions
from archgrad.cli.schemas.search import SearchOptions
from archgrad.cli.schemas.slim import SlimOptions
from archgrad.cli.schemas.train import TrainOptions
from archgrad.cli.schemas.transfer import TransferOptions


@dataclass(frozen=True)
class Command:
    """A row of the table.

    Attributes:
        name: of the command, and of its module in `archgrad.cli.commands`.
        schema: its options.
        help: a sentence.
        dry_run: whether it has --dry-run.
        resumable: whether it begins a run, which `archgrad resume` continues.
    """

    name: str
    schema: type[Options]
    help: str
    dry_run: bool = False
    resumable: bool = True

    def execute(self, options: Options) -> Outcome:
        """Run it. Its module is imported now: it loads torch, which takes seconds."""
        with interruptible():
            module = importlib.import_module(f"archgrad.cli.commands.{self.name}")
        outcome: Outcome = module.execute(options)
        return outcome


_ROWS = (
    Command(
        "init", InitOptions, "Look at a model and data, and write a configuration and a script to slim it with.",
        resumable=False,
    ),
    Command("demo", DemoOptions, "Slim a small CNN on real digits, end to end, in about half a minute."),
    Command(
        "slim", SlimOptions, "Slim a network of yours, or of timm, on your data, under a limit if you give one.",
        dry_run=True,
    ),
    Command(
        "search", SearchOptions, "Search a space for an architecture, under a limit if you give one, and train it.",
        dry_run=True,
    ),
    Command("control", ControlOptions, "Control a system by trying it out, with a network that learns its dynamics."),
    Command("score", ScoreOptions, "Rank networks without training, and tell how far the ranking is to be trusted."),
    Command(
        "train", TrainOptions, "Train a network, or an architecture that was slimmed or searched, from fresh weights."
    ),
    Command(
        "transfer", TransferOptions,
        "Prune a network on much data, and train what stays on few samples of other data.", dry_run=True,
    ),
)  # fmt: skip
COMMANDS = {command.name: command for command in _ROWS}
