"""Encoders of one kind of input, sized from the input alone, as parts of the space `archgrad.fusion`.

An encoder is a sequence of blocks; each is an operation with BatchNorm, an activation, and a reduction of the size.
All of these are choices: see `Encoder`. The space is ours; that of the paper (RandomNet, arXiv 2003.01181) is not
known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.modules import Choice, InputChoice, OpChoice, mixture, scaled
from archgrad.errors import ConfigError, ModelError

# Channels of the blocks, one after another; the last is that of all further blocks.
WIDTHS: Mapping[str, tuple[int, ...]] = {
    "8": (8,), "16": (16,), "32": (32,), "8 doubling": (8, 16, 32, 64), "16 doubling": (16, 32, 64),
}  # fmt: skip
FACTORS = {1: 4, 2: 2}  # by which a block makes sound and images shorter
MOST = 5
GRID = 4  # places a side that an encoder's last map is averaged to


@dataclass(frozen=True)
class InputForm:
    """The form of one input; made by `image_encoder` and the like.

    Attributes:
        kind: what it is called in messages.
        channels: of [B, channels, ...].
        dims: 2 for images and spectrograms, 1 for sound, 0 for vectors.
        size: the last dimensions, where they are known.
        blocks: the fewest and most blocks that an encoder may have.
    """

    kind: str
    channels: int
    dims: int
    size: tuple[int, ...] | None
    blocks: tuple[int, int]

    @property
    def smallest(self) -> int:
        """The least side that the shortest encoder still halves in each block."""
        return int(FACTORS.get(self.dims, 1) ** self.blocks[0])

    def check(self, x: Tensor, name: str) -> None:
        """Raise ModelError where an input does not fit."""
        shown = ("[B, C, H, W]", "[B, C, L]", "[B, F]")[2 - self.dims]
        if x.dim() != self.dims + 2 or x.shape[1] != self.channels:
            raise ModelError(
                f"input {name!r} is {list(x.shape)}; its encoder takes {shown} with {self.channels} for the second"
            )
        _refuse_small(self, tuple(x.shape[2:]), name)


@checked
def image_encoder(
    channels: int, *, size: tuple[int, int] | None = None, blocks: tuple[int, int] = (2, 4)
) -> InputForm:
    """The encoder of images [B, channels, H, W], H and W odd or even, for `archgrad.fusion`.

    Args:
        channels: of the images.
        size: height and width; then no encoder has more blocks than they can be halved.
        blocks: the fewest and most blocks.

    Raises:
        ConfigError: numbers that make no encoder, or a size below 2 ** blocks[0].

    Example:
        >>> import archgrad as ag
        >>> space = ag.fusion({"photo": ag.image_encoder(3, size=(32, 32))}, classes=10)
        >>> ag.image_encoder(3, size=(4, 4)).blocks
        (2, 2)
    """
    return _form("images", channels, 2, size, blocks)


@checked
def audio_encoder(
    channels: int, *, size: tuple[int, int] | None = None, blocks: tuple[int, int] = (2, 5)
) -> InputForm:
    """The encoder of spectrograms [B, channels, frequencies, times]; otherwise as `image_encoder`.

    Example:
        >>> import archgrad as ag
        >>> space = ag.fusion({"sound": ag.audio_encoder(1, blocks=(2, 3))}, classes=10)
    """
    return _form("spectrograms", channels, 2, size, blocks)


@checked
def waveform_encoder(channels: int = 1, *, length: int | None = None, blocks: tuple[int, int] = (2, 5)) -> InputForm:
    """The encoder of sound [B, channels, samples], a quarter as long behind each block, for `archgrad.fusion`.

    Raises:
        ConfigError: numbers that make no encoder, or fewer samples than 4 ** blocks[0].

    Example:
        >>> import archgrad as ag
        >>> space = ag.fusion({"sound": ag.waveform_encoder(length=8000)}, classes=10)
    """
    return _form("sound", channels, 1, None if length is None else (length,), blocks)


@checked
def vector_encoder(features: int, *, blocks: tuple[int, int] = (2, 3)) -> InputForm:
    """The encoder of vectors [B, features], for `archgrad.fusion`.

    Raises:
        ConfigError: numbers that make no encoder.

    Example:
        >>> import archgrad as ag
        >>> space = ag.fusion({"patient": ag.vector_encoder(12)}, classes=2)
    """
    return _form("vectors", features, 0, None, blocks)


def form_of(x: Tensor) -> InputForm:
    """The encoder for inputs of the dimensions and size of an example [B, ...].

    Raises:
        ConfigError: an input of other dimensions, or too small.
    """
    if not 2 <= x.dim() <= 4:
        raise ConfigError(
            f"an input of shape {list(x.shape)}: give vectors [B, F], sound [B, C, L], or images or spectrograms "
            f"[B, C, H, W]"
        )
    kind = ("vectors", "sound", "images")[x.dim() - 2]
    return _form(kind, x.shape[1], x.dim() - 2, tuple(x.shape[2:]) or None, (2, MOST if x.dim() > 2 else 3))


def _form(kind: str, channels: int, dims: int, size: tuple[int, ...] | None, blocks: tuple[int, int]) -> InputForm:
    numbers = (channels, *(size or ()), *blocks)
    if not all(type(n) is int and n >= 1 for n in numbers) or len(blocks) != 2 or blocks[0] > blocks[1]:
        raise ConfigError(
            f"an encoder of {kind} with channels or features {channels}, size {size} and blocks {blocks}: give whole "
            f"numbers from 1, and the fewest blocks before the most"
        )
    form = InputForm(kind, channels, dims, size, blocks)
    if size is None or not dims:
        return form
    if len(size) != dims:
        raise ConfigError(f"an encoder of {kind} with the size {size}: give {dims} numbers")
    _refuse_small(form, size, kind)
    halvings = 1
    while FACTORS[dims] ** (halvings + 1) <= min(size):
        halvings += 1
    return InputForm(kind, channels, dims, size, (blocks[0], max(blocks[0], min(blocks[1], halvings))))


def _refuse_small(form: InputForm, size: tuple[int, ...], name: str) -> None:
    if size and min(size) < form.smallest:
        raise ModelError(
            f"{name}: {' x '.join(map(str, size))} is too small for the shallowest encoder, of {form.blocks[0]} "
            f"blocks, each of which leaves 1/{FACTORS[form.dims]} of a side: the least is {form.smallest}. Give "
            f"larger inputs, an encoder with fewer blocks, or vectors"
        )


class Encoder(nn.Module):
    """All encoders of one input.

    Choices, N being the input's name: "N.width" (channels), "N.depth" (blocks), "N.block1" ... (operation),
    "N.activation" and "N.shrink". Those of the blocks are shared by all widths.

    Args:
        form: of the input.
        name: of the input.
        features: d, the size of what it puts out.
        widths: {label: channels of the blocks}.
        levels: how many blocks from the first on are read by a fusion before the end.
    """

    def __init__(
        self, form: InputForm, *, name: str, features: int, widths: Mapping[str, Sequence[int]], levels: int
    ) -> None:
        super().__init__()
        self.form, self.name, self.levels = form, name, levels
        self.width = OpChoice(list(widths), name=f"{name}.width")
        self.same = nn.Identity()
        self.trunks = nn.ModuleList(
            Trunk(form, name=name, features=features, widths=each, levels=levels) for each in widths.values()
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """What the last block says, and each of the first `levels` blocks: [B, d] each; x is [B, C, ...]."""
        known: dict[int, list[Tensor]] = {}

        def mixed(place: int) -> Tensor:
            def run(i: int, weight: Tensor | float) -> Tensor:
                if i not in known:
                    known[i] = self.trunks[i](x)
                return scaled(self.same, (known[i][place],), weight)

            choice = self.width
            return mixture(
                choice.ready(), run, alive=choice.alive(), labels=choice.labels,
                name=lambda: f"choice {choice.name!r}",
            )  # fmt: skip

        return [mixed(place) for place in range(1 + self.levels)]

    def mixing_terms(self, path: str) -> list[list[tuple[Choice, int]]]:
        """What scales the work of a module at `path` below this one: its width."""
        first, _, rest = path.partition(".")
        return [[(self.width, int(rest.partition(".")[0]))]] if first == "trunks" else [[]]


class Trunk(nn.Module):
    """The encoders of one width."""

    def __init__(self, form: InputForm, *, name: str, features: int, widths: Sequence[int], levels: int) -> None:
        super().__init__()
        fewest, most = form.blocks
        channels = [form.channels, *(widths[min(i, len(widths) - 1)] for i in range(most))]
        self.fewest = fewest
        self.blocks = nn.ModuleList(
            _block(form.dims, channels[i], channels[i + 1], name=name, number=i + 1) for i in range(most)
        )
        self.levels = nn.ModuleList(_summary(form.dims, channels[i + 1], features) for i in range(levels))
        ends = [_summary(form.dims, channels[i], features) for i in range(fewest, most + 1)]
        self.depth = InputChoice(len(ends), name=f"{name}.depth", edges=ends)

    def forward(self, x: Tensor) -> list[Tensor]:
        """As `Encoder`; blocks behind the last that is read are not run."""
        maps: list[Tensor] = []
        for block in self.blocks[: self._reach()]:
            x = block(x)
            maps.append(x)
        ends = maps[self.fewest - 1 :]
        ends += ends[-1:] * (self.depth.size - len(ends))
        return [self.depth(ends), *(level(m) for level, m in zip(self.levels, maps, strict=False))]

    def _reach(self) -> int:
        weights = self.depth.ready()
        if weights.requires_grad:
            return len(self.blocks)
        used = weights.reshape(-1, self.depth.size).any(dim=0).nonzero().flatten().tolist()
        return self.fewest + max(used, default=0)

    def mixing_terms(self, path: str) -> list[list[tuple[Choice, int]]]:
        """What scales the work of a module at `path` below this one: a block runs for every depth from its own on."""
        first, _, rest = path.partition(".")
        behind = int(rest.partition(".")[0]) - self.fewest + 1 if first == "blocks" else 0
        return [[(self.depth, i)] for i in range(behind, self.depth.size)] if behind > 0 else [[]]


def _block(dims: int, inputs: int, outputs: int, *, name: str, number: int) -> nn.Sequential:
    norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[dims]
    operations = {
        label: nn.Sequential(make(dims, inputs, outputs), norm(outputs))
        for label, make in OPERATIONS[dims > 0].items()
    }
    parts: list[nn.Module] = [
        OpChoice(operations, name=f"{name}.block{number}"),
        OpChoice({"relu": nn.ReLU(), "silu": nn.SiLU(), "tanh": nn.Tanh()}, name=f"{name}.activation"),
    ]
    if dims:
        factor = FACTORS[dims]
        pool = (nn.MaxPool1d, nn.MaxPool2d)[dims - 1](factor, ceil_mode=True)
        stride = _conv(dims)(outputs, outputs, factor + 1, stride=factor, padding=factor // 2, groups=outputs)
        parts.append(OpChoice({"pool": pool, "stride": stride}, name=f"{name}.shrink"))
    return nn.Sequential(*parts)


def _summary(dims: int, channels: int, features: int) -> nn.Sequential:
    """From a map [B, C, ...] to [B, d]: averages over a few places, and a linear layer."""
    pools: dict[int, Callable[[], nn.Module]] = {
        0: nn.Identity, 1: lambda: nn.AdaptiveAvgPool1d(GRID**2), 2: lambda: nn.AdaptiveAvgPool2d(GRID),
    }  # fmt: skip
    return nn.Sequential(pools[dims](), nn.Flatten(), nn.Linear(channels * (GRID**2 if dims else 1), features))


class _Residual(nn.Module):
    """body(x) + shortcut(x)"""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)  # type: ignore[no-any-return]


def _conv(dims: int) -> type[nn.Conv1d | nn.Conv2d]:
    return nn.Conv1d if dims == 1 else nn.Conv2d


def _plain(kernel: int, *, dilation: int = 1) -> Callable[[int, int, int], nn.Module]:
    def make(dims: int, inputs: int, outputs: int) -> nn.Module:
        return _conv(dims)(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation)

    return make


def _separable(dims: int, inputs: int, outputs: int) -> nn.Module:
    conv = _conv(dims)
    return nn.Sequential(conv(inputs, inputs, 3, padding=1, groups=inputs), conv(inputs, outputs, 1))


def _residual(dims: int, inputs: int, outputs: int) -> nn.Module:
    def layer(a: int, b: int) -> nn.Module:
        return _conv(dims)(a, b, 3, padding=1) if dims else nn.Linear(a, b)

    straight = _conv(dims)(inputs, outputs, 1) if dims else nn.Linear(inputs, outputs)
    body = nn.Sequential(layer(inputs, outputs), nn.ReLU(), layer(outputs, outputs))
    return _Residual(body, nn.Identity() if inputs == outputs else straight)


def _pooled(dims: int, inputs: int, outputs: int) -> nn.Module:
    pool = (nn.MaxPool1d, nn.MaxPool2d)[dims - 1](3, stride=1, padding=1)
    return nn.Sequential(pool, _conv(dims)(inputs, outputs, 1))


OPERATIONS: dict[bool, dict[str, Callable[[int, int, int], nn.Module]]] = {
    True: {
        "conv3": _plain(3), "conv5": _plain(5), "dilated3": _plain(3, dilation=2), "separable3": _separable,
        "residual3": _residual, "pool": _pooled,
    },
    False: {"linear": lambda _, inputs, outputs: nn.Linear(inputs, outputs), "residual": _residual},
}  # fmt: skip
