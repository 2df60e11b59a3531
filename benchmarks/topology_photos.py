"""Searches of cells whose nodes choose their inputs, on photographs, beside random search: are topologies worth it?

    python benchmarks/topology_photos.py --steps 900 --seeds 5 --out benchmarks/results/topology_photos.json

The space is DARTS's (4 channels, 2 cells, 3 nodes; pooling, skip, separable convolution), some 13,000 networks. It is
searched on CIFAR-10 (the JPEG copy, some of it, halved to 16 x 16) for the same number of steps and with the same
labelled images in every row; where a row ends with finalists, a sixth of them is the validation part that decides.
What a search hands back is trained --trainings times from fresh weights on all of these images, and scored on test
images that no search saw. "random cell" is one draw a seed. Searches and their forms: searches.py.
Data: found through ARCHGRAD_DATA. Rows that --out holds are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from saving import save_results
from searches import BARE, by_row, paired, search
from slim_tasks import cifar10_part

import archgrad as ag

DRAW = "random cell"
ROWS = (
    DRAW, "random", "random, 32 draws", "single path", "darts", "darts_prime", "darts_prime, static", "toponas",
    f"toponas{BARE}",
)  # fmt: skip
OPERATIONS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")


def space() -> ag.spaces.DartsCells:
    """The supernet."""
    return ag.darts_cells(channels=4, cells=2, nodes=3, operations=OPERATIONS)


def scores(architecture: ag.Architecture, task: ag.Classification, *, steps: int, trainings: int) -> list[float]:
    """Test accuracies in %, each after a training of its own."""
    found = []
    for seed in range(trainings):
        torch.manual_seed(1000 + seed)
        network = ag.build(space(), architecture, weights="fresh")
        ag.fit(network, task, ag.Run(steps=steps, seed=1000 + seed, device="cpu", progress=False))
        found.append(100.0 * task.evaluate(network, "test")["accuracy"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=6000, help="with labels, of every row")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--trainings", type=int, default=3, help="of each network found")
    parser.add_argument("--training-steps", type=int, default=900)
    parser.add_argument("--methods", nargs="+", choices=ROWS, default=ROWS, metavar="ROW")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    sixth = chosen.images // 6
    valid, train, tests = (
        cifar10_part(first, count, halved=True)
        for first, count in ((0, sixth), (sixth, chosen.images - sixth), (50000, 5000))
    )
    task = ag.Classification(train, valid, tests, batch_size=32, augment=(ag.flip(), ag.crop(2)))
    asked = {name: getattr(chosen, name) for name in ("images", "steps", "trainings", "training_steps")}
    body = json.loads(chosen.out.read_text()) if chosen.out.is_file() else {**asked, "rows": []}
    if {name: body.get(name) for name in asked} != asked:
        parser.error(f"{chosen.out} holds rows of another run, not of {asked}: name another file with --out")
    done = {(r["method"], r["seed"]) for r in body["rows"]}
    for seed in range(chosen.seeds):
        for name in chosen.methods:
            if (name, seed) in done:
                continue
            torch.manual_seed(seed)
            begun, finalists = time.process_time(), []
            if name == DRAW:
                architecture = ag.sample(space(), generator=torch.Generator().manual_seed(seed))
            else:
                found = search(name, space(), task, steps=chosen.steps, seed=seed, trials=50)
                architecture = found.architecture
                finalists = [[r["from"], r["score"], r["loss"]] for r in found.record.get("finalists", ())]
            seconds = time.process_time() - begun
            each = scores(
                architecture, task.with_validation(), steps=chosen.training_steps, trainings=chosen.trainings
            )
            body["rows"].append({
                "method": name, "seed": seed, "accuracy": statistics.fmean(each), "trainings_each": each,
                "cell": space().describe(architecture)["architecture_text"], "finalists": finalists,
                "params": ag.params().of(ag.build(space(), architecture)), "cpu_seconds": round(seconds, 1),
            })  # fmt: skip
            print(json.dumps(body["rows"][-1]), flush=True)
            save_results(chosen.out, body)
    print("| search | seeds | test accuracy, % | less single path's | parameters | CPU s |")
    print("|---" * 6 + "|")
    peer = [r for r in body["rows"] if r["method"] == "single path"]
    for (name, _), same in by_row([{**r, "all": 0} for r in body["rows"]], "all").items():
        values = [r["accuracy"] for r in same]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        told = "–" if name == "single path" else paired(same, peer, "accuracy")
        print(
            f"| {name} | {len(same)} | {statistics.fmean(values):.1f}{spread} | {told} "
            f"| {statistics.fmean(r['params'] for r in same):,.0f} "
            f"| {statistics.fmean(r['cpu_seconds'] for r in same):.0f} |"
        )


if __name__ == "__main__":
    main()
