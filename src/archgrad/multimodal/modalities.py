"""Data with several named inputs, such as images and sound: samples are (dict of tensors, label)."""

from __future__ import annotations

import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from archgrad import files
from archgrad.errors import DataError
from archgrad.files import shown
from archgrad.tasks.samples import samples

_SOUND = 2**30  # bytes of one recording
Sample = tuple[dict[str, Tensor], Tensor]


def _length(value: Any, name: str) -> int:
    try:
        return len(value)
    except TypeError:
        raise DataError(
            f"{name} is {shown(value)}; give an array or a tensor with an entry for each sample"
        ) from None


class Modalities(Dataset[Sample]):
    """Named inputs in memory, one label a sample; batches are ({name: [B, ...]}, [B]).

    A network is called with the dict. An input that a sample lacks is given as zeros: the networks of
    `archgrad.fusion` leave it out of the sum.

    Args:
        inputs: {name: [N, ...]}, arrays or tensors of any shape; uint8 [N, C, H, W] is not normalized here.
        labels: [N] whole numbers from 0.

    Attributes:
        inputs: {name: float32 [N, ...]}.
        targets: int64 [N].

    Raises:
        DataError: no input, a name that is no string, lengths that differ, NaN, labels that are no such numbers.

    Example:
        >>> import torch, archgrad as ag
        >>> data = ag.Modalities({"image": torch.rand(8, 1, 8, 8), "age": torch.rand(8, 1)}, [0, 1] * 4)
        >>> task = ag.Classification(data, batch_size=2)
        >>> task.example["image"].shape
        torch.Size([1, 1, 8, 8])
    """

    def __init__(self, inputs: Mapping[str, Any], labels: Any) -> None:
        if not isinstance(inputs, Mapping) or not inputs or not all(isinstance(n, str) and n for n in inputs):
            given = list(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise DataError(f'inputs={given}: give a dict of one or more named arrays, such as {{"image": x}}')
        lengths = {name: _length(x, name) for name, x in (*inputs.items(), ("labels", labels))}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise DataError(f"the lengths differ ({shown}); give one of each for every sample, in one order")
        y = np.asarray(labels)
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise DataError(
                f"labels of type {y.dtype} and shape {list(y.shape)}; give one whole number a sample, [N]"
            )
        self.inputs: dict[str, Tensor] = {}
        for name, x in inputs.items():
            # Numbers stay what they are, so that they mean the same in every part.
            checked = samples(_flat(x, name), y, classes=max(2, int(y.max(initial=0)) + 1), part=f"input {name!r}")
            self.inputs[name] = checked.x.reshape(np.shape(x)).float()
        self.targets: Tensor = checked.y

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(x.shape[1:])}" for name, x in self.inputs.items())
        return f"<Modalities, {len(self):,} samples: {shapes}>"

    def __getitem__(self, index: int) -> Sample:
        return {name: x[index] for name, x in self.inputs.items()}, self.targets[index]


def _flat(x: Any, name: str) -> Any:
    """[N, F]: shapes that could be taken for images with channels last are left as they are."""
    array = x if isinstance(x, Tensor) else np.asarray(x)
    if array.ndim < 2:
        raise DataError(f"input {name!r} has the shape {list(array.shape)}; give [N, ...] with a number or more each")
    return array.reshape(len(array), -1) if len(array) else array


def read_wav(path: str | Path, *, rate: int | None = None) -> Tensor:
    """A recording of 8 or 16 bits as float32 [channels, samples] in [-1, 1].

    Args:
        path: of the file.
        rate: samples a second that it has to have.

    Raises:
        DataError: no such file, no WAV file of whole numbers, or another rate; the message names the file.
    """
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, held, count = (
                file.getsampwidth(), file.getnchannels(), file.getframerate(), file.getnframes(),
            )  # fmt: skip
            # The header may declare more than there is, and what it declares is allocated.
            frame = max(1, width * channels)
            data = file.readframes(min(count, _SOUND // frame, 1 + Path(path).stat().st_size // frame))
    except (*files.UNREADABLE, wave.Error) as error:
        raise DataError(
            f"{path} cannot be read as a WAV file ({error or 'it ends too early'}); repair it or leave it out"
        ) from error
    if width not in (1, 2) or not data or len(data) % (width * channels):
        raise DataError(
            f"{path} has {8 * width} bits a sample and {len(data)} bytes of sound; give whole samples of 8 or 16 bits"
        )
    if rate is not None and held != rate:
        raise DataError(f"{path} has {held} samples a second, not {rate}; resample it, or leave it out")
    # Eight bits are counted from 0, sixteen from -32768.
    numbers = np.frombuffer(data, np.uint8).astype(np.int16) - 128 if width == 1 else np.frombuffer(data, "<i2")
    scaled = numbers.astype(np.float32) / (128 if width == 1 else 32768)
    return torch.from_numpy(scaled.reshape(-1, channels).T.copy())


def spectrogram(waves: Tensor, *, n_fft: int, hop: int) -> Tensor:
    """log(1 + 20 |STFT|) with a Hann window, [B, 1, n_fft // 2 + 1, samples // hop + 1], of sound [B, samples]."""
    window = torch.hann_window(n_fft)
    found = torch.stft(waves, n_fft, hop_length=hop, window=window, return_complex=True)
    return (20.0 * found.abs()).log1p()[:, None]


def fitted(waves: Sequence[Tensor], length: int) -> Tensor:
    """Recordings [samples] cut, or padded with silence, to one length: [B, length]."""
    return torch.stack([torch.nn.functional.pad(w[:length], (0, max(0, length - len(w)))) for w in waves])
