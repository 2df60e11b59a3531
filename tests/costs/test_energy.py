"""Energy: counters in a fake tree, wrap-around, permissions, NVML by a stand-in, and the labelled estimate."""

from __future__ import annotations

import itertools
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.costs.energy import PJ_PER_BYTE, PJ_PER_MAC, Nvml, Rapl, energy, estimate, measure, peak_power
from archgrad.errors import ConfigError, LimitError, MissingExtra, ModelError
from archgrad.methods import under

RANGE = 1_000_000


def zone(root: Path, name: str, kind: str, *, start: int = 0) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{kind}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (folder / "energy_uj").write_text(f"{start}\n")
    return folder


def tree(root: Path) -> Path:
    """Two packages, one with its memory; zones that would count twice; another interface to the same counters."""
    for name, kind in (
        ("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram"),
        ("intel-rapl:1", "package-1"), ("intel-rapl:2", "psys"), ("intel-rapl-mmio:0", "package-0"),
    ):  # fmt: skip
        zone(root, name, kind)
    return root


def use(folder: Path, microjoules: int) -> None:
    counter = folder / "energy_uj"
    counter.write_text(str((int(counter.read_text()) + microjoules) % RANGE))


class Spends(nn.Module):
    """A network that uses so much of a counter each time it runs."""

    def __init__(self, folder: Path, microjoules: int) -> None:
        super().__init__()
        self.folder, self.microjoules = folder, microjoules

    def forward(self, x: Tensor) -> Tensor:
        use(self.folder, self.microjoules)
        return x


def test_packages_and_memory_count_once(tmp_path: Path) -> None:
    meter = Rapl(tree(tmp_path))
    for name, amount in (("0", 1000), ("0:0", 400), ("0:1", 20), ("1", 3), ("2", 5000)):
        use(tmp_path / f"intel-rapl:{name}", amount)
    use(tmp_path / "intel-rapl-mmio:0", 1000)
    assert meter.joules() == pytest.approx(1023e-6)
    assert meter.joules() == pytest.approx(1023e-6)


def test_a_counter_that_begins_again_goes_on(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", start=RANGE - 100)
    meter, seen = Rapl(tmp_path), []
    for _ in range(4):
        use(folder, 400_000)
        seen.append(meter.joules())
    assert seen == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert int((folder / "energy_uj").read_text()) < RANGE - 100, (
        "the control: the difference alone would be negative"
    )


def test_energy_a_pass_is_what_the_counter_moved(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", start=RANGE - 7)
    found = measure(Spends(folder, 5000), torch.zeros(1), Rapl(tmp_path), seconds=0.05)
    assert found.energy_mj == pytest.approx(5.0)
    assert (found.kind, found.provider, found.idle_w) == ("measured", "RAPL", 0.0)
    assert found.passes >= 3 and found.peak_w > 0


def test_the_peak_is_that_of_the_worst_window(tmp_path: Path) -> None:
    """A clock of one second a look, and a network that uses 1 J in one of its passes and 0.1 J in the others."""
    folder, ticks = zone(tmp_path, "intel-rapl:0", "package-0"), iter(range(1000))

    class Uneven(Spends):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:
            Uneven.runs += 1
            self.microjoules = 900_000 if Uneven.runs == 4 else 100_000
            return super().forward(x)

    found = measure(Uneven(folder, 0), torch.zeros(1), Rapl(tmp_path), seconds=6.0, clock=lambda: float(next(ticks)))
    assert found.peak_w == pytest.approx(0.9)
    assert found.energy_mj == pytest.approx((900 + 100 * (found.passes - 1)) / found.passes)


def test_a_counter_that_stands_still_is_no_zero(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did not move in 3 passes"):
        measure(Spends(zone(tmp_path, "intel-rapl:0", "package-0"), 0), torch.zeros(1), Rapl(tmp_path), seconds=1e-9)


def test_without_permission_the_file_and_the_permission_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read all, so the refusal is played."""
    tree(tmp_path)
    read = Path.read_text

    def refuse(self: Path, encoding: str | None = None) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, encoding=encoding)

    monkeypatch.setattr(Path, "read_text", refuse)
    for source in ("auto", "measured"):
        with pytest.raises(ConfigError, match=r"intel-rapl:0/energy_uj.*read permission.*chmod a\+r"):
            energy(torch.zeros(1), root=tmp_path, source=source)
    assert energy(torch.zeros(1), root=tmp_path, source="estimated").name == "estimated_energy"


@pytest.mark.parametrize("text", ["", "many", "1.5"])
def test_a_damaged_counter_is_named(tmp_path: Path, text: str) -> None:
    (zone(tmp_path, "intel-rapl:0", "package-0") / "energy_uj").write_text(text)
    with pytest.raises(ConfigError, match="energy_uj holds"):
        Rapl(tmp_path)


def test_a_counter_without_its_file(tmp_path: Path) -> None:
    (zone(tmp_path, "intel-rapl:0", "package-0") / "energy_uj").unlink()
    with pytest.raises(ConfigError, match="energy_uj cannot be read"):
        Rapl(tmp_path)


def test_no_counter_is_an_error_where_measured_and_an_estimate_by_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="virtual machine"):
        energy(torch.zeros(1), root=tmp_path, source="measured")
    cost, x = energy(torch.zeros(2, 8), root=tmp_path), nn.Linear(8, 4)
    assert cost.name == "estimated_energy" and cost.reading(x).kind == "estimated"
    assert cost.at_most(mj=1.0).record()["cost"] == "estimated_energy"


def test_the_estimate_is_that_counted_by_hand() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).train()
    found = estimate(net, torch.zeros(5, 8))
    multiplied = 5 * (8 * 16 + 16 * 4)
    moved = 4 * (8 * 16 + 16 + 16 * 4 + 4) + 2 * 4 * 5 * (16 + 16 + 4)
    assert found.energy_mj == pytest.approx(1e-9 * (PJ_PER_MAC * multiplied + PJ_PER_BYTE * moved))
    assert (found.kind, found.idle_w) == ("estimated", None) and found.peak_w > 0 and net.training


def test_a_measured_cost_by_a_fake_tree(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0")
    cost = energy(torch.zeros(1), root=tmp_path, seconds=0.02)
    assert (cost.name, cost.unit) == ("energy", "mJ")
    assert cost.of(Spends(folder, 2000)) == pytest.approx(2.0)
    with pytest.raises(LimitError, match="has no gradient"):
        cost.expected(nn.Identity())


def test_nvml_counts_from_when_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    used = [5000]
    library = types.ModuleType("pynvml")
    library.__spec__ = types.SimpleNamespace()
    library.NVMLError, library.nvmlInit = NVMLError, lambda: None
    library.nvmlDeviceGetHandleByIndex = lambda index: index
    library.nvmlDeviceGetTotalEnergyConsumption = lambda handle: used[0]
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    meter = Nvml(torch.device("cuda", 0))
    used[0] += 250
    assert meter.joules() == 0.25

    def refused(handle: int) -> int:
        raise NVMLError("Not Supported")

    library.nvmlDeviceGetTotalEnergyConsumption = refused
    with pytest.raises(ConfigError, match=r"no total energy of cuda:0 \(Not Supported"):
        meter.joules()


def test_nvml_without_its_library_names_the_extra() -> None:
    with pytest.raises(MissingExtra, match="energy"):
        Nvml(torch.device("cuda", 0))


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="source='rapl'"):
        energy(torch.zeros(1), source="rapl")
    with pytest.raises(ConfigError, match="seconds=0"):
        energy(torch.zeros(1), seconds=0)
    for wrong in ({}, {"mj": 0.0}, {"mj": 1.0, "fraction": 0.5}, {"fraction": 1.5}):
        with pytest.raises(LimitError):
            energy(torch.zeros(1), source="estimated").at_most(**wrong)
    with pytest.raises(ModelError, match="does not run on the example"):
        energy(torch.zeros(2, 3), source="estimated").of(nn.Linear(8, 4))


def test_peak_power_is_a_cost_measured_or_labelled_as_estimated(tmp_path: Path) -> None:
    x, net = torch.zeros(2, 8), nn.Linear(8, 4)
    with pytest.raises(ConfigError, match="virtual machine"):
        peak_power(x, root=tmp_path, source="measured")
    guessed = peak_power(x, root=tmp_path)
    assert (guessed.name, guessed.unit, guessed.reading(net).kind) == ("estimated_peak_power", "W", "estimated")
    assert guessed.at_most(w=1.0).record()["cost"] == "estimated_peak_power"
    folder = zone(tmp_path, "intel-rapl:0", "package-0")
    counted = peak_power(torch.zeros(1), root=tmp_path, seconds=0.05)
    assert counted.name == "peak_power"

    class Slow(Spends):
        """At most 300 uJ in 30 ms: 10 mW in each window."""

        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.03)
            return super().forward(x)

    assert 0.0 < counted.of(Slow(folder, 300)) <= 0.01
    with pytest.raises(LimitError, match="has no gradient"):
        counted.expected(nn.Identity())


def test_a_controller_is_taught_by_a_limit_on_estimated_power(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that gives every pass a millisecond power is energy: the large candidate is out of reach."""
    ticks = itertools.count()
    monkeypatch.setattr("archgrad.costs.energy.time.perf_counter", lambda: 1e-3 * next(ticks))
    layers = {f"{n}": nn.Sequential(nn.Linear(8, n), nn.Linear(n, 2)) for n in (4, 16, 512)}
    space = nn.Sequential(nn.Flatten(), ag.OpChoice(layers, name="a"))
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    cost = peak_power(torch.zeros(1, 8), source="estimated")
    limit = cost.at_most(w=1.2 * cost.of(ag.build(space, ag.Architecture({"a": 1}))))
    run = ag.Run(steps=6, trials=3, progress=False)
    found = ag.monas(space, ag.Classification((x, (x[:, 0] > 0).long()), batch_size=16), run, reward=under(limit))
    assert found.architecture["a"] in (0, 1) and cost.of(found.network) <= limit.bound
    assert found.record["fronts"][0]["cost"] == "estimated_peak_power" and found.record["fronts"][0]["unit"] == "W"


def test_a_search_keeps_a_limit_on_estimated_energy() -> None:
    space = nn.Sequential(
        nn.Flatten(),
        ag.OpChoice(
            {f"{n}": nn.Sequential(nn.Linear(8, n), nn.ReLU(), nn.Linear(n, 2)) for n in (4, 64, 256)}, name="a"
        ),
    )
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    cost = energy(torch.zeros(1, 8), source="estimated")
    limit = cost.at_most(mj=1.2 * cost.of(ag.build(space, ag.Architecture({"a": 1}))))
    run = ag.Run(steps=8, trials=2, device="cpu", progress=False)
    found = ag.random_search(space, ag.Classification((x, (x[:, 0] > 0).long()), batch_size=10), run, limit=limit)
    assert cost.of(found.network) <= limit.bound and found.record["limit"]["cost"] == "estimated_energy"
