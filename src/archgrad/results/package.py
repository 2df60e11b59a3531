"""Hand-over: a folder that somebody without archgrad and torch can serve."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from archgrad import files
from archgrad.errors import ConfigError, ModelError, RunError, one_line
from archgrad.extract.export import encode_onnx, preprocessed
from archgrad.extract.onnx_file import Session
from archgrad.extract.preprocessing import Preprocessing
from archgrad.report import text
from archgrad.tasks.task import Inputs, arguments, tensors

NAMES = ("model.onnx", "labels.json", "predict.py", "test_vector.npz", "requirements.txt", "README.md")

_PREDICT = '''"""Run model.onnx: python predict.py FILE, or python predict.py --test. Needs numpy and onnxruntime."""

import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reports its use otherwise
import onnxruntime

HERE = Path(__file__).resolve().parent
LABELS = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))
VECTOR = np.load(HERE / "test_vector.npz")
SESSION = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
NAMES = [slot.name for slot in SESSION.get_inputs()]


def read(path):
    """Inputs [1, ...] from a file: .npy as it is, .npz in order, an image in the model's size (needs pillow)."""
    if path.endswith((".npy", ".npz")):
        loaded = np.load(path)
        arrays = [loaded] if path.endswith(".npy") else [loaded[name] for name in loaded.files]
        return [a.astype(np.float32) if a.dtype == np.float64 else a for a in arrays]
    from PIL import Image, ImageOps

    _, channels, height, width = VECTOR["input_0"].shape
    image = ImageOps.exif_transpose(Image.open(path)).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.uint8)
    return [pixels.reshape(height, width, channels).transpose(2, 0, 1)[None]]


def predict(*inputs):
    """All outputs, for inputs [B, ...] in the order of the file."""
    return SESSION.run(None, dict(zip(NAMES, inputs)))


def refuse(reason):
    """One line, and exit status 2."""
    sys.stderr.write(f"predict.py: {reason}\\n")
    sys.exit(2)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        refuse("usage: python predict.py FILE, an image or an array .npy, or python predict.py --test")
    test = sys.argv[1:] == ["--test"]
    try:
        inputs = [VECTOR[f"input_{i}"] for i in range(len(NAMES))] if test else read(sys.argv[1])
    except FileNotFoundError:
        refuse(f"there is no file {sys.argv[1]}")
    except ImportError as error:
        refuse(f"images need pillow: pip install pillow ({error})")
    except Exception as error:
        refuse(f"cannot read {sys.argv[1]} as an image or an array: {str(error).splitlines()[0] or error!r}")
    try:
        outputs = predict(*inputs)
    except Exception as error:
        wanted = ", ".join(f"{slot.type} {slot.shape}" for slot in SESSION.get_inputs())
        given = ", ".join(f"{x.dtype} {list(x.shape)}" for x in inputs)
        refuse(f"the model takes {wanted}, and {sys.argv[1]} holds {given}")
    if test:
        for i, output in enumerate(outputs):
            np.testing.assert_allclose(output, VECTOR[f"output_{i}"], rtol=1e-3, atol=1e-3)
        print("the test vector is reproduced")
    elif LABELS:
        for row in outputs[0]:
            print(LABELS[int(np.argmax(row))])
    else:
        print(outputs[0])
'''


def check_folder(out: Path) -> None:
    """Raise RunError where a package would be mixed with other files."""
    if out.is_dir():
        files.remove_partial(out)  # of a process that was killed
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {*NAMES}):
        raise RunError(f"{out} holds other files. Give an empty folder with --out, or one that does not exist yet")


def write_package(
    network: nn.Module,
    example: Inputs,
    out: Path,
    *,
    record: Mapping[str, Any],
    int8: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write model.onnx, labels.json, predict.py, test_vector.npz, requirements.txt and README.md, a model card.

    The test vector is the example, with the outputs of the file that is written.

    Args:
        network: a plain network.
        example: its inputs, [1, ...].
        out: the folder, which is made.
        record: of the run: what the card says, and the normalization that goes into the file.
        int8: a quantized file of the network with the same preprocessing, in place of the float one.
        force: write over files of a package that differ from what would be written.

    Returns:
        `folder`, `files` and `size_bytes` of the model.

    Raises:
        RunError: the folder holds other files, or a package that differs, or cannot be written.
        ModelError: the network cannot be exported, or the file does not take the example.
    """
    check_folder(out)
    preprocessing = Preprocessing.of(record.get("data"))
    if int8 is None:
        data = preprocessed(encode_onnx(network, example), preprocessing, example).data
    else:
        data = int8.read_bytes()
    inputs = [_pixels(x, preprocessing) for x in tensors(arguments(example))]
    try:
        outputs = Session(data).outputs(tuple(inputs))
    except RuntimeError as error:
        raise ModelError(f"the file does not take the example of the run: {one_line(error)}") from error
    batch = "B" if _takes_any_batch(data, inputs) else str(len(inputs[0]))
    arrays = {f"input_{i}": x.numpy() for i, x in enumerate(inputs)}
    arrays |= {f"output_{i}": x.numpy() for i, x in enumerate(outputs)}
    vector = io.BytesIO()
    np.savez(vector, **arrays)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be made: {error}. Give another folder with --out") from error
    # B, or the only number of examples that the file takes
    shapes = {n: f"{a.dtype} | {' x '.join([batch, *map(str, a.shape[1:])])}" for n, a in arrays.items()}
    card = _card(record, preprocessing, shapes, size_bytes=len(data), int8=int8 is not None)
    contents = {
        "model.onnx": data, "labels.json": json.dumps(preprocessing.class_names).encode(),
        "predict.py": _PREDICT.encode(), "test_vector.npz": vector.getvalue(),
        "requirements.txt": b"numpy\nonnxruntime\npillow  # for images as files\n", "README.md": card.encode(),
    }  # fmt: skip
    edited = [n for n in NAMES if (out / n).exists() and (out / n).read_bytes() != contents[n]]
    if edited and not force:
        raise RunError(
            f"{out} holds a package with other contents in {', '.join(edited)}, and may hold what you filled in: "
            f"give another folder with --out, or --force to write over it"
        )
    for name in NAMES:
        files.write_bytes(out / name, contents[name], RunError)
    return {"folder": str(out), "files": [*NAMES], "size_bytes": len(data)}


def _pixels(x: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """The example as the file takes it: pixels, where the file normalizes."""
    if not preprocessing.mean:
        return x
    if x.dim() != 4 or x.shape[1] != len(preprocessing.mean):
        raise ConfigError(f"an example of {list(x.shape)} does not fit {len(preprocessing.mean)} channels")
    mean, std = (torch.tensor(c).view(-1, 1, 1) for c in (preprocessing.mean, preprocessing.std))
    return ((x * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _takes_any_batch(data: bytes, inputs: Sequence[torch.Tensor]) -> bool:
    try:
        Session(data).outputs(tuple(torch.cat([x, x]) for x in inputs))
    except RuntimeError:
        return False
    return True


def _price(record: Mapping[str, Any], size_bytes: int) -> str:
    """int8 beside float; a run records the figures of the file that it quantized last, which may be another."""
    rows = "\n".join(f"| {' | '.join(row)} |" for row in text.int8_rows(record))
    sizes = record["int8"].get("size_bytes") if rows else None
    if not isinstance(sizes, Mapping) or sizes.get("int8") != size_bytes:
        return (
            "\nQuantized to int8; the figures below are of the float network: those of this file are not recorded.\n"
        )
    return f"\nQuantized to int8:\n\n| | float | int8 |\n|---|---|---|\n{rows}\n"


def _card(
    record: Mapping[str, Any], preprocessing: Preprocessing, shapes: Mapping[str, str], *, size_bytes: int, int8: bool
) -> str:
    """The model card, in Markdown; `shapes` has type and shape of each array."""
    data = record.get("data") if isinstance(record.get("data"), dict) else {}
    parts = [
        f"{name} {part['size']:,}" for name in ("train", "valid", "test")
        if isinstance(part := (data or {}).get(name), dict) and isinstance(part.get("size"), int)
    ]  # fmt: skip
    taken = "\n".join(f"| {name} | {shape} |" for name, shape in shapes.items())
    classes = ", ".join(preprocessing.class_names)
    limits = [
        "Images are resized to the size above, without regard to their proportions." if preprocessing.mean else "",
        "It knows these classes alone, and gives one of them for any input." if classes else "",
        "The scores are of the data above; nothing is said of other data.",
        "Latency is of the machine that measured it.",
    ]
    price = _price(record, size_bytes) if int8 else ""
    listed = "\n".join(f"- {limit}" for limit in limits if limit)
    return f"""# {record.get("title") or "A network"}

A network in `model.onnx` ({size_bytes:,} bytes), found by archgrad ({record.get("method", "no method is recorded")}).

```bash
pip install -r requirements.txt
python predict.py --test        # reproduces test_vector.npz
python predict.py FILE          # {"an image, or " if preprocessing.mean else ""}an array .npy [1, ...]
```

## Inputs and outputs

| name in test_vector.npz | type | shape |
|---|---|---|
{taken}

Input range: {preprocessing.input_range}.{" Normalization is in the file." if preprocessing.mean else ""}
{f"Classes, in the order of the first output: {classes}." if classes else ""}

## Data

{", ".join(parts) or "The run does not say how many samples."}{" samples." if parts else ""}

## Figures
{price}
```
{text.plain(record, notes_too=False)}
```

## Limits

{listed}
"""
