"""A result in a notebook, and what results, architectures, costs and limits are called in a line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_runs import EVIL, ended, front, rows, slim
from test_page import read
from torch import nn

import archgrad as ag
from archgrad.costs.table import CostTable
from archgrad.costs.table_column import TableColumn
from archgrad.errors import ConfigError, MissingExtra
from archgrad.report import NotebookDisplay, notebook, page
from archgrad.report.charts import svg


def test_the_summary_shows_figures_limit_and_cell_without_script() -> None:
    html = notebook.summary(ended(evil=EVIL))
    reader = read(html)
    words = " ".join(" ".join(reader.words).split())
    for shown in ("A search</script>", "90.00 %", "limit on macs", "|conv~0|", "an alarm"):
        assert shown in words, shown
    assert not {"script", "img", "html", "button"} & set(reader.tags) and reader.tags.count("svg") == 1
    assert "://" not in html and "var(--ink)" in html and ".archgrad-found .g-node" in html


def test_a_damaged_or_empty_record_is_told() -> None:
    assert "damaged at after" in notebook.summary({"after": 3})
    assert "archgrad run" in notebook.summary({})
    assert "edge" in notebook.summary({}, picks=[("edge", "3", "")])


def test_two_results_of_one_notebook_have_ids_of_their_own() -> None:
    both = notebook.summary(ended("one")) + notebook.summary(ended("two"))
    ids = [part.split('"')[0] for part in both.split(' id="')[1:]]
    assert ids and len(ids) == len(set(ids))


def test_a_derived_network_draws_itself() -> None:
    space = ag.relax(ag.nasbench201_cells(channels=4, cells=1), ag.softmax)
    found = ag.derive(space)
    assert repr(found) == f"Found(not scored, params={found.costs['params']:,.6g}, 6 choices, GraphModule)"
    assert "1.0" in found._repr_html_()
    assert "'1.0', 5 of 5 alive" in repr(space)


def test_architectures_in_a_line() -> None:
    short = ag.Architecture({"a": 1, "b": (0, 2)})
    assert repr(short) == "Architecture({'a': 1, 'b': (0, 2)})"
    long = ag.Architecture({f"layer{k}": tuple(range(64)) for k in range(30)})
    assert repr(long).startswith("Architecture(30 choices: layer0=(0, 1, 2") and len(repr(long)) < 200


def test_costs_and_limits_in_a_line() -> None:
    x = torch.ones(2, 1, 8, 8)
    cost = ag.macs(x)
    assert repr(cost) == "macs(example [2, 1, 8, 8])" and repr(ag.params()) == "params()"
    assert repr(ag.latency({"a": x, "b": x})) == "latency(cpu, eager, example [2, 1, 8, 8], [2, 1, 8, 8])"
    assert repr(ag.peak_memory((x, torch.zeros(2)))) == "peak_memory(batch=2, example [2, 1, 8, 8], [2])"
    assert repr(ag.energy(x, source="estimated")) == "estimated_energy(example [2, 1, 8, 8])"
    assert repr(cost.at_most(fraction=0.5)) == "Limit(macs at most 50 %)"
    assert repr(cost.at_most(2_000_000)) == "Limit(macs at most 2,000,000 MACs)"
    assert repr(ag.latency(x).at_most(ms=4.0)) == "Limit(latency at most 4 ms)"


@pytest.mark.parametrize("size", [3, 3000])
def test_tables_do_not_print_their_prices(size: int) -> None:
    table = CostTable("latency", "ms", 0.5, {"a": (1.0,) * size}, {"a": ("x",) * size})
    assert repr(table).startswith("CostTable(name='latency', unit='ms', base=0.5") and len(repr(table)) < 200


def test_a_column_does_not_print_its_table() -> None:
    class Rows:
        def cost(self, cell: object, column: str | None = None) -> float:
            return 1.0

        def columns(self) -> tuple[str, ...]:
            return ("lat_ms_x",)

    assert "Rows" not in repr(TableColumn(Rows(), "lat_ms_x"))
    assert isinstance(ag.derive(ag.relax(ag.nasbench201_cells(channels=4, cells=1), ag.softmax)).network, nn.Module)


def test_every_picture_of_the_report_is_a_figure() -> None:
    history = [*rows(0, 12), {"phase": None, "step": None, "derived_loss": 1.0}]
    found = ag.Found(ag.Architecture({}), nn.Linear(2, 2), history=history, record={**slim(), "surrogate": SURROGATE})
    figures = found.plot()
    assert {"Accuracy against MACs", "What is left of the layers", "Loss", "Surrogate against measurement"} <= set(
        figures
    )
    assert "Weights of edge 0" in figures
    (axes,) = figures["Loss"].axes
    line = axes.get_lines()[0]
    assert list(line.get_ydata()) == [row["loss"] for row in history[:-1]]
    assert list(line.get_xdata()) == list(range(12)) and line.get_color() == svg.LIGHT["line1"]
    html = page.page(found.record, history)
    assert all(name in html for name in figures if not name.startswith("Weights of"))
    for figure in figures.values():
        figure.canvas.draw()
    assert ag.Found(ag.Architecture({}), nn.Linear(2, 2)).plot() == {}
    several = ag.Found(ag.Architecture({}), nn.Linear(2, 2), record={"fronts": [front(), front()]})
    assert list(several.plot()) == ["Score against macs", "Score against macs (2)"]


SURROGATE = {"predicted": [1.0, 2.0], "measured": [1.0, 2.1], "unit": "ms"}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A shell of IPython that keeps what is displayed in it."""
    interactive = pytest.importorskip("IPython.core.interactiveshell", reason="IPython comes with the extra notebook")
    from IPython.core.displaypub import CapturingDisplayPublisher

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    made = interactive.InteractiveShell.instance()
    made.display_pub = CapturingDisplayPublisher(shell=made)
    yield made
    made.history_manager.end_session()
    interactive.InteractiveShell.clear_instance()


def test_a_run_is_followed_in_one_place_of_a_notebook(shell: Any) -> None:
    task = ag.Classification.load("digits", batch_size=256)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    shown = NotebookDisplay(seconds=0.0)
    ag.fit(net, task, ag.Run(epochs=3, output=ag.Output(on_log=shown)))
    first, *later = shell.display_pub.outputs
    assert later and not first.get("update") and all(output["update"] for output in later)
    assert {output["transient"]["display_id"] for output in later} == {first["transient"]["display_id"]}
    words = " ".join(read(later[-1]["data"]["text/html"]).words)
    assert "fit" in words and "step" in words and "loss" in words
    assert later[-1]["data"]["text/html"].count("<svg") >= 2
    assert "script" not in read(later[-1]["data"]["text/html"]).tags


def test_a_display_outside_of_a_notebook_says_what_to_do() -> None:
    pytest.importorskip("IPython", reason="IPython comes with the extra notebook")
    with pytest.raises(ConfigError, match="archgrad board"):
        NotebookDisplay()


def test_without_ipython_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", None)
    with pytest.raises(MissingExtra, match=r"archgrad\[notebook\]"):
        NotebookDisplay()
