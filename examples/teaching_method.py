"""A whole method in a page: candidates mixed by a softmax, one loss descended in all parameters, the heaviest kept.

    python examples/teaching_method.py

It is DARTS without its second level, and is there to be read beside docs/extend.md: `one_level` has what every method
has, a budget, a seed, exact resume, a log, and a plain network at the end. It searches four operations on digits.
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import nn

import archgrad as ag


def one_level(space: nn.Module, task: ag.Classification, run: ag.Run, *, rate: float = 0.01) -> ag.Found:
    """Descend the training loss in weights and logits at once; then train the heaviest architecture's network."""
    space = ag.relax(copy.deepcopy(space), ag.softmax).to(run.device)
    run.begin("one_level", {"rate": rate})  # takes the folder, seeds, finds out whether this resumes
    total = run.total_steps(task.steps_per_epoch, default_epochs=20)
    groups = [{"params": ag.weights(space)}, {"params": ag.logits(space), "lr": 10 * rate}]
    optimizer = torch.optim.Adam(groups, lr=rate)
    batches = task.stream(seed=run.seed)  # from a step's number to its batch: the same in every life of the run

    run.register_state(space=space, optimizer=optimizer)  # what is saved, and restored when the run goes on
    for step in run.steps(total // 2, phase="search"):
        loss = task.loss(space.train(), run.to_device(batches(step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log({"loss": loss.detach()}, step=step)

    picked = run.compute_once("architecture", lambda: dict(ag.decide(space)))  # decided once in the run's life
    architecture = ag.Architecture(picked)
    network = ag.build(space, architecture, weights="fresh").to(run.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    run.register_state(network=network, optimizer=optimizer)
    for step in run.steps(total - total // 2, phase="train"):
        loss = task.loss(network.train(), run.to_device(batches(step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log({"loss": loss.detach()}, step=step)

    score = task.evaluate(network, "test")["accuracy"]
    run.finish()
    costs = {"macs": ag.macs(task.example).of(network)}
    return ag.Found(architecture, network.eval(), score, costs, run.history)


def space() -> nn.Module:
    """Images [B, 1, 8, 8] to logits [B, 10], with two choices."""

    def choice(name: str) -> ag.OpChoice:
        kinds = {"one": nn.Conv2d(8, 8, 1), "three": nn.Conv2d(8, 8, 3, padding=1), "skip": nn.Identity()}
        return ag.OpChoice(kinds, name=name)

    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), choice("first"), nn.ReLU(), nn.MaxPool2d(2), choice("second"),
        nn.ReLU(), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a few steps, in seconds")
    given = parser.parse_args()
    torch.manual_seed(0)
    task = ag.Classification.load("digits", batch_size=64)
    found = one_level(space(), task, ag.Run(epochs=1 if given.smoke else 20, seed=0))
    print(f"{dict(found.architecture)}: accuracy {found.score:.3f}, {found.costs['macs']:,.0f} MACs")


if __name__ == "__main__":
    main()
