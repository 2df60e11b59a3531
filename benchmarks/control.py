"""Control of two systems by trying them out, beside iLQR on their exact equations.

    python benchmarks/control.py --seeds 5 --out benchmarks/results/control.json

Vehicle and cart-pole of the authors of neural iLQR. iLQR on the equations needs no real rollout; the rows with the
same smoothing of the Jacobians along time are the control: what of a gain is due to the smoothing alone. Neural iLQR
knows no equations; its real rollouts are counted, line search and first random ones included, and bounded by
`--rollouts`. "first below" is how many it had used when it first cost less than iLQR without smoothing. Of a searched
network a row has its error beside the default network's, the lower of which is taken. Seconds are of one CPU thread.
A row that the file holds is not run again.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from saving import save_results

import archgrad as ag
from archgrad.control import (
    DYNAMICS_RECIPE,
    Equations,
    NnilqrTerms,
    cart_pole,
    classical_ilqr,
    dynamics_space,
    vehicle,
)

SYSTEMS: dict[str, Callable[[], Equations]] = {"vehicle": vehicle, "cart_pole": cart_pole}
CLASSICAL: dict[str, dict[str, float]] = {
    "iLQR, exact equations": {},
    "iLQR, damped": {"damping": 1.0},
    "iLQR, same smoothing": {"smoothing": 5.0},
    "iLQR, same smoothing, damped": {"smoothing": 5.0, "damping": 1.0},
}
SEARCH = functools.partial(ag.darts, search_recipe=DYNAMICS_RECIPE)
NEURAL: dict[str, dict[str, Any]] = {
    "neural iLQR": {"terms": NnilqrTerms()},
    "neural iLQR, searched network": {"terms": NnilqrTerms(), "search": SEARCH},
    "neural iLQR, no smoothing": {"terms": NnilqrTerms(smoothing=0.0)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=250)
    parser.add_argument("--methods", nargs="+", choices=NEURAL, default=list(NEURAL))
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    held = json.loads(chosen.out.read_text()) if chosen.out.is_file() else {"rows": []}
    rows: list[dict[str, Any]] = held["rows"]
    done = {(row["method"], row["system"], row["seed"], row["budget"]) for row in rows}
    for method in CLASSICAL:
        for name in SYSTEMS:
            if (method, name, 0, 0) not in done:
                keep(rows, classical(method, name), chosen.out)
    reference = {row["system"]: row["cost"] for row in rows if row["method"] == next(iter(CLASSICAL))}
    for method in chosen.methods:
        for seed in range(chosen.seeds):
            for name in SYSTEMS:
                if (method, name, seed, chosen.rollouts) not in done:
                    keep(rows, neural(method, name, seed, chosen.rollouts, reference[name]), chosen.out)
    table(rows, chosen.rollouts)


def classical(method: str, name: str) -> dict[str, Any]:
    begun = time.process_time()
    found = classical_ilqr(SYSTEMS[name](), **CLASSICAL[method])  # type: ignore[arg-type]
    return {
        "method": method, "system": name, "seed": 0, "budget": 0, "cost": found.cost, "rollouts": 0,
        "iterations": found.iterations, "seconds": round(time.process_time() - begun, 1),
    }  # fmt: skip


def neural(method: str, name: str, seed: int, budget: int, reference: float) -> dict[str, Any]:
    begun, system, options = time.process_time(), SYSTEMS[name](), NEURAL[method]
    torch.manual_seed(seed)
    space = dynamics_space(len(system.start), len(system.low)) if "search" in options else None
    run = ag.Run(trials=budget, seed=seed, device="cpu", progress=False)
    found = ag.nnilqr(space, system, run, **options)
    costs = found.record["control"]["costs"]
    assert system.rollouts == found.costs["rollouts"]
    return {
        "method": method, "system": name, "seed": seed, "budget": budget, "cost": costs[-1][1],
        "rollouts": system.rollouts, "below": next((used for used, cost in costs if cost < reference), None),
        "after": {at: next(cost for used, cost in reversed(costs) if used <= at) for at in (50, 100, 150, 200)},
        "params": found.costs["params"], "picks": [pick["pick"] for pick in found.record["picks"]],
        "explained": next(row["fit_explained"] for row in run.history if "fit_explained" in row),
        "errors": found.record.get("finalists"), "seconds": round(time.process_time() - begun, 1),
    }  # fmt: skip


def keep(rows: list[dict[str, Any]], row: dict[str, Any], out: Path) -> None:
    rows.append(row)
    print(json.dumps(row), flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_results(out, {"rows": rows})


def table(rows: list[dict[str, Any]], budget: int) -> None:
    print("| method | system | J | real rollouts | first below | seeds | seconds |\n|---|---|---|---|---|---|---|")
    for name in SYSTEMS:
        for method in (*CLASSICAL, *NEURAL):
            same = [r for r in rows if (r["method"], r["system"]) == (method, name) and r["budget"] in (0, budget)]
            if not same:
                continue
            costs = [row["cost"] for row in same]
            spread = f" ± {statistics.stdev(costs):.2f} (worst {max(costs):.2f})" if len(costs) > 1 else ""
            below = [row["below"] for row in same if row.get("below") is not None]
            first = f"{statistics.median(below):.0f}, {len(below)} of {len(same)}" if "below" in same[0] else "–"
            used, seconds = (statistics.mean(row[key] for row in same) for key in ("rollouts", "seconds"))
            taken = [row for row in same if row.get("errors")]
            if taken:
                first += f"; searched network taken in {sum(bool(row['picks']) for row in taken)}"
            cells = (method, name, f"{statistics.mean(costs):.2f}{spread}", f"{used:.0f}", first, len(same))
            print(f"| {' | '.join(map(str, cells))} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
