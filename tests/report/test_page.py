"""The page: what it shows, that it fetches nothing, and that names from outside stay text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import archgrad.report.page
from archgrad import files
from archgrad.errors import RunError
from archgrad.report.charts import svg
from archgrad.report.page import page, write

SCRIPT = (Path(archgrad.report.page.__file__).parent / "page.js").read_text(encoding="utf-8")
VOID = {"meta", "br", "link", "img", "hr"}


class Reader(HTMLParser):
    """Reads the page's text, and fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.spots: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self.spots += [value or "" for name, value in attrs if name == "data-spots"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def fetches_nothing(html: str, reader: Reader) -> None:
    """One script, ours, which its policy names; no address but places in the page and an empty icon."""
    assert reader.tags.count("script") == 1 and reader.scripts == [SCRIPT]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in html.replace("&#39;", "'") and "default-src" in html
    assert all(load.startswith("#") or load == "data:," for load in reader.loads)
    assert "://" not in html and "url(" not in html.replace("url(#", "") and "@import" not in html


def record() -> dict[str, Any]:
    figures = {"accuracy": 0.98, "params": 120_000, "macs": 45_600, "size_bytes": 4_940}
    timing = {"median_ms": 3.2, "low_ms": 3.0, "high_ms": 3.9}
    return {
        "method": "dnal",
        "title": "Net <script>alert(1)</script> & co",
        "settings": {"limit": {"macs": 0.5}, "gate": "<img src=x>"},
        "run": {"seed": 7, "epochs": 60},
        "versions": {"torch": "2.13"},
        "device": "cpu",
        "before": {**figures, "latency_ms": {"eager": timing}},
        "after": {**figures, "accuracy": 0.971, "macs": 20_000, "latency_ms": {"onnx": timing}},
        "limit": {"cost": "macs", "unit": "MACs", "bound": 22_800, "reached": 20_000},
        "layers": [{"name": f"block{k}.<script>", "before": 64, "after": 64 - k // 4} for k in range(130)],
        "frozen": [{"name": "head", "reason": "its width is the <classes>"}],
        "notes": ["<script>note</script>"],
        "data": {"train": 1000, "test": 300},
        "baselines": [{"name": "uniform width", "accuracy": 0.96, "macs": 21_000}],
        "load": "net = torch.export.load('small.pt2').module()  # a < b",
    }


def search() -> dict[str, Any]:
    nodes = [{"id": "x"}, {"id": "y", "label": "</svg><script>"}]
    return {
        "title": "Cell",
        "after": {"accuracy": 0.9},
        "graphs": [
            {"name": "normal", "nodes": nodes, "edges": [{"source": "x", "target": "y", "label": "conv <b>"}]},
            {"name": "<i>reduce", "nodes": nodes, "edges": []},
        ],
        "architecture_text": "conv | <none>",
        "picks": [{"choice": "edge <0>", "pick": "conv", "weight": 0.25}],
        "surrogate": {"predicted": [1.0, 2.0], "measured": [1.0, 2.2]},
        "alarms": ["<script>collapse</script>"],
    }


def epochs(choices: int) -> list[dict[str, Any]]:
    names = [f"weight/cell/{k} <i>/{candidate}" for k in range(choices) for candidate in ("conv", "skip <b>")]
    return [{"phase": "search", "step": 10 * e, **dict.fromkeys(names, 0.1 * e)} for e in range(5)]


def history() -> list[dict[str, Any]]:
    first = [{"phase": "weights", "step": k, "loss": 1 / (k + 1)} for k in range(10)]
    return first + [{"phase": "gates", "step": k, "expected_macs": 4e4 - 2e3 * k} for k in range(10, 20)]


def test_the_page_shows_the_record_and_fetches_nothing() -> None:
    html = page(record(), history())
    reader = read(html)
    words = " ".join(" ".join(reader.words).split())
    for shown in (
        *("98.00 %", "97.10 %", "-0.90 points", "x 0.439", "3.20 ms (3.00 to 3.90)"),
        "limit on MACs: at most 22,800; reached 20,000 (kept)",
        *("uniform width", "96.00 %", "block129.<script>", "32 of 64", "its width is the <classes>"),
        *("macs 0.5", "<img src=x>", "2.13", "1,000", "# a < b", "Net <script>alert(1)</script> & co"),
        *("Loss", "Expected cost against the limit"),
    ):
        assert shown in words, shown
    assert "img" not in reader.tags
    fetches_nothing(html, reader)
    assert reader.tags.count("svg") == 3
    assert html.count('<span class="name"') == 130


def test_the_reader_notices_what_it_is_there_to_notice() -> None:
    assert "script" in read("<p><script>x</script></p>").tags
    assert read('<img src="http://x">').loads == ["http://x"]
    with pytest.raises(AssertionError):
        read("<p><b></p>")


def test_any_part_may_be_missing() -> None:
    whole = record()
    for part in whole:
        reader = read(page({key: value for key, value in whole.items() if key != part}))
        assert reader.tags.count("h1") == 1
    assert "Before and after" not in page({"after": whole["after"]}) and "97.10 %" in page({"after": whole["after"]})
    assert read(page({})).tags.count("table") == 0
    assert read(page({"layers": [{"name": "a"}, {}], "frozen": [{}], "baselines": [{}]})).tags


def test_the_page_of_a_search() -> None:
    html = page(search(), epochs(8))
    reader = read(html)
    words = " ".join(" ".join(reader.words).split())
    for shown in (
        *(
            "found",
            "90.00 %",
            "normal",
            "<i>reduce",
            "</svg><script>",
            "conv <b>",
            "conv | <none>",
            "edge <0>",
            "0.25",
        ),
        *("Alarms", "<script>collapse</script>", "Surrogate against measurement", "2 networks"),
        *("cell/7 <i>", "skip <b>", "highest at the end: conv 0.40", "2 more choices"),
    ):
        assert shown in words, shown
    assert not {"b", "i"} & set(reader.tags)
    fetches_nothing(html, reader)
    # Two graphs, the surrogate, two samples in the legend, and a picture a choice.
    assert reader.tags.count("svg") == 2 + 1 + 2 + 8
    assert "before" not in words and "Channels kept" not in words
    for part in search():
        read(page({key: value for key, value in search().items() if key != part}, epochs(1)))


def test_every_color_that_is_used_is_defined() -> None:
    html = page({**search(), **record()}, [*history(), *epochs(8)])
    used = set(re.findall(r"var\((--\w+)\)", html))
    assert "--line1" in used and all(html.count(f"{name}: #") == 3 for name in used)


@pytest.mark.parametrize("colors", [svg.LIGHT, svg.DARK], ids=["light", "dark"])
def test_words_and_lines_stand_out_from_their_ground(colors: dict[str, str]) -> None:
    """Level AA: 4.5 to 1 for text, 3 to 1 for what is drawn and for the edges of buttons."""

    def light(color: str) -> float:
        parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((light(colors[one]), light(colors[other])))
        return (high + 0.05) / (low + 0.05)

    for ground in ("paper", "panel"):
        assert min(contrast(name, ground) for name in ("ink", "soft", "link")) >= 4.5
    drawn = ("alarm", "bound", "kept", "bar", "edge", *(f"line{k}" for k in range(1, 9)))
    assert {name: found for name in drawn if (found := contrast(name, "paper")) < 3.0} == {}
    assert contrast("rule", "paper") < 3.0, "what is faint on purpose is measured too"


def test_the_page_tells_how_to_run_it_again() -> None:
    made = {"made_with": {"archgrad": "0.1.0", "python": "3.11"}, "started": "2026-01-01"}
    html = page(record(), run=made, command={"arguments": ["slim", "my net.py:Net", "--limit", "macs=0.5; rm"]})
    words = " ".join(" ".join(read(html).words).split())
    assert "archgrad slim 'my net.py:Net' --limit 'macs=0.5; rm'" in words
    assert "archgrad 0.1.0, torch 2.13, python 3.11" in words
    assert "archgrad.dnal with Run(seed=7, ...)" in page(record())
    assert "Running it again" not in page({"method": "dnal"})


def test_bars_share_the_scale_of_the_widest_layer() -> None:
    html = page({"layers": [{"name": "a", "before": 200, "after": 50}, {"name": "b", "before": 100, "after": 100}]})
    assert html.count("width: 100.00%") == 1 and html.count("width: 25.00%") == 1
    assert html.count("width: 50.00%") == 2


def test_write_leaves_each_graph_as_a_picture(tmp_path: Path) -> None:
    given = {**search(), "notes": ["half a character: \ud800"]}
    (tmp_path / "record.json").write_text(json.dumps(given), encoding="utf-8")
    (tmp_path / "history.jsonl").write_text("", encoding="utf-8")
    write(tmp_path)
    assert sorted(file.name for file in tmp_path.glob("*.svg")) == ["cell_i_reduce.svg", "cell_normal.svg"]
    drawn = (tmp_path / "cell_normal.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(drawn).tag.endswith("svg") and "conv &lt;b&gt;" in drawn
    assert sorted(file.name for file in tmp_path.glob(".*")) == []


def test_figures_beyond_every_float_are_not_finite(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(f'{{"after": {{"loss": 1e999}}, "seed": {10**80}}}', encoding="utf-8")
    lines = '{"step": 1, "loss": 1e999, "weight/a/b": 1e300}\n{"step": 2, "loss": 1, "weight/a/b": -2}\n'
    (tmp_path / "history.jsonl").write_text(lines, encoding="utf-8")
    assert "not finite" in write(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["record.json", "history.jsonl"])
def test_files_larger_than_a_run_writes_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "RECORD", 1000)
    (tmp_path / "record.json").write_text("{}", encoding="utf-8")
    (tmp_path / "history.jsonl").write_text("", encoding="utf-8")
    (tmp_path / name).write_text("{}" + 1000 * " ", encoding="utf-8")
    with pytest.raises(RunError, match=rf"{name} is larger than"):
        write(tmp_path)


def test_write_reads_the_folder_and_replaces_the_page(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps(record()), encoding="utf-8")
    (tmp_path / "history.jsonl").write_text("\n".join(map(json.dumps, history())) + "\n", encoding="utf-8")
    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    assert write(tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page(record(), history())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["history.jsonl", "record.json", "report.html"]


@pytest.mark.parametrize(
    ("record_text", "history_text", "message"),
    [
        (None, "", r"record\.json is missing"),
        ("{}", None, r"history\.jsonl is missing"),
        ('{"method": ', "", r"record\.json is damaged \(it is not JSON.*line 1"),
        ("[]", "", "JSON object"),
        ("{}", '{"step": 1}\n{"ste', r"history\.jsonl is damaged \(line 2"),
        ("{}", "3\n", "line 1 is no JSON object"),
        ('{"before": 3}', "", "damaged at before"),
        ('{"graphs": [{"nodes": [{"id": 1}], "edges": [{"source": 1}]}]}', "", r"graphs\[0\]\.edges\[0\]\.target"),
        ("[" * 100_000, "", "nested deeper than 64"),
        ('{"surrogate": {"predicted": [1]}}', "", "damaged at surrogate"),
        ('{"seed": 1, "seed": 2}', "", "'seed' is there twice"),
        ('{"after": {"loss": ' + "9" * 5000 + "}}", "", "a number of 5000 digits"),
    ],
)
def test_missing_and_damaged_files(
    record_text: str | None, history_text: str | None, message: str, tmp_path: Path
) -> None:
    for name, content in (("record.json", record_text), ("history.jsonl", history_text)):
        if content is not None:
            (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=message):
        write(tmp_path)
    assert not (tmp_path / "report.html").exists()
