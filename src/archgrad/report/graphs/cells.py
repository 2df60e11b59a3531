"""A found cell or backbone as SVG, from plain JSON.

A graph is `{"name", "nodes": [{"id", "label", "details"}], "edges": [{"source", "target", "label"}]}`, directed
and without cycles. `label` may be missing, as may `details`, `{name: number or text}` of a node that is a block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from archgrad.errors import RunError
from archgrad.report.charts import svg
from archgrad.report.graphs import layered, tables
from archgrad.report.graphs.graph import Edge, Graph, Node

# What is longer is read more easily from top to bottom; what is larger is a tangle, whatever its layout.
LONGEST_DRAWN_CHAIN = 8
MOST_DRAWN_NODES, MOST_DRAWN_EDGES = 40, 100
_MOST_TOLD = 40


def draw_cell(record: object, *, part: str = "graph") -> str:
    """A graph's JSON as SVG text, for the page; `archgrad.report.charts.svg.standalone_svg` makes a file of it.

    From left to right, each operation on its edge in front of the node that it leads to; a chain of more than 8
    nodes as a table of its blocks; more than 40 nodes or 100 edges as a table of edges.

    Raises:
        RunError: `given` is no such graph; the message names the place in `part`.
    """
    graph = read(record, part=part)
    if not graph.nodes:
        return svg.picture(svg.words("no nodes", 8, 16, kind="g-soft"), width=120, height=32)
    if is_chain(graph) and len(graph.nodes) > LONGEST_DRAWN_CHAIN:
        return tables.chain(graph)
    if len(graph.nodes) > MOST_DRAWN_NODES or len(graph.edges) > MOST_DRAWN_EDGES:
        return tables.edges(graph)
    return layered.drawn(graph)


def read(record: object, *, part: str = "graph") -> Graph:
    """The graph that the JSON describes. Raises RunError, naming the place, where it describes none."""
    if not isinstance(record, Mapping):
        _damaged(part, record, "an object with name, nodes and edges")
    name = record.get("name") or ""
    if not isinstance(name, str):
        _damaged(f"{part}.name", name, "a string")
    nodes: dict[str, Node] = {}
    for place, entry in _objects(record, "nodes", part):
        key = _key(entry.get("id"), f"{place}.id")
        if key in nodes:
            _damaged(f"{place}.id", entry["id"], "an id that no other node has")
        nodes[key] = Node(_label(entry, place, default=key), _details(entry.get("details") or {}, f"{place}.details"))
    edges = []
    for place, entry in _objects(record, "edges", part):
        ends = [_key(entry.get(end), f"{place}.{end}") for end in ("source", "target")]
        for end, key in zip(("source", "target"), ends, strict=True):
            if key not in nodes:
                _damaged(f"{place}.{end}", key, "the id of a node of the graph")
        edges.append(Edge(ends[0], ends[1], _label(entry, place, default="")))
    return Graph(name, nodes, edges, _generations(nodes, edges, part))


def in_words(record: Mapping[str, Any]) -> str:
    """The edges of a graph that `draw_cell` accepts, in words."""
    graph = read(record)
    label = {key: node.label for key, node in graph.nodes.items()}
    sentences = [
        f"{label[edge.source]} to {label[edge.target]}{f' by {edge.label}' if edge.label else ''}"
        for edge in graph.edges[:_MOST_TOLD]
    ]
    more = f", and {len(graph.edges) - len(sentences)} more" if len(graph.edges) > len(sentences) else ""
    return f"{len(graph.nodes)} nodes, {len(graph.edges)} edges: {', '.join(sentences)}{more}." if sentences else ""


def is_chain(graph: Graph) -> bool:
    """Whether the nodes follow one another in one row."""
    single = all(len(generation) == 1 for generation in graph.generations)
    return single and len(graph.edges) == len(graph.nodes) - 1


def file_names(graphs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The file of each graph's picture: cell.svg where there is one, else cell_<name>.svg, all different."""
    if len(graphs) == 1:
        return ["cell.svg"]
    names: list[str] = []
    for place, graph in enumerate(graphs, start=1):
        # A name from outside must not lead out of the folder.
        name = re.sub(r"[^A-Za-z0-9-]+", "_", str(graph.get("name") or "")).strip("_")[:40] or str(place)
        file = f"cell_{name}.svg"
        names.append(file if file.lower() not in map(str.lower, names) else f"cell_{name}_{place}.svg")
    return names


def _generations(nodes: Mapping[str, Node], edges: Sequence[Edge], part: str) -> list[list[str]]:
    import networkx

    graph = networkx.MultiDiGraph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from((edge.source, edge.target) for edge in edges)
    try:
        return [sorted(one, key=list(nodes).index) for one in networkx.topological_generations(graph)]
    except networkx.NetworkXUnfeasible:
        cycle = " -> ".join(str(step[0]) for step in networkx.find_cycle(graph))
        _damaged(f"{part}.edges", f"the cycle {cycle}", "edges that lead back to no earlier node")


def _objects(record: Mapping[str, Any], key: str, part: str) -> list[tuple[str, Mapping[str, Any]]]:
    listed = record.get(key) or []
    if not isinstance(listed, list):
        _damaged(f"{part}.{key}", listed, "a list of objects")
    for place, one in enumerate(listed):
        if not isinstance(one, Mapping):
            _damaged(f"{part}.{key}[{place}]", one, "an object")
    return [(f"{part}.{key}[{place}]", one) for place, one in enumerate(listed)]


def _key(key: object, place: str) -> str:
    if isinstance(key, bool) or not isinstance(key, str | int):
        _damaged(place, key, "a string or an integer")
    return str(key)


def _label(entry: Mapping[str, Any], place: str, *, default: str) -> str:
    label = entry.get("label")
    if label is None:
        return default
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        _damaged(f"{place}.label", label, "a string")
    return str(label)


def _details(details: object, place: str) -> Mapping[str, float | str]:
    if not isinstance(details, Mapping):
        _damaged(place, details, "an object of numbers and strings")
    for name, value in details.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            _damaged(f"{place}.{name}", value, "a number or a string")
    return {str(name): value for name, value in details.items() if value is not None}


def _damaged(place: str, value: object, allowed: str) -> NoReturn:
    shown = value if isinstance(value, str) else repr(value)
    raise RunError(
        f"the record is damaged at {place}: given {svg.shortened(shown, 80)}, allowed is {allowed}; run again to "
        f"write it anew"
    )
