"""Graphs: what is read, that nothing lies upon anything else, that hostile words stay words, what damage says."""

from __future__ import annotations

import itertools
import random
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from archgrad.errors import RunError
from archgrad.report.charts import svg
from archgrad.report.graphs import cells as graphs, layered
from archgrad.report.graphs.cells import draw_cell, file_names

Box = tuple[float, float, float, float]


def cell() -> dict[str, Any]:
    """A cell of the DARTS kind: two inputs, four nodes of two operations, one output."""
    nodes = [{"id": "a", "label": "c_{k-2}"}, {"id": "b", "label": "c_{k-1}"}]
    nodes += [{"id": str(k)} for k in range(4)] + [{"id": "out", "label": "c_{k}"}]
    chosen = [("a", "b"), ("a", "b"), ("b", "a"), ("a", "0")]
    edges = [
        {"source": one, "target": str(k), "label": f"sep_conv_{k}{one}"}
        for k, two in enumerate(chosen)
        for one in two
    ]
    return {
        "name": "normal",
        "nodes": nodes,
        "edges": [*edges, *({"source": str(k), "target": "out"} for k in range(4))],
    }


def tangle(nodes: int, edges: int, seed: int) -> dict[str, Any]:
    draws = random.Random(seed)
    ends = [sorted(draws.sample(range(nodes), 2)) for _ in range(edges)]
    labels = ["", "conv", "a_long_operation_7x7"]
    return {
        "nodes": [{"id": k} for k in range(nodes)],
        "edges": [{"source": a, "target": b, "label": draws.choice(labels)} for a, b in ends],
    }


def chain(length: int) -> dict[str, Any]:
    nodes = [
        {"id": k, "label": f"block {k}", "details": {"kernel": 3 + 2 * (k % 3), "expansion": 6}}
        for k in range(length)
    ]
    nodes[2]["details"] = {"kernel": None}
    return {"name": "b", "nodes": nodes, "edges": [{"source": k, "target": k + 1} for k in range(length - 1)]}


def texts(drawn: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(drawn).iter("text")]


def boxes(drawn: str) -> list[Box]:
    found = []
    for one in ElementTree.fromstring(drawn).iter("rect"):
        x, y, width, height = (float(one.attrib[key]) for key in ("x", "y", "width", "height"))
        found.append((x, y, x + width, y + height))
    return found


def lines(drawn: str) -> list[list[tuple[float, float]]]:
    """Points along each edge, its two ends left out."""
    found = []
    for path in ElementTree.fromstring(drawn).iter("path"):
        if not path.attrib["class"].endswith("edge"):
            continue
        points: list[tuple[float, float]] = []
        for command, rest in re.findall(r"([MCH])([^MCH]*)", path.attrib["d"]):
            figures = [float(one) for one in re.split("[ ,]", rest)]
            if command == "M":
                points.append((figures[0], figures[1]))
                continue
            start = points[-1]
            bend = [start, *zip(figures[::2], figures[1::2], strict=True)] if command == "C" else None
            for t in (k / 16 for k in range(1, 17)):
                if bend is None:
                    points.append((start[0] + t * (figures[0] - start[0]), start[1]))
                    continue
                shares = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
                x, y = (sum(s * p[k] for s, p in zip(shares, bend, strict=True)) for k in (0, 1))
                points.append((x, y))
        found.append(points[1:-1])
    return found


def overlaps(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def hit(drawn: str) -> int:
    """How many times an edge runs under a box: once under its own operation, and under nothing else."""
    return sum(
        any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in line)
        for line in lines(drawn)
        for box in boxes(drawn)
    )


def check_clear(given: dict[str, Any]) -> None:
    drawn = draw_cell(given)
    whole = [float(one) for one in ElementTree.fromstring(drawn).attrib["viewBox"].split()]
    found = boxes(drawn)
    labelled = sum(bool(edge.get("label")) for edge in given["edges"])
    assert len(found) == len(given["nodes"]) + labelled
    assert not any(overlaps(*pair) for pair in itertools.combinations(found, 2))
    assert all(box[0] >= 0 and box[1] >= 0 and box[2] <= whole[2] and box[3] <= whole[3] for box in found)
    assert hit(drawn) == labelled
    assert all(0 < y < whole[3] for line in lines(drawn) for _, y in line)


def test_a_cell_reads_from_left_to_right() -> None:
    given = cell()
    check_clear(given)
    drawn = draw_cell(given)
    assert sorted(texts(drawn)) == sorted(
        [*(edge["label"] for edge in given["edges"][:8]), "c_{k-2}", "c_{k-1}", "c_{k}", "0", "1", "2", "3"]
    )
    middle = {one.text: float(one.attrib["x"]) for one in ElementTree.fromstring(drawn).iter("text")}
    assert middle["c_{k-2}"] == middle["c_{k-1}"] == min(middle.values())
    assert middle["c_{k}"] == max(middle.values())
    assert middle["0"] < middle["sep_conv_30"] < middle["3"]
    assert drawn.count("g-faint-edge") == 4 and drawn.count('"g-edge"') == 8
    assert draw_cell(given) == drawn


@pytest.mark.parametrize("seed", range(8))
def test_nothing_lies_upon_anything_else(seed: int) -> None:
    check_clear(tangle(4 + seed, 6 + 3 * seed, seed))


def test_the_measure_of_overlap_notices_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given = tangle(8, 20, 1)
    monkeypatch.setattr(
        layered, "_straightened", lambda columns, routes: [setattr(p, "y", 0) for c in columns for p in c]
    )
    with pytest.raises(AssertionError):
        check_clear(given)


def test_edges_between_the_same_nodes_are_all_visible() -> None:
    edges = [{"source": 0, "target": 1, "label": "conv"}, *({"source": 0, "target": 1} for _ in range(3))]
    given = {"nodes": [{"id": 0}, {"id": 1}], "edges": edges}
    check_clear(given)
    middles = sorted(line[len(line) // 2][1] for line in lines(draw_cell(given)))
    assert len(middles) == 4 and all(b - a >= 12 for a, b in itertools.pairwise(middles))


def test_a_long_chain_is_a_table_of_blocks() -> None:
    short, long = draw_cell(chain(8)), draw_cell(chain(21))
    assert "g-edge" in short and "g-edge" not in long
    words = texts(long)
    assert words[:1] == ["block"] and words.count("6") == 20 and "kernel" in words and "block 20" in words
    bars = boxes(long)
    assert len(bars) == 40
    assert {round(box[2] - box[0], 1) for box in bars} == {round(110 * k / 7, 1) for k in (3, 5, 7)} | {110.0}
    # A second way from the first block to the last is no chain, and is drawn.
    given = chain(9)
    given["edges"].append({"source": 0, "target": 8})
    assert "g-edge" in draw_cell(given)


def test_what_is_too_large_to_draw_is_listed() -> None:
    drawn = draw_cell(tangle(41, 50, 0))
    assert "g-edge" not in drawn and len(texts(drawn)) == 3 * 51
    assert "and 100 more" in texts(draw_cell(tangle(10, 500, 0)))


@pytest.mark.parametrize(
    "word", ["</text><script>alert(1)</script>", "a & b < c > 'd' \"e\"", "\x00\x1b[31m\ud800", "長い" * 40]
)
def test_hostile_words_stay_words(word: str) -> None:
    given = {
        "name": word,
        "nodes": [{"id": word}, {"id": "y", "label": word, "details": {word: word}}],
        "edges": [{"source": word, "target": "y", "label": word}],
    }
    long = {**chain(9), "nodes": [{"id": k, "label": word, "details": {word: 1}} for k in range(9)]}
    for one in (given, long):
        for drawn in (draw_cell(one), svg.standalone_svg(draw_cell(one))):
            tree = ElementTree.fromstring(drawn.encode("utf-8"))
            assert {tag.tag.rpartition("}")[2] for tag in tree.iter()} <= {
                "svg",
                "style",
                "rect",
                "path",
                "text",
                "title",
            }
    check_clear({**given, "edges": [*given["edges"], *given["edges"]]})


def test_long_words_are_cut_and_whole_in_the_tooltip() -> None:
    word = "conv" * 20
    drawn = draw_cell({"nodes": [{"id": word}], "edges": []})
    assert f"<title>{word}</title>" in drawn and f">{word[:31]}\u2026</text>" not in drawn.replace("</title>", "\n")
    assert f"{word[:31]}\u2026</text>" in drawn


def test_alone_it_brings_its_colors_and_a_ground() -> None:
    drawn = svg.standalone_svg(draw_cell(cell()))
    assert "var(" not in drawn and "prefers-color-scheme: dark" in drawn and svg.DARK["ink"] in drawn
    tree = ElementTree.fromstring(drawn)
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    assert tree[1].attrib["class"] == "g-paper"
    assert set(svg.LIGHT) == set(svg.DARK)


def test_small_and_odd_graphs() -> None:
    assert texts(draw_cell({})) == texts(draw_cell({"nodes": [], "edges": None})) == ["no nodes"]
    check_clear({"nodes": [{"id": 1}], "edges": []})
    check_clear(
        {"nodes": [{"id": "in"}, {"id": "lone"}, {"id": "out"}], "edges": [{"source": "in", "target": "out"}]}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": 3}, r"g\.nodes: given 3, allowed is a list"),
        ({"nodes": [3]}, r"g\.nodes\[0\]: given 3"),
        ({"nodes": [{}]}, r"g\.nodes\[0\]\.id: given None, allowed is a string or an integer"),
        ({"nodes": [{"id": 1}, {"id": "1"}]}, r"nodes\[1\]\.id: given 1, .* no other node"),
        ({"nodes": [{"id": "a", "label": ["x"]}]}, r"nodes\[0\]\.label"),
        ({"nodes": [{"id": "a", "details": {"kernel": [3]}}]}, r"nodes\[0\]\.details\.kernel: given \[3\]"),
        ({"edges": [{"source": "a", "target": "z"}]}, r"edges\[0\]\.target: given z, allowed is the id of a node"),
        ({"edges": [{"source": "a"}]}, r"edges\[0\]\.target: given None"),
        ({"edges": [{"source": "0", "target": "0"}]}, "the cycle 0"),
        ({"edges": [{"source": "0", "target": "1"}, {"source": "1", "target": "0"}]}, "the cycle 0 -> 1"),
        ({"name": 3}, r"g\.name: given 3"),
    ],
)
def test_damage_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        draw_cell({**cell(), **change}, part="g")
    assert "run again" in str(caught.value)
    with pytest.raises(RunError, match="an object with name, nodes and edges"):
        draw_cell([], part="g")


def test_files_are_named_after_their_graphs_and_stay_in_the_folder() -> None:
    assert file_names([]) == []
    assert file_names([{"name": "../../etc"}]) == ["cell.svg"]
    assert file_names([{"name": "normal"}, {"name": "reduce"}]) == ["cell_normal.svg", "cell_reduce.svg"]
    odd = [{"name": "../../a b"}, {"name": "A_b"}, {}, {"name": None}, {"name": "/"}, {"name": "x" * 300}]
    names = file_names(odd)
    assert names[:4] == ["cell_a_b.svg", "cell_A_b_2.svg", "cell_3.svg", "cell_4.svg"]
    assert len(set(names)) == 6 and all(re.fullmatch(r"cell_[\w-]{1,43}\.svg", name) for name in names)


def test_columns_hold_whole_generations() -> None:
    graph = graphs.read(cell())
    assert [list(one) for one in graph.generations] == [["a", "b"], ["0", "1", "2"], ["3"], ["out"]]
    assert not graphs.is_chain(graph) and graphs.is_chain(graphs.read(chain(3)))
