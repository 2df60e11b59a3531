"""The ledger of all benchmarks, RESULTS.md and RESULTS.json, made of the files in benchmarks/results alone.

    python benchmarks/ledger.py

For each file that says on which machine, with which versions and when it was made: what was asked, the command,
seeds, figures with their spread, peers of the same run, and what lost to them. Files that do not say so have no row
and are named at the end. Nobody writes the ledger by hand. `python benchmarks/ledger.py --stamp FILE` adds this
machine and today to a file of results, for rows that were made here and today by a script that does not.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saving import save_results

HERE = Path(__file__).parent
Point = tuple[str, str, str, float]  # group, figure, who, value
Points = Callable[[Any], Iterable[Point]]


@dataclass(frozen=True)
class Entry:
    """What one file of results holds.

    Attributes:
        asked: the question, in a line.
        command: that makes the file.
        page: of the documentation.
        points: from the file's content to single figures.
        higher: whether higher is better.
        peers: what the others are held against.
        median: whether figures are medians over seeds.
    """

    asked: str
    command: str
    page: str
    points: Points
    higher: bool = True
    peers: tuple[str, ...] = ()
    median: bool = False


def of_rows(figure: str, key: str, *, who: str = "method", group: str = "", scale: float = 1.0) -> Points:
    """A figure of a list of rows."""

    def points(body: Any) -> Iterator[Point]:
        for row in body["rows"]:
            if isinstance(row.get(key), int | float):
                yield str(row.get(group, "")) if group else "", figure, str(row[who]), scale * row[key]

    return points


def parts_of(figure: str, key: str, who: Callable[[Any], str], *, scale: float = 100.0) -> Points:
    """A figure of rows by data set."""

    def points(body: Any) -> Iterator[Point]:
        for data, rows in body["rows"].items():
            yield from ((data, figure, who(row), scale * row[key]) for row in rows)

    return points


def taken(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of slim.py's rows on one case and protocol those at the rate that the first seed's first budget chose."""
    rates = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        first, *more = [row for row in rows if row["method"] == method]
        tried = [row for row in more if (row["seed"], row["fraction"]) == (first["seed"], first["fraction"])]
        better = min if first["score"] == "mae" else max
        rates[method] = better([first, *tried], key=lambda row: row["valid"])["rate"]
    return [row for row in rows if row["rate"] == rates[row["method"]]]


def slimmed(body: Any) -> Iterator[Point]:
    """Rows of slim.py; of the rates that were tried for a method the one that was taken."""
    for case, protocol in dict.fromkeys((row["case"], row["protocol"]) for row in body["rows"]):
        rows = [row for row in body["rows"] if (row["case"], row["protocol"]) == (case, protocol)]
        for row in taken(rows):
            if row["method"] != "dense":
                error = row["score"] == "mae"
                figure = "100 (1 - error in radians)" if error else f"{row['score']}, %"
                value = 100 * (1 - row["test"] if error else row["test"])
                who = "random allocation" if row["method"].startswith("headroom") else row["method"]
                yield f"{case} ({protocol}), {row['fraction']:.0%} of the MACs", figure, who, value


def demonstrated(body: Any) -> Iterator[Point]:
    for row in body["rows"]:
        yield "", "accuracy on the test part, %", row["network"], 100 * row["accuracy"]
        for figure in (name for name in ("params", "macs", "onnx_ms") if name in row):
            yield "", {"onnx_ms": "time in ONNX Runtime, ms"}.get(figure, figure), row["network"], row[figure]


def survived(body: Any) -> Iterator[Point]:
    for part, key, fine in (("kill", "runs", "equal"), ("operations", "kills", "equal")):
        rows = body[part]
        yield part, f"{key}, of these the networks are the same in", key, sum(row[key] for row in rows)
        yield part, f"{key}, of these the networks are the same in", fine, sum(row[fine] for row in rows)
    of_python = ("returned", "refused", "the user's error, with its place")
    for part, good in (
        ("inputs", ("status 0", "status 2")), ("python", of_python), ("resumes", ("refused", "noted"))
    ):  # fmt: skip
        for name in good:
            yield part, "how they ended", name, sum(row.get(name, 0) for row in body[part])


def hastened(body: Any) -> Iterator[Point]:
    for row in body["rows"]:
        for kind, figures in row["half"].items():
            if kind != "full":
                yield row["network"], f"time over the whole network's, {kind}", "ONNX Runtime", figures["onnx_ratio"]
                yield row["network"], f"time over the whole network's, {kind}", "eager", figures["eager_ratio"]


def compiled(body: Any) -> Iterator[Point]:
    for row in body["rows"]:
        for kind, figures in row.items():
            if isinstance(figures, dict):
                yield row["network"], "time of a compiled step over that as written", kind, figures["ratio"]
                yield row["network"], "seconds to compile", kind, figures["compile_seconds"]


def shipped(body: Any) -> Iterator[Point]:
    """Rows of device.py: wrong answers, bytes, and time over that of the original float file, of equal budgets."""
    for row in body["rows"]:
        name, _, kind = row["method"].partition(", ")
        who, _, budget = name.partition(" ")
        if budget:
            group = f"{row['network']}, {budget} of the MACs, {kind}"
            yield group, "wrong answers, %", who, 100 * (1 - row["accuracy"])
            yield group, "size, kB", who, row["size_bytes"] / 1000
            for runtime in body["settings"]["runtimes"]:
                if f"{runtime}_ratio" in row:
                    yield group, f"time over the original's, {runtime}", who, row[f"{runtime}_ratio"]


def rounded_off(body: Any) -> Iterator[Point]:
    for row in body["rows"]:
        bits = "float" if row["bits"] == 32 else f"{row['bits']} bits"
        yield f"{row['network']}, {bits}", "error on the test part, %", row["method"], 100 * row["test_error"]


def fronts(body: Any) -> Iterator[Point]:
    for row in body["rows"]:
        group = f"{row['case']}, {row['start']} weights, {row['fraction']:.0%} of the MACs"
        yield group, "accuracy, %", row["method"], 100 * row["score"]


def transferred(body: Any) -> Iterator[Point]:
    for row in body["rows"]:
        for network in row["networks"]:
            for shots in (key for key in ("1 shots", "5 shots", "20 shots") if key in network):
                yield f"{row['pair']}, {shots}", "accuracy, %", network["name"], 100 * network[shots][0]


def estimated(body: Any) -> Iterator[Point]:
    for row in body["rows"]:
        at = "" if row["temperature"] is None else f" at {row['temperature']:g}"
        yield row["loss"], "variance of the gradient", f"{row['estimator']}{at}", row["variance"]


def remembered(body: Any) -> Iterator[Point]:
    for row in body["rows"]:
        if "peak_bytes" in row:
            yield f"{row['size']} candidates, {row['kind']}", "peak, MB", row["method"], row["peak_bytes"] / 1e6
        if "accuracy" in row:
            group = f"{row['size']} candidates, {row['kind'].removeprefix('accuracy, ')}"
            yield group, "error on the test part, %", row["method"], 100 * (1 - row["accuracy"])


def commanded(body: Any) -> Iterator[Point]:
    for row in body["rows"]:
        if row["curve"]:
            yield row["goals"], "hypervolume, % of the table's front", row["method"], 100 * row["curve"][-1]


def tabled(body: Any) -> Iterator[Point]:
    for row in body["searches"]:
        group = {"power_w": body.get("power", "")}.get(row.get("goal", ""), "")
        yield group, "hypervolume, % of what all 400 command", row["search"], 100 * row["share"][-1]


def drawn(body: Any) -> Iterator[Point]:
    for row in body["rows"]:
        who = "uniform" if not row["strength"] else f"prior of strength {row['strength']:g}"
        yield row["data"], "cells drawn until one is good enough", who, row["draws"]


def predicted(body: Any) -> Iterator[Point]:
    for row in body["rows"]:
        for count in (100, 500, 4000):
            yield f"{count} networks measured", "R² on 27 devices", "surrogate", row[f"surrogate_{count}"]
        yield "4000 networks measured", "R² on 27 devices", "least squares", row["least_squares_4000"]


def played(body: Any) -> Iterator[Point]:
    for key, row in body["rows"].items():
        if "networks" in row:
            for who, network in row["networks"].items():
                kind = "random cell" if who.startswith("random cell") else who
                yield f"{key.rpartition(',')[0]} steps", "return on unseen levels", kind, network["return_unseen"]


def stepped(body: Any) -> Iterator[Point]:
    for who, row in body["time"]["step_cpu"].items():
        yield "one step", "processor time, share of the textbook's", who, row["ratio"]
        if who in body["memory"]:
            share = body["memory"][who]["peak_mb"] / body["memory"]["textbook"]["peak_mb"]
            yield "one step", "peak memory, share of the textbook's", who, share


def flowed(body: Any) -> Iterator[Point]:
    for row in body["flows"]:
        yield "SynFlow of all cells", "cells a second", row["way"], row["cells_per_second"]


def scored(body: Any) -> Iterator[Point]:
    for who, (seconds, *count) in body["seconds"].items():
        if count and count[0]:
            yield "time of a score", "seconds a cell", who, seconds / count[0]


def regretted(body: Any) -> Iterator[Point]:
    """What cells.py found, by space and budget."""
    for row in body["rows"]:
        yield f"{row['space']}, {row['asked']:g} s", "regret, points", row["method"], 100 * row["regret"]


def _variant(row: Any) -> str:
    return f"{row['activation']}, {row['schedule']}, {row['regularizer']}"


_RIVALS = (
    "uniform", "uniform, distilled", "random", "tp-magnitude", "tp-magnitude, distilled", "tp-bn-scale", "tp-taylor",
    "tp-taylor, distilled", "hesso", "hesso, distilled",
)  # fmt: skip
_SENSES = ("LeNet late fusion", "random search, image alone", "random search, image alone, earlier space",
           "random fusion of frozen LeNets (MFAS-like)")  # fmt: skip


def _run(script: str, options: str, name: str = "") -> str:
    return f"python benchmarks/{script}.py {options} --out benchmarks/results/{name or script}.json".replace(
        "  ", " "
    )


def covered(body: Any) -> Iterator[Point]:
    """Of each network what is left at the least."""
    for row in body["networks"]:
        for who, held in (("slim", row), ("Torch-Pruning", row["torch_pruning"])):
            if "parameters_left" in held:
                yield row["name"], "parameters left at the least, %", who, 100 * held["parameters_left"]


def timed(body: Any) -> Iterator[Point]:
    """Of each network the seconds to find what can be removed."""
    for name, row in body["networks"].items():
        for who, held in (("slim", row), ("Torch-Pruning", row["torch_pruning"])):
            if "seconds" in held:
                yield name, "processor time, s", who, held["seconds"]


ENTRIES: dict[str, Entry] = {
    "demo": Entry(
        "What does the demo give: a small CNN as it is, and at half its MACs?",
        _run("demo", "--seeds 3"), "docs/index.md", demonstrated, peers=("uniform width",),
    ),
    "reliability": Entry(
        "What is lost by kills, hostile inputs and changed programs?", _run("reliability", ""),
        "docs/benchmarks/reliability.md", survived,
    ),
    "coverage": Entry(
        "How much of a network can be removed?", _run("coverage", ""), "docs/benchmarks/coverage.md", covered,
        higher=False, peers=("Torch-Pruning",),
    ),
    "slim_time": Entry(
        "How long does it take to find what can be removed?", _run("slim_time", ""),
        "docs/benchmarks/reliability.md", timed, higher=False, peers=("Torch-Pruning",),
    ),
    "slim": Entry(
        "Which channels to keep at equal MACs and equal training, from trained weights (A) and from scratch (B)?",
        _run("slim", "--seeds 3"), "docs/benchmarks/slim.md", slimmed, peers=_RIVALS,
    ),
    "slim_speed": Entry(
        "What is half of the MACs worth in time?", _run("slim_speed", ""), "docs/benchmarks/slim.md", hastened,
        higher=False,
    ),
    "compiled_step": Entry(
        "What does torch.compile make of a training step?", _run("slim_speed", "--compile", "compiled_step"),
        "docs/running.md", compiled, higher=False,
    ),
    "device": Entry(
        "Fewer MACs and int8 together: what do they give in the runtimes that ship?",
        _run("device", "--networks wide-vgg --epochs 10 --tuning 4 --folder runs/device"),
        "docs/benchmarks/device.md", shipped,
        higher=False, peers=("torch-pruning",),
    ),
    "int8_training": Entry(
        "Is an int8 file better if the network was trained with the file's roundings?",
        _run("int8_training", ""), "docs/benchmarks/device.md", rounded_off,
        higher=False, peers=("int8 of float, trained on",),
    ),
    "trained": Entry(
        "Networks of others at half their MACs, without labels: how far do they decide as before?",
        _run("trained", "--seeds 3"), "docs/benchmarks/slim.md",
        of_rows("agreement with the original, %", "agreement", group="network", scale=100.0),
        peers=("uniform", "tp-magnitude"),
    ),
    "slim_front": Entry(
        "Three budgets from one run: what does it lose beside three runs of twice its steps?",
        _run("slim_front", "--images 2000 --epochs 15", "slim_front"), "docs/benchmarks/slim.md", fronts,
        peers=("separate runs",),
    ),
    "transfer": Entry(
        "Is a structure found on much data worth training on few samples of another task?",
        _run("transfer", "--seeds 3"), "docs/benchmarks/transfer.md", transferred,
        peers=("whole network, from scratch", "whole network, fine-tuned", "random mask", "magnitude mask",
               "magnitude mask, its weights", "found on all of the target"),
    ),
    "estimators": Entry(
        "How noisy are the gradient estimators where the exact gradient is known?",
        "python benchmarks/estimators.py --seeds 5 --out benchmarks/results/estimators.json",
        "docs/benchmarks/estimators.md", estimated, higher=False,
        peers=("score function, decaying baseline", "score function, best constant"),
    ),
    "cells": Entry(
        "What do searches lose on 64 networks whose accuracies are known?",
        _run("cells", "--epochs 6 --trainings 2 --seconds 16 --seeds 3 --spaces even"), "docs/benchmarks/cells.md",
        regretted, higher=False, peers=("random", "random, 32 draws", "single path"),
    ),
    "sums": Entry(
        "DNAL on sums of blocks, beside searches that choose one block a layer?",
        _run("sums", "--seeds 3 --steps 800"), "docs/spaces.md", of_rows("accuracy, %", "accuracy", scale=100),
        peers=("random search", "random draw"),
    ),
    "collapse": Entry(
        "Do searches of NAS-Bench-201's supernet end in skip connections?",
        _run("collapse", "--images 6000 --steps 2700 --seeds 5"), "docs/benchmarks/collapse.md",
        of_rows("CIFAR-10 accuracy of the cell by the table, %; by steps", "cifar10", group="steps"),
        peers=("random, 32 draws", "single path"),
    ),
    "control": Entry(
        "Does control without a model reach iLQR on exact equations?", _run("control", "--seeds 3 --rollouts 120"),
        "docs/benchmarks/control.md", of_rows("J", "cost", group="system"), higher=False,
        peers=("iLQR, exact equations", "iLQR, damped", "iLQR, same smoothing", "iLQR, same smoothing, damped"),
    ),
    "discreteness": Entry(
        "What does each part of DARTS-PRIME do to the discretization gap?",
        _run("discreteness", "--data digits --seeds 3"), "docs/benchmarks/discreteness.md",
        parts_of("gap, points", "gap", _variant), higher=False, peers=("softmax, static, none",),
    ),
    "topology": Entry(
        "How often is a planted topology found?", _run("topology", "--seeds 12"), "docs/benchmarks/topology.md",
        of_rows("share of the topologies found", "topology", who="variant", group="seen"),
        peers=("DARTS", "DARTS without none"),
    ),
    "topology_photos": Entry(
        "Are searches of cells and their inputs better than random search, on photographs?",
        _run("topology_photos", "--steps 900 --seeds 5"), "docs/benchmarks/topology.md",
        of_rows("accuracy, %", "accuracy"), peers=("random cell", "random", "random, 32 draws", "single path"),
    ),
    "memory_bound": Entry(
        "Does a search under a bound on memory keep it for any number of candidates?",
        _run("memory_bound", "--sizes 4 16 64 --accuracy-sizes"),
        "docs/benchmarks/memory-bound.md", remembered, higher=False,
        peers=("darts", "darts, random subspace", "random search"),
    ),
    "memory_bound_planted": Entry(
        "Does RADARS find its way where half of the candidates are bad?",
        _run(
            "memory_bound",
            "--sizes --accuracy-sizes --planted --accuracy-data digits --seeds 3 --episodes 26 105 210 "
            "--methods radars 'radars, two rounds in a row' 'radars, ours' 'random search' "
            "'random search, equal time'",
            "memory_bound_planted",
        ),
        "docs/benchmarks/memory-bound.md",
        of_rows("test accuracy, %", "accuracy", group="kind", scale=100),
        peers=("darts, random subspace", "policy only", "random search", "random search, equal time"),
    ),
    "memory_bound_planted_long": Entry(
        "The same in four times the steps?",
        _run(
            "memory_bound",
            "--sizes --accuracy-sizes --planted --accuracy-data digits --seeds 3 --steps 2400 "
            "--methods radars 'radars, ours' 'random search' 'random search, equal time'",
            "memory_bound_planted_long",
        ),
        "docs/benchmarks/memory-bound.md",
        of_rows("test accuracy, %", "accuracy", group="kind", scale=100),
        peers=("random search", "random search, equal time"),
    ),
    "alexnet": Entry(
        "The same on networks that are trained and timed?", _run("alexnet", "--seeds 20"),
        "docs/benchmarks/multiobjective.md", tabled, peers=("random",),
    ),
    "multiobjective": Entry(
        "How much of the front of a table do searches for several goals command?",
        _run("multiobjective", "--seeds 20 --trials 300"), "docs/benchmarks/multiobjective.md", commanded,
        peers=("random", "NSGA-II (Optuna)"),
    ),
    "multimodal": Entry(
        "Encoders and fusion found at random, beside fixed ones?", _run("multimodal", "--seeds 3"),
        "docs/benchmarks/multimodal.md",
        of_rows("test accuracy, %", "test", who="row", group="level", scale=100), peers=_SENSES,
    ),
    "latency_tables": Entry(
        "Is a network's latency a sum of prices?", _run("latency_tables", ""), "docs/benchmarks/latency.md",
        predicted,
        peers=("least squares",),
    ),
    "prior": Entry(
        "How long until a good cell is drawn, with and without a prior?", _run("prior", "--seeds 20"),
        "docs/search.md", drawn, higher=False, peers=("uniform",), median=True,
    ),
    "proxies": Entry(
        "How well do scores of untrained networks rank? (correlations need the table: --show prints them)",
        _run("proxies", "--cells 500"), "docs/benchmarks/proxies.md", scored, higher=False,
    ),
    "training_free": Entry(
        "How fast can all cells be scored?", _run("training_free", "--seeds 10"), "docs/benchmarks/proxies.md",
        flowed,
        peers=("one by one",),
    ),
    "rl": Entry(
        "Encoders of agents: the supernet, the cell found, a random cell, a hand-made one?", _run("rl", "--seeds 2"),
        "docs/benchmarks/rl.md", played, peers=("random cell", "hand-made encoder"),
    ),
    "supernet_step": Entry(
        "A step of DARTS's supernet beside the textbook form?",
        _run("supernet_step", "--batch 16 --size 32 --repeats 3"),
        "docs/benchmarks/supernet-step.md", stepped, higher=False, peers=("textbook", "textbook in channels_last"),
    ),
}  # fmt: skip


def ledger(folder: Path) -> dict[str, Any]:
    """The whole ledger as JSON, from the files of a folder."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.json")):
        body = json.loads(path.read_text(encoding="utf-8"))
        entry = ENTRIES.get(path.stem)
        found[path.stem] = _undescribed(body) if entry is None else _described(entry, body)
    return found


def _described(entry: Entry, body: Any) -> dict[str, Any]:
    gathered: dict[tuple[str, str, str], list[float]] = {}
    for group, figure, who, value in entry.points(body):
        gathered.setdefault((group, figure, who), []).append(value)
    figures = [
        {"group": group, "figure": figure, "who": who, "peer": who in entry.peers, **_summary(values, entry.median)}
        for (group, figure, who), values in gathered.items()
    ]
    return {
        "asked": entry.asked, "command": entry.command, "page": entry.page, **_made(body),
        "better": "higher" if entry.higher else "lower", "figures": figures, "lost": _lost(figures, entry.higher),
    }  # fmt: skip


def _undescribed(body: Any) -> dict[str, Any]:
    rows = body.get("rows", []) if isinstance(body, dict) else body
    text = f"{len(rows)} rows; benchmarks/ledger.py has no description of this file yet"
    return {"asked": text, "command": "", "page": "", **_made(body), "better": "", "figures": [], "lost": []}


def _made(body: Any) -> dict[str, Any]:
    """Machine, versions and date, as the file has them."""
    held = body if isinstance(body, dict) else {}
    machine = held.get("machine", {})
    versions = {name: held[name] for name in ("torch", "torch_pruning") if name in held}
    return {
        "machine": machine.get("words"),
        "versions": {**versions, **machine.get("versions", {})},
        "date": machine.get("date"),
    }


def is_complete(entry: Mapping[str, Any]) -> bool:
    """Whether a file says on which machine, with which versions and when it was made."""
    return bool(entry["machine"] and entry["versions"] and entry["date"])


def _summary(values: list[float], median: bool) -> dict[str, Any]:
    middle = statistics.median(values) if median else statistics.fmean(values)
    return {
        "value": middle,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "runs": len(values),
        "statistic": "median" if median else "mean",
    }


def _lost(figures: list[dict[str, Any]], higher: bool) -> list[str]:
    """Of ours what is behind the best peer of its group."""
    lines = []
    for group, figure in dict.fromkeys((one["group"], one["figure"]) for one in figures):
        same = [one for one in figures if (one["group"], one["figure"]) == (group, figure)]
        peers = [one for one in same if one["peer"]]
        if not peers:
            continue
        best = (max if higher else min)(peers, key=lambda one: one["value"])
        sign = 1 if higher else -1
        behind = [one["who"] for one in same if not one["peer"] and sign * one["value"] < sign * best["value"]]
        where = f"{group}, {figure}" if group else figure
        if behind:
            lines.append(f"{where}: behind {best['who']} ({_number(best['value'])}): {'; '.join(behind)}")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def page(found: Mapping[str, Any]) -> str:
    """The ledger as Markdown."""
    lines = [
        "# Results",
        "",
        "Made by `benchmarks/ledger.py` of `benchmarks/results/*.json`; not written by hand. ± is the standard "
        "deviation over runs, of which the number is in brackets. What each figure means, at which scale and with "
        "which caveats, is on the page that each benchmark names. *Lost* lists what is behind the best peer of the "
        "same run on the mean, however small the difference and however wide the spread.",
        "",
    ]
    for name, entry in found.items():
        if not is_complete(entry):
            continue
        versions = ", ".join(f"{package} {version}" for package, version in entry["versions"].items())
        lines += [f"## {name}", "", f"{entry['asked']}", ""]
        lines += [f"    {entry['command']}", ""] if entry["command"] else []
        lines += [
            f"Machine: {entry['machine']}. Versions: {versions}. Date: {entry['date']}."
            + (
                f" Page: [{entry['page']}](../{entry['page']}). Better is {entry['better']}." if entry["page"] else ""
            ),
            "",
        ]
        if entry["figures"]:
            lines += ["| | figure | who | value |", "|---|---|---|---|"]
            lines += [_row(one) for one in entry["figures"]]
            lines += [""]
            lines += ["Lost: nothing.", ""] if _judged(entry) and not entry["lost"] else []
            lines += ["Lost:", "", *(f"- {text}" for text in entry["lost"]), ""] if entry["lost"] else []
    lines += _incomplete(found)
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip("\n") + "\n"


def _incomplete(found: Mapping[str, Any]) -> list[str]:
    """The files that have no row, and what would give them one."""
    rows = [
        f"| {name} | {', '.join(key for key in ('machine', 'versions', 'date') if not entry[key])} | "
        f"{entry['page']} | `{entry['command']}` |"
        for name, entry in found.items()
        if not is_complete(entry)
    ]
    if not rows:
        return []
    return [
        "## Without a row",
        "",
        "These files of results were written before benchmarks recorded machine, versions and date. Their figures "
        "are on their pages, of a machine and a day that are not known; the command measures them again.",
        "",
        "| file | not recorded | page | command |", "|---|---|---|---|", *rows, "",
    ]  # fmt: skip


def _judged(entry: Mapping[str, Any]) -> bool:
    return any(one["peer"] for one in entry["figures"])


def _row(one: Mapping[str, Any]) -> str:
    spread = "" if one["spread"] is None else f" ± {_number(one['spread'])}"
    who = f"*{one['who']}* (peer)" if one["peer"] else one["who"]
    return f"| {one['group']} | {one['figure']} | {who} | {_number(one['value'])}{spread} ({one['runs']}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="the folder that is read")
    parser.add_argument("--into", type=Path, default=HERE, help="the folder that is written into")
    parser.add_argument("--stamp", type=Path, help="add this machine and its versions to a file of results first")
    chosen = parser.parse_args()
    if chosen.stamp:
        body = json.loads(chosen.stamp.read_text(encoding="utf-8"))
        save_results(chosen.stamp, {**body, "machine": {}})
    found = ledger(chosen.results)
    told = {
        name: entry if is_complete(entry) else {**entry, "figures": [], "lost": []} for name, entry in found.items()
    }
    (chosen.into / "RESULTS.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (chosen.into / "RESULTS.md").write_text(page(found), encoding="utf-8")
    print(f"{len(found)} benchmarks in {chosen.into / 'RESULTS.md'}")


if __name__ == "__main__":
    main()
