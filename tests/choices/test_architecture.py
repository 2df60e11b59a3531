"""Architecture: frozen, hashable, equal in any order, and kept as JSON."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from archgrad.choices.architecture import Architecture
from archgrad.errors import ArchitectureError

PICKS = st.one_of(st.integers(0, 10**6), st.lists(st.integers(0, 999), unique=True, max_size=6).map(tuple))
ARCHITECTURES = st.dictionaries(st.text(max_size=12), PICKS, max_size=8)


@given(ARCHITECTURES)
def test_json_round_trip(picks: dict[str, int | tuple[int, ...]]) -> None:
    architecture = Architecture(picks)
    again = Architecture.from_json(architecture.to_json())
    assert again == architecture
    assert hash(again) == hash(architecture)
    assert again.to_json() == architecture.to_json()
    assert json.loads(architecture.to_json())["format"] == "archgrad.architecture"


@given(ARCHITECTURES, st.randoms())
def test_order_of_names_and_entries_does_not_matter(picks: dict[str, int | tuple[int, ...]], rng) -> None:
    items = list(picks.items())
    rng.shuffle(items)
    shuffled = {n: tuple(rng.sample(p, len(p))) if isinstance(p, tuple) else p for n, p in items}
    a, b = Architecture(picks), Architecture(shuffled)
    assert a == b and hash(a) == hash(b) and a.to_json() == b.to_json() and repr(a) == repr(b)
    assert len({a, b}) == 1


@given(ARCHITECTURES)
def test_pickle_and_mapping(picks: dict[str, int | tuple[int, ...]]) -> None:
    architecture = Architecture(picks)
    assert pickle.loads(pickle.dumps(architecture)) == architecture
    assert dict(architecture) == {n: tuple(sorted(p)) if isinstance(p, tuple) else p for n, p in picks.items()}
    assert Architecture(architecture) == architecture
    assert len(architecture) == len(picks)


def test_different_picks_differ() -> None:
    a = Architecture({"a": 1, "b": (0, 2)})
    for other in ({"a": 1}, {"a": 2, "b": (0, 2)}, {"a": 1, "b": (0,)}, {"a": (1,), "b": (0, 2)}):
        assert Architecture(other) != a
    assert a != {"a": 1, "b": (0, 2)}


def test_it_is_frozen() -> None:
    architecture = Architecture({"a": (1, 0)})
    with pytest.raises(AttributeError, match="frozen"):
        architecture.picks = {}
    with pytest.raises(AttributeError, match="frozen"):
        architecture._picks = {}
    with pytest.raises(TypeError):
        architecture["a"] = 1
    picks = {"a": 1}
    architecture = Architecture(picks)
    picks["a"] = 2
    assert architecture["a"] == 1


@pytest.mark.parametrize(
    "pick", [-1, True, 1.0, "1", None, (1, 1), (0, -1), (0, 1.0), (False,), [0, 1], ((0,),)], ids=repr
)
def test_what_is_no_pick_is_refused(pick: object) -> None:
    with pytest.raises(ArchitectureError, match="'op'"):
        Architecture({"op": pick})


def test_a_name_is_a_string() -> None:
    with pytest.raises(ArchitectureError, match="named by a string"):
        Architecture({3: 0})


GOOD = Architecture({"a": 1, "b": (0, 2)}).to_json()
DAMAGED = {
    "cut short": (GOOD[:40], "not JSON"),
    "empty": ("", "not JSON"),
    "a list": ("[1, 2]", "'list'"),
    "a number": ("3", "'int'"),
    "foreign": (json.dumps({"format": "genotype", "version": 1, "picks": {}}), "'genotype'"),
    "no format": ("{}", "None"),
    "newer": (GOOD.replace('"version": 1', '"version": 2'), "version 2"),
    "no version": (GOOD.replace('"version": 1, ', ""), "version None"),
    "no picks": ('{"format": "archgrad.architecture", "version": 1}', "damaged"),
    "picks a list": ('{"format": "archgrad.architecture", "version": 1, "picks": [1]}', "damaged"),
    "a word for a pick": (GOOD.replace("[0, 2]", '"all"'), "'b'"),
    "a negative pick": (GOOD.replace("[0, 2]", "[0, -2]"), "'b'"),
    "an entry twice": (GOOD.replace("[0, 2]", "[2, 2]"), "twice"),
    "a fraction": (GOOD.replace("1,\n", "1.5,\n"), "'a'"),
}


@pytest.mark.parametrize(("text", "says"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_says_what_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    assert text != GOOD
    (tmp_path / "cell.json").write_text(text)
    with pytest.raises(ArchitectureError, match=says):
        Architecture.load(tmp_path / "cell.json")


@pytest.mark.parametrize("text", ["[", "{}", GOOD.replace('"version": 1', '"version": 9')])
def test_errors_name_the_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_text(text)
    with pytest.raises(ArchitectureError, match=r"cell\.json"):
        Architecture.load(tmp_path / "cell.json")


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(ArchitectureError):
        Architecture.from_json("[" * 100_000)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"absent\.json"):
        Architecture.load(tmp_path / "absent.json")
    with pytest.raises(ArchitectureError, match="cannot read"):
        Architecture.load(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ArchitectureError, match="cannot read"):
        Architecture.load(tmp_path / "binary.json")


def test_save_and_load(tmp_path: Path) -> None:
    architecture = Architecture({"block": 3, "Ünïcode \n name": (5, 0), "none": ()})
    architecture.save(tmp_path / "cell.json")
    assert Architecture.load(str(tmp_path / "cell.json")) == architecture
    Architecture({"block": 0}).save(str(tmp_path / "cell.json"))  # replaces
    assert Architecture.load(tmp_path / "cell.json") == Architecture({"block": 0})
    assert [p.name for p in tmp_path.iterdir()] == ["cell.json"]


def test_a_saved_file_can_be_read_by_others(tmp_path: Path) -> None:
    Architecture({"block": 3}).save(tmp_path / "cell.json")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "cell.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_save_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="absent"):
        Architecture({"block": 3}).save(tmp_path / "absent" / "cell.json")
