"""Audio-visual digits on generated images and sounds, and on the real ones where they are there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from test_modalities import write

import archgrad as ag
from archgrad.errors import DataError
from archgrad.multimodal import av_digits as audiovisual
from archgrad.multimodal.av_digits import LEVELS, Level, av_digits, read_clips

PAIRS = (60, 30, 20)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images of noise with a bright row for the digit; recordings of a tone that rises with it."""
    folder = tmp_path_factory.mktemp("digits")
    g = np.random.default_rng(0)

    def images(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(count) % 10
        x = g.integers(0, 100, (count, 28, 28)).astype(np.uint8)
        x[np.arange(count), 2 * y] = 255
        return x, y

    (x, y), (xt, yt) = images(100), images(40)
    np.savez(folder / "mnist.npz", x_train=x, y_train=y, x_test=xt, y_test=yt)
    waves, digit, take = [], [], []
    for d in range(10):
        for t in range(14):
            length = int(g.integers(1500, 9500))
            waves.append((8000 * np.sin(2 * np.pi * (300 + 250 * d) * np.arange(length) / 8000)).astype(np.int16))
            digit.append(d)
            take.append(t)
    offsets = np.cumsum([0, *map(len, waves)])
    np.savez(folder / "fsdd.npz", audio=np.concatenate(waves), offsets=offsets, digit=digit, take=take)
    return folder / "mnist.npz", folder / "fsdd.npz"


def everything(task: ag.Classification, part: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    batches = list(task._batches(part))
    return {n: torch.cat([x[n] for x, _ in batches]) for n in batches[0][0]}, torch.cat([y for _, y in batches])


def test_both_senses_of_a_pair_are_of_its_label(files: tuple[Path, Path]) -> None:
    """Without noise, and with all components, the digit can be read off either."""
    task = av_digits(*files, level=Level(784, 60.0), pairs=PAIRS)
    for part, count in zip(("train", "valid", "test"), PAIRS, strict=True):
        x, y = everything(task, part)
        assert x["image"].shape == (count, 1, 28, 28) and x["audio"].shape == (count, 1, 56, 56)
        brightest = x["image"][:, 0].mean(dim=2).argmax(dim=1)
        assert torch.equal(brightest // 2, y)
        loudest = x["audio"][:, 0, :, 5].argmax(dim=1)
        assert torch.equal(((loudest * 2 + 0.5) * 8000 / 222 - 300).div(250).round().long(), y)


def test_a_recording_is_in_one_part_alone(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    heard = audiovisual._heard

    def watched(*given: object, **settings: object) -> object:
        kept.append(heard(*given, **settings))  # type: ignore[arg-type]
        return kept[-1]

    monkeypatch.setattr(audiovisual, "_heard", watched)
    av_digits(*files, pairs=PAIRS)
    used = [set(rows.tolist()) for rows in torch.split(kept[0][1], list(PAIRS))]
    assert not used[0] & used[1] and not used[0] & used[2] and not used[1] & used[2]
    takes = np.load(files[1])["take"]
    assert all(takes[i] >= 10 for i in used[0])
    assert all(5 <= takes[i] < 10 for i in used[1]) and all(takes[i] < 5 for i in used[2])


def test_components_and_means_are_of_the_training_part_alone() -> None:
    """Other images behind the training part change none of its own; a control: among it they do."""
    g = torch.Generator().manual_seed(0)
    pixels, other = torch.rand(80, 784, generator=g), torch.rand(40, 784, generator=g) ** 3
    one = audiovisual._components(torch.cat([pixels, other]), 4, train=80)
    two = audiovisual._components(torch.cat([pixels, 1 - other]), 4, train=80)
    assert torch.equal(one[:80], two[:80]) and not torch.equal(one[80:], two[80:])
    leaked = audiovisual._components(torch.cat([pixels, other]), 4, train=120)
    assert not torch.allclose(leaked[:80].abs(), one[:80].abs(), atol=1e-3)
    assert int(torch.linalg.matrix_rank(one[:80].flatten(1))) == 4
    assert one[:80].mean().abs() < 1e-4 and one[:80].std() == pytest.approx(1.0, abs=1e-4)


def test_sound_is_standardized_by_the_training_part_and_as_loud_as_the_level_says(files: tuple[Path, Path]) -> None:
    x, _ = everything(av_digits(*files, pairs=PAIRS), "train")
    assert x["audio"].mean().abs() < 1e-4 and x["audio"].std() == pytest.approx(1.0, abs=1e-4)
    clips = read_clips(files[1])
    y = torch.arange(90) % 10

    def power(snr: float) -> torch.Tensor:
        g = torch.Generator().manual_seed(0)
        return audiovisual._heard(clips, y, (30, 30, 30), snr_db=snr, generator=g)[0].expm1().div(20).square().mean()

    # The tones' own power is in every second only partly; the noise's in all of it.
    assert float(power(-20.0) / power(-10.0)) == pytest.approx(10.0, rel=0.2)


def test_one_seed_makes_the_same_pairs_and_another_others(files: tuple[Path, Path]) -> None:
    first, again, other = (everything(av_digits(*files, pairs=PAIRS, seed=s), "train")[0] for s in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) and not torch.equal(first[n], other[n]) for n in first)


def test_a_folder_of_recordings_is_read_as_the_file_of_them(files: tuple[Path, Path], tmp_path: Path) -> None:
    held = np.load(files[1])
    for i, (digit, take) in enumerate(zip(held["digit"], held["take"], strict=True)):
        write(tmp_path / f"{digit}_ann_{take}.wav", held["audio"][held["offsets"][i] : held["offsets"][i + 1]])
    one, two = read_clips(files[1]), read_clips(tmp_path)
    assert sorted(map(len, one.waves)) == sorted(map(len, two.waves))
    assert torch.equal(one.digits.bincount(), two.digits.bincount()) and torch.equal(
        one.part.bincount(), two.part.bincount()
    )
    assert av_digits(files[0], tmp_path, pairs=PAIRS).classes == 10
    (tmp_path / "7_ann_99.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"7_ann_99\.wav cannot be read"):
        read_clips(tmp_path)
    (tmp_path / "7_ann_99.wav").rename(tmp_path / "noise.wav")
    with pytest.raises(DataError, match=r"noise\.wav is not named DIGIT_SPEAKER_TAKE.wav"):
        read_clips(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"level": "C"}, "level='C': give one of A, A', B"),
        ({"level": Level(0, 1.0)}, "1 to 784 components"),
        ({"pairs": (0, 1, 1)}, "three whole numbers from 1"),
        ({"pairs": (90, 20, 1)}, "has 100 images for the first two and 40 for the test"),
        ({"pairs": (10, 10, 41)}, "has 100 images"),
        ({"fsdd": "absent.npz"}, "absent.npz cannot be read as spoken digits"),
        ({"mnist": "absent.npz"}, "no such file"),
    ],
)
def test_what_makes_no_pairs_is_refused(files: tuple[Path, Path], change: dict[str, object], problem: str) -> None:
    given = {"mnist": files[0], "fsdd": files[1], "pairs": PAIRS, **change}
    with pytest.raises(DataError, match=problem):
        av_digits(given.pop("mnist"), given.pop("fsdd"), **given)  # type: ignore[arg-type]


def test_files_of_something_else_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not MNIST"):
        np.savez(tmp_path / "other.npz", x=np.zeros((20, 3)), y=np.arange(20) % 2)
        av_digits(tmp_path / "other.npz", files[1], pairs=PAIRS)
    with pytest.raises(DataError, match="cannot be read as spoken digits"):
        read_clips(files[0])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"has no \.wav file"):
        read_clips(tmp_path / "nothing")
    held = dict(np.load(files[1]))
    held["take"] = np.full_like(held["take"], 20)
    np.savez(tmp_path / "late.npz", **held)
    with pytest.raises(DataError, match="no recording of 0 for the valid part"):
        av_digits(files[0], tmp_path / "late.npz", pairs=PAIRS)


def test_the_real_ones() -> None:
    data = Path(os.environ.get("ARCHGRAD_DATA", "absent"))
    if not (data / "fsdd").is_dir() or not (data / "mnist").is_dir():
        pytest.skip("ARCHGRAD_DATA does not hold mnist/ and fsdd/")
    task = av_digits(data / "mnist" / "mnist.npz", data / "fsdd" / "fsdd.npz", level="B", pairs=(500, 100, 100))
    assert task.splits["audiovisual"]["components"] == LEVELS["B"].components == 4
    assert {n: list(x.shape) for n, x in task.example.items()} == {"image": [1, 1, 28, 28], "audio": [1, 1, 56, 56]}
