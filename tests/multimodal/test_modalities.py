"""Named inputs: in tasks, costs and exports; sound read from files."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.costs.memory import predict_memory
from archgrad.errors import DataError, ModelError
from archgrad.multimodal.modalities import fitted, read_wav, spectrogram
from archgrad.tasks.task import first

G = torch.Generator().manual_seed(0)
IMAGE, FACTS, Y = torch.randn(40, 1, 6, 5, generator=G), torch.randn(40, 3, generator=G), torch.arange(40) % 2


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.facts = nn.Linear(30, 2), nn.Linear(3, 2)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.image(x["image"].flatten(1)) + self.facts(x["facts"])


def task(**settings: object) -> ag.Classification:
    return ag.Classification(ag.Modalities({"image": IMAGE, "facts": FACTS}, Y), **{"batch_size": 8, **settings})


def test_batches_are_dicts_of_the_samples_of_one_label() -> None:
    given = task()
    x, y = given.stream(seed=1)(3)
    assert {name: tuple(t.shape) for name, t in x.items()} == {"image": (8, 1, 6, 5), "facts": (8, 3)}
    for i in range(8):
        place = int((x["facts"][i] == FACTS).all(dim=1).nonzero())
        assert torch.equal(IMAGE[place], x["image"][i]) and Y[place] == y[i]
    assert given.splits["input_shape"] == {"image": [1, 6, 5], "facts": [3]}
    assert {n: len(t) for n, t in first((x, y), 3)[0].items()} == {"image": 3, "facts": 3}


def test_training_costs_and_halves_take_dicts(tmp_path: Path) -> None:
    given, network = task(), Both()
    x = given.example
    assert ag.macs(x).of(network) == 66
    assert ag.latency(x, repeats=2, warmup=1).of(network) > 0
    assert ag.energy(x, source="estimated", seconds=0.01).of(network) > 0
    assert predict_memory(network, (x, Y[:1]), loss=given.loss).at(8).peak_bytes > 0
    assert ag.fit(network, given, ag.Run(epochs=1, device="cpu", progress=False))["accuracy"] >= 0
    one, other = given.split()
    assert one.splits["train"]["size"] + other.splits["train"]["size"] == given.splits["train"]["size"]
    assert ag.export_program(network, x, tmp_path / "n.pt2").dynamic_batch


def test_the_same_task_is_made_of_a_dataset_of_ones_own() -> None:
    class Mine(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, i: int) -> tuple[dict[str, Tensor], int]:
            return {"image": IMAGE[i], "facts": FACTS[i]}, int(Y[i])

    mine = ag.Classification(Mine(), batch_size=8)
    for (a, b), (c, d) in zip(
        (mine.stream(seed=1)(s) for s in (0, 5)), (task().stream(seed=1)(s) for s in (0, 5)), strict=True
    ):
        assert torch.equal(b, d) and all(torch.equal(a[n], c[n]) for n in a)


@pytest.mark.parametrize(
    ("inputs", "labels", "problem"),
    [
        ({}, Y, "give a dict of one or more named arrays"),
        ([IMAGE], Y, "inputs=list: give a dict"),
        ({1: IMAGE}, Y, r"inputs=\[1\]: give a dict"),
        ({"image": IMAGE, "facts": FACTS[:39]}, Y, r"lengths differ \(image: 40, facts: 39, labels: 40\)"),
        ({"image": IMAGE}, Y[:39], r"lengths differ \(image: 40, labels: 39\)"),
        ({"facts": FACTS[:, 0]}, Y, r"'facts' has the shape \[40\]"),
        ({"facts": FACTS.masked_fill(FACTS > 2, float("nan"))}, Y, "'facts': NaN or infinite numbers in"),
        ({"facts": np.array([["a"]] * 40)}, Y, "'facts': inputs of type <U1"),
        ({"facts": FACTS}, Y.float(), "labels of type float32"),
        ({"facts": FACTS}, -Y, "label -1 is negative"),
        ({"facts": FACTS[:0]}, Y[:0], "no samples at all"),
    ],
)
def test_inputs_that_are_no_pairs_are_refused(inputs: object, labels: Tensor, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        ag.Modalities(inputs, labels)  # type: ignore[arg-type]


def test_labels_mean_the_same_in_every_part() -> None:
    """Of arrays alone labels 3, 5 would become 0, 1."""
    assert ag.Modalities({"facts": FACTS[:2]}, [3, 5]).targets.tolist() == [3, 5]


def test_a_modality_missing_from_some_samples_is_named() -> None:
    class Holes(torch.utils.data.Dataset):
        targets = Y

        def __len__(self) -> int:
            return 40

        def __getitem__(self, i: int) -> tuple[dict[str, Tensor], int]:
            return {"image": IMAGE[i]} | ({"facts": FACTS[i]} if i % 5 else {}), int(Y[i])

    given = ag.Classification(Holes(), batch_size=8)
    with pytest.raises(DataError, match=r"lacks 'facts'.* zeros"):
        for step in range(10):
            given.stream(seed=0)(step)


def test_a_network_that_misses_an_input_is_told_its_shapes() -> None:
    with pytest.raises(
        ModelError, match=r"fails on a batch of shape \[2, 1, 6, 5\] torch.float32: KeyError: 'facts'"
    ):
        ag.Classification(ag.Modalities({"image": IMAGE}, Y)).check(Both())


def test_slim_takes_a_network_of_a_dict() -> None:
    with pytest.raises(ModelError, match="image and one more: its channels reach the network's output"):
        ag.slim(Both(), task().example)


def write(path: Path, data: np.ndarray, *, channels: int = 1, rate: int = 8000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(data.dtype.itemsize)
        file.setframerate(rate)
        file.writeframes(data.tobytes())
    return path


def test_sound_of_8_and_16_bits_and_two_channels(tmp_path: Path) -> None:
    mono = read_wav(write(tmp_path / "a.wav", np.array([0, 16384, -32768], "<i2")))
    assert mono.tolist() == [[0.0, 0.5, -1.0]]
    stereo = read_wav(write(tmp_path / "b.wav", np.array([1, 2, 3, 4], "<i2"), channels=2))
    assert (32768 * stereo).tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert read_wav(write(tmp_path / "c.wav", np.array([128, 192, 0], np.uint8))).tolist() == [[0.0, 0.5, -1.0]]


def test_sound_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not sound")
    whole = write(tmp_path / "cut.wav", np.zeros(100, "<i2")).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:20])
    write(tmp_path / "wide.wav", np.zeros(10, "<i4"))
    write(tmp_path / "empty.wav", np.zeros(0, "<i2"))
    for name in ("text", "cut", "wide", "empty", "absent"):
        with pytest.raises(DataError, match=rf"{name}\.wav"):
            read_wav(tmp_path / f"{name}.wav")
    with pytest.raises(DataError, match=r"fast\.wav has 16000 samples a second, not 8000"):
        read_wav(write(tmp_path / "fast.wav", np.zeros(10, "<i2"), rate=16000), rate=8000)


def test_a_spectrogram_has_its_tone_in_the_right_row() -> None:
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 8000)
    found = spectrogram(fitted([tone, tone[:400]], 8000), n_fft=222, hop=72)
    assert found.shape == (2, 1, 112, 112)
    assert int(found[0, 0, :, 50].argmax()) == round(1000 * 222 / 8000)
    assert found[1, 0, :, 10:].abs().max() < 1e-3 < found[1, 0, :, 3].max(), "silence behind a short recording"
