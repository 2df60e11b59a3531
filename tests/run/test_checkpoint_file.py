from __future__ import annotations

import json
import math
import pickle
import resource
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as nps
from safetensors import safe_open
from safetensors.torch import save_file

from archgrad import files
from archgrad.errors import RunError
from archgrad.run.checkpoint_file import Series, load, save

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.complex128,
    torch.int8,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint64,
    torch.bool,
]


def same(a: Any, b: Any) -> bool:
    """Equal in type, order and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(type(k) is type(m) and same(a[k], b[k]) for k, m in zip(a, b, strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def tensors() -> st.SearchStrategy[torch.Tensor]:
    def make(dtype: torch.dtype, shape: list[int], raw: int) -> torch.Tensor:
        count = math.prod(shape)
        size = torch.empty(0, dtype=dtype).element_size()
        bits = torch.randint(0, 2 if dtype == torch.bool else 256, (count * size,), dtype=torch.uint8,
                             generator=torch.Generator().manual_seed(raw))  # fmt: skip
        return bits.view(dtype).reshape(shape)

    shapes = st.lists(st.integers(0, 3), max_size=3)
    return st.builds(make, st.sampled_from(DTYPES), shapes, st.integers(0, 2**31))


ARRAYS = nps.arrays(
    st.one_of(nps.floating_dtypes(), nps.integer_dtypes(), nps.boolean_dtypes(), nps.complex_number_dtypes()),
    nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
LEAVES = st.one_of(SCALARS, tensors(), ARRAYS)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.one_of(st.text(max_size=5), st.integers(min_value=2))
    lists = st.lists(inner, max_size=3)
    return st.one_of(lists, lists.map(tuple), st.dictionaries(keys, inner, max_size=3))


NESTS = containers(st.one_of(LEAVES, containers(LEAVES)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=NESTS)
def test_any_nest_survives_bit_for_bit(tmp_path: Path, state: Any) -> None:
    path = tmp_path / "a.safetensors"
    save(path, state)
    assert same(load(path), state)


def test_the_comparison_of_this_file_sees_one_bit() -> None:
    assert not same(0.0, -0.0)
    assert not same((1,), [1])
    assert not same({1: 0}, {"1": 0})
    assert not same(torch.tensor([0.0]), torch.tensor([-0.0]))


def test_special_values_and_views(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    odd_nan = struct.unpack("<d", bytes.fromhex("0100000000fcff7f"[::1]))[0]
    state = {
        "floats": (math.nan, odd_nan, math.inf, -math.inf, -0.0, 5e-324),
        "shared": [base, base[1], base.t(), base[:, ::2]],
        "conj": torch.tensor([1 + 2j]).conj(),
        "image": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "leaf": torch.nn.Parameter(torch.ones(2)).detach(),
        "text": "ü \x00 \ud800",
        "empty": ({}, [], (), "", torch.empty(0, 3), np.empty((0, 2))),
        "number": np.float32(1.5),
        "big": np.arange(3, dtype=">i4"),
        "__metadata__": torch.ones(1),
        1: "int",
        "1": "str",
    }
    save(tmp_path / "a.safetensors", state)
    back = load(tmp_path / "a.safetensors")
    state["conj"] = state["conj"].resolve_conj()
    assert same(back, state)
    back["shared"][0].zero_()
    assert back["shared"][1].sum() > 0, "a loaded tensor owns its memory"


def test_states_of_torch_survive(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    schedule.step()
    state = {"n": dict(network.state_dict()), "o": optimizer.state_dict(), "s": schedule.state_dict()}
    save(tmp_path / "a.safetensors", state)
    assert same(load(tmp_path / "a.safetensors"), state)


@pytest.mark.parametrize("value", [object(), {1.5: 0}, {1, 2}, np.array([object()]), torch.eye(2).to_sparse()])
def test_what_cannot_be_saved_is_named(tmp_path: Path, value: Any) -> None:
    with pytest.raises(RunError, match="parts/net"):
        save(tmp_path / "a.safetensors", {"parts": {"net": value}})
    assert list(tmp_path.iterdir()) == []


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    state = {"w": torch.arange(5, dtype=torch.int16), "lr": 0.5, "a": np.arange(2)}
    save(path, state)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = load(path)
        except RunError:
            continue
        assert same(found, state), f"byte {place}"


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, {"w": torch.ones(100)})
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(RunError, match="damaged, truncated"):
            load(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(RunError, match="no safetensors file"):
        load(path)
    save_file({"w": torch.ones(1)}, path)
    with pytest.raises(RunError, match="not a checkpoint"):
        load(path)
    with pytest.raises(RunError, match="There is no checkpoint"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(RunError):
        load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '["array","0:",  "O",[1]]',
        '["tensor","0:","load",[8]]',
        '["tensor","x","int8",[8]]',
        '["dict",1]',
        "[",
    ],
)
def test_a_forged_state_is_refused(tmp_path: Path, text: str) -> None:
    from archgrad.run.checkpoint_file import _checksum

    path = tmp_path / "a.safetensors"
    bodies = {"0:": torch.zeros(8, dtype=torch.uint8)}
    metadata = {"format": "archgrad checkpoint 1", "state": text, "checksum": _checksum(text, bodies)}
    save_file(bodies, path, metadata=metadata)
    with pytest.raises(RunError, match="not one that archgrad wrote"):
        load(path)


def test_weights_are_readable_without_archgrad(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", {"parts": {"net": {"w": torch.ones(2, 3)}}})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("0:/parts/net/w"), torch.ones(2, 3))
        assert json.loads(file.metadata()["state"])[0] == "dict"


def test_a_full_disk_leaves_the_old_file_and_no_remains(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, {"w": torch.ones(10)})
    old = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(RunError) as caught:
            save(path, {"w": torch.ones(100_000)})
        with pytest.raises(RunError, match=r"run\.json"):
            files.write_text(tmp_path / "run.json", "x" * 10_000, RunError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    for part in (str(path), "needs 0.4 MB", "MB are free", "is intact", "goes on from the last checkpoint"):
        assert part in str(caught.value)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def names(series: Series) -> list[str]:
    return sorted(path.name.removesuffix(".safetensors") for path in series.folder.iterdir())


def test_a_series_keeps_the_last_two_and_every_end(tmp_path: Path) -> None:
    series = Series(tmp_path / "checkpoints")
    for step in (0, 5, 9):
        series.save({"step": step}, index=0, phase="warm-up", mark=step)
    assert names(series) == ["0000-warm-up-0000000005", "0000-warm-up-0000000009"]
    series.save({"step": 10}, index=0, phase="warm-up", mark="end")
    assert names(series) == ["0000-warm-up-0000000009", "0000-warm-up-end"]
    series.save({"step": 0}, index=1, phase="search", mark=0)
    series.save({"step": 3}, index=1, phase="search", mark=3)
    assert names(series) == ["0000-warm-up-end", "0001-search-0000000000", "0001-search-0000000003"]
    assert series.newest(0)[0] == {"step": 10}
    assert series.newest(1)[0] == {"step": 3}
    assert series.newest(2) == (None, None, [])


def test_a_damaged_newest_falls_back_and_says_so(tmp_path: Path) -> None:
    series = Series(tmp_path / "checkpoints")
    older = series.save({"step": 5}, index=0, phase="a", mark=5)
    newer = series.save({"step": 9}, index=0, phase="a", mark=9)
    newer.write_bytes(newer.read_bytes()[:-1])
    state, path, warnings = series.newest(0)
    assert (state, path) == ({"step": 5}, older)
    assert len(warnings) == 1
    assert str(newer) in warnings[0]
    older.write_bytes(b"")
    state, path, warnings = series.newest(0)
    assert (state, path, len(warnings)) == (None, None, 2)
    assert series.discard(0, None) == 0
    assert names(series) == []


def test_an_early_end_counts_once_settled(tmp_path: Path) -> None:
    series = Series(tmp_path / "checkpoints")
    middle = series.save({"step": 5}, index=0, phase="a", mark=5)
    series.save({"step": 7}, index=0, phase="a", mark="left")
    assert series.newest(0)[1] == middle
    series.confirm_end(0)
    assert series.newest(0)[0] == {"step": 7}
    series.save({"step": 1}, index=1, phase="b", mark="left")
    series.save({"step": 1}, index=2, phase="c", mark=1)
    (series.folder / ".0003.partial").write_bytes(b"half")
    assert series.discard(1, None) == 1
    assert names(series) == ["0000-a-end"]
