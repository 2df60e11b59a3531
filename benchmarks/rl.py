"""Encoders of agents, searched and not, at equal steps of the environment, in a pixel game and games of Procgen.

    python benchmarks/rl.py --out benchmarks/results/rl.json
    python benchmarks/rl.py --games starpilot --steps 98304 --seeds 2 --out benchmarks/results/rl.json

Rows, each made once (stopped and started again, the rest is made):
- "step": seconds of a forward and backward pass of each supernet over those of the hand-made encoder, in turns;
- "environments": steps a second under random actions;
- "pixel", for each of `--steps` and each seed: `ag.rl_darts` with its baselines: the supernet that is searched, with
  IMPALA's residual block among its operations, the cell found and trained anew, two random cells, and the hand-made
  IMPALA-CNN of the same depths; returns on 200 levels and on unseen ones;
- the same on each of `--games`, games of Procgen, with three stages of one node.
Needs the extra rl, and for Procgen the extra procgen.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from saving import save_results
from torch import nn

import archgrad as ag
from archgrad.choices import Open
from archgrad.rl import PixelGame, PpoTerms, Procgen

RANDOM_CELLS = 2
LONGEST = 500  # of an episode that is judged


class Rows:
    """Rows by key in a file that is replaced whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Any] = json.loads(path.read_text())["rows"] if path.is_file() else {}

    def make(self, key: str, compute: Any) -> None:
        if key not in self.rows:
            self.rows[key] = compute()
            print(key, json.dumps(self.rows[key]), flush=True)
            save_results(self.path, {"torch": torch.__version__, "rows": self.rows})


def relaxed(space: nn.Module) -> nn.Module:
    ag.relax(space, ag.softmax, where=lambda c: not isinstance(c, ag.InputChoice))
    return ag.relax(space, Open, where=lambda c: isinstance(c, ag.InputChoice))


def step_times() -> dict[str, Any]:
    """Times in turns, so that a slow moment slows all alike; medians of the ratios to the first."""
    images = torch.rand(32, 3, 64, 64)
    nets: dict[str, nn.Module] = {}
    for name, depths in (("16/16/16", (16, 16, 16)), ("16/32/32", (16, 32, 32))):
        nets[f"IMPALA-CNN {name}"] = ag.impala_network(depths=depths)
        for nodes in (1, 2, 4):
            nets[f"supernet {name}, {nodes} nodes"] = relaxed(ag.impala_cells(depths=depths, nodes=nodes))
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(8):
        for name, net in nets.items():
            begun = time.process_time()
            net(images).sum().backward()
            seconds[name].append(time.process_time() - begun)
    middle = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    found = {}
    for name, value in middle.items():
        same = f"IMPALA-CNN {name.split(',')[0].split()[-1]}"
        found[name] = {
            "ms": 1e3 * value,
            "to_same_depths": value / middle[same],
            "macs_to_same_depths": ag.macs(images[:1]).of(nets[name]) / ag.macs(images[:1]).of(nets[same]),
            "to_16_32_32": value / middle["IMPALA-CNN 16/32/32"],
        }
    return found


def order() -> dict[str, float]:
    """A residual stage of the IMPALA-CNN in both memory formats, ms forward and backward."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(3, 2, 1)]
    for _ in range(4):
        layers += [nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
    net = nn.Sequential(*layers)
    formats = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
    seconds: dict[str, list[float]] = {name: [] for name in formats}
    for _ in range(10):
        for name, memory in formats.items():
            x = torch.rand(32, 3, 64, 64).contiguous(memory_format=memory)
            begun = time.process_time()
            net(x).sum().backward()
            seconds[name].append(time.process_time() - begun)
    return {name: 1e3 * statistics.median(times[1:]) for name, times in seconds.items()}


def environments() -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    task = ag.Reinforcement(PixelGame, num_envs=64)
    env = task.vector_env(seed=0)
    begun = time.perf_counter()
    for _ in range(200):
        env.step(torch.randint(task.actions, (64,), generator=generator))
    seconds = time.perf_counter() - begun
    env.close()
    return {task.name: 200 * 64 / seconds}


def task_of(game: str) -> ag.Reinforcement:
    return ag.Reinforcement(
        PixelGame if game == "pixel" else Procgen(game), train_levels=200, max_episode_steps=LONGEST
    )


def at_random(game: str) -> dict[str, float]:
    task = task_of(game)
    generator = torch.Generator().manual_seed(0)
    return task.evaluate(lambda x: torch.randint(task.actions, (len(x),), generator=generator), episodes=128)


def searched(game: str, seed: int, *, steps: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    task = task_of(game)
    shape: dict[str, Any] = {"size": 8, "depths": (16,), "features": 64} if game == "pixel" else {
        "depths": (8, 16, 16), "features": 128,
    }  # fmt: skip
    space = ag.impala_cells(nodes=2 if game == "pixel" else 1, operations="residual", **shape)
    by_hand = ag.impala_network(**shape)
    run = ag.Run(seed=seed, device="cpu", progress=False)
    found = ag.rl_darts(
        space, task, run, environment_steps=steps, terms=PpoTerms(), hand_made=by_hand, episodes=128,
        random_cells=RANDOM_CELLS,
    )  # fmt: skip
    last = {row["phase"]: row for row in run.history}
    rows = {"found": found.record["after"], **{one["name"]: one for one in found.record["baselines"]}}
    phases = {"found": "train", "supernet": "search", "hand-made encoder": "hand-made"}
    phases |= {name: name.replace(" cell", "").replace(" ", "-") for name in rows if name.startswith("random cell")}
    ends, began = {}, 0.0
    for phase in sorted(phases.values(), key=lambda phase: last[phase]["time"]):
        ends[phase] = last[phase]["environment_steps"] / (last[phase]["time"] - began)
        began = last[phase]["time"]
    learnt = {
        name: [round(statistics.fmean(part), 3) for part in thirds([r["return"] for r in run.history
               if r["phase"] == phase and "return" in r])] for name, phase in phases.items()
    }  # fmt: skip
    kept = ("return_unseen", "return_unseen_std", "return_train", "return_train_std", "episodes", "params", "macs")
    search = [row for row in run.history if row["phase"] == "search"]
    return {
        "cell": found.record["architecture_text"], "changes": len(found.record["cells"]),
        "entropy": [search[0]["entropy"], search[-1]["entropy"]],
        "networks": {
            name: {k: row[k] for k in kept} | {"steps_a_second": ends[phases[name]], "learnt": learnt[name]}
            for name, row in rows.items()
        },
    }  # fmt: skip


def thirds(values: list[float]) -> list[list[float]]:
    """First, middle and last third."""
    cut = max(1, len(values) // 3)
    return [values[:cut], values[cut:-cut] or values, values[-cut:]]


def told(rows: dict[str, Any]) -> None:
    """The tables of docs/benchmarks/rl.md."""
    print("| encoder | ms | to the same depths | MACs to the same | to 16/32/32 |\n|---|---|---|---|---|")
    for name, row in rows["step"].items():
        ratios = " | ".join(f"{row[key]:.2f}" for key in ("to_same_depths", "macs_to_same_depths", "to_16_32_32"))
        print(f"| {name} | {row['ms']:.0f} | {ratios} |")
    for group in dict.fromkeys(key.rpartition(",")[0] for key in rows if ", seed " in key):
        runs = [row for key, row in rows.items() if key.startswith(f"{group},")]
        print(f"\n{group}, {len(runs)} seeds")
        print("| | unseen levels | levels trained on | return in training, by thirds | parameters | MACs |")
        print("|---|---|---|---|---|---|")
        for name in ("supernet", "found", "random cell", "hand-made encoder"):
            same = [row for run in runs for each, row in run["networks"].items() if each.startswith(name)]
            thirds = [statistics.fmean(part) for part in zip(*(one["learnt"] for one in same), strict=True)]
            cells = [
                spread(same, "return_unseen"),
                spread(same, "return_train"),
                ", ".join(f"{x:.2f}" for x in thirds),
            ]
            cells += [f"{statistics.fmean(one[key] for one in same):,.0f}" for key in ("params", "macs")]
            print(f"| {name} | {' | '.join(cells)} |")
        for run in runs:
            print(f"{run['cell']}; led after {run['changes']} cells; entropy {run['entropy'][-1]:.4f}")


def spread(rows: list[dict[str, float]], key: str) -> str:
    """Mean and standard deviation over seeds; of one seed the error of the mean over its episodes."""
    values = [row[key] for row in rows]
    if len(values) > 1:
        return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
    return f"{values[0]:.2f} ± {rows[0][f'{key}_std'] / rows[0]['episodes'] ** 0.5:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", type=int, default=[61_440], help="of the environment, for each network")
    parser.add_argument("--games", nargs="+", default=["pixel"], help='"pixel", or games of Procgen')
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows(given.out)
    rows.make("order", order)
    rows.make("step", step_times)
    rows.make("environments", environments)
    for game in given.games:
        rows.make(f"random play {game}", lambda game=game: at_random(game))
    for game, steps, seed in itertools.product(given.games, given.steps, range(given.seeds)):
        rows.make(f"{game} {steps}, seed {seed}", lambda g=game, s=seed, n=steps: searched(g, s, steps=n))
    told(rows.rows)


if __name__ == "__main__":
    main()
