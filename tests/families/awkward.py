"""Small networks in which channels meet in unusual ways; a wrong removal would be easy and silent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from families.convolutional import Trunk, conv_norm_act
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class TwoInputs(nn.Module):
    """Late fusion of an image and a vector by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = conv_norm_act(3, 8), nn.Linear(4, 6)
        self.fuse, self.head = nn.Linear(14, 10), nn.Linear(10, 5)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        both = torch.cat([self.image(image).mean((2, 3)), F.relu(self.vector(vector))], dim=1)
        return self.head(F.relu(self.fuse(both)))


class TwoOutputs(nn.Module):
    """Class scores and a mask, as a tuple or as a dictionary."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.named = named
        self.trunk = nn.Sequential(conv_norm_act(3, 8), conv_norm_act(8, 10))
        self.mask, self.fc = nn.Conv2d(10, 2, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        x = self.trunk(x)
        scores, mask = self.fc(x.mean((2, 3))), self.mask(x)
        return {"scores": scores, "mask": mask} if self.named else (scores, mask)


class FeaturesOut(nn.Module):
    """Returns hidden features too: their layer may not be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = conv_norm_act(3, 8), conv_norm_act(8, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.second(self.first(x))
        return self.fc(features.mean((2, 3))), features


class Reused(nn.Module):
    """One convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = conv_norm_act(3, 8), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.fc = conv_norm_act(8, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.again(F.relu(self.again(self.stem(x)))))
        return self.fc(self.last(x).mean((2, 3)))


class HardView(nn.Module):
    """A reshape with the number of channels written in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = (
            conv_norm_act(3, 8),
            nn.Conv2d(8, 64, 3, padding=1),
            nn.Linear(64, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.second(self.first(x))).view(x.shape[0], 64, -1).mean(-1))


class SpatialAttention(nn.Module):
    """CBAM: a map from the mean and the maximum over channels, which a closed channel would still enter."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.map(both))


class Softmaxed(nn.Module):
    """A softmax over channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.softmax(1)


class Normalized(nn.Module):
    """Unit length over channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


def mixing_channels(mixer: nn.Module) -> nn.Module:
    return Trunk(conv_norm_act(3, 8), [conv_norm_act(8, 6), mixer, conv_norm_act(6, 10)], 10)


class Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, breadth = x.shape
        x = x.view(batch, self.groups, width // self.groups, height, breadth)
        return x.transpose(1, 2).reshape(batch, width, height, breadth)


def channel_shuffle() -> nn.Module:
    blocks = [conv_norm_act(8, 12, 1, groups=2), Shuffle(2), conv_norm_act(12, 12, groups=12)]
    return Trunk(conv_norm_act(3, 8), [*blocks, conv_norm_act(12, 8, 1, groups=2), conv_norm_act(8, 10, 1)], 10)


def pixel_shuffle() -> nn.Module:
    return Trunk(conv_norm_act(3, 8), [nn.Conv2d(8, 24, 3, padding=1), nn.PixelShuffle(2), conv_norm_act(6, 10)], 10)


class Parametrized(nn.Module):
    """Weight norm and spectral norm as parametrizations, next to plain layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_norm_act(3, 8)
        self.second = parametrizations.weight_norm(nn.Conv2d(8, 10, 3))
        self.third = conv_norm_act(10, 12)
        self.fourth = parametrizations.spectral_norm(nn.Linear(12, 10))
        self.fifth, self.fc = nn.Linear(10, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(F.relu(self.second(self.first(x)))).mean((2, 3))
        return self.fc(F.gelu(self.fifth(F.gelu(self.fourth(x)))))


class HookedNorm(nn.Module):
    """Spectral norm as a forward hook that rewrites the weight before each call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_norm_act(3, 8), nn.utils.spectral_norm(nn.Conv2d(8, 10, 3))
        self.third, self.fc = conv_norm_act(10, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.third(F.relu(self.second(self.first(x)))).mean((2, 3)))


class GatedLinear(nn.Module):
    """Half of the channels scale the other half."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=1)
        return value * torch.sigmoid(gate)


def gated_linear() -> nn.Module:
    return Trunk(conv_norm_act(3, 8), [nn.Conv2d(8, 12, 3), GatedLinear(), conv_norm_act(6, 10)], 10)


class Split(nn.Module):
    """Part of the channels goes through a layer, part goes round it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv_norm_act(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :4], self.conv(x[:, 4:])], 1)


def split() -> nn.Module:
    return Trunk(conv_norm_act(3, 8), [Split(), conv_norm_act(8, 10)], 10)


class Scaled(nn.Module):
    """A factor and a shift for each channel: a parameter, a buffer, and one viewed by a shape that it keeps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.randn(width, 1, 1))
        self.register_buffer("shift", torch.randn(1, width, 1, 1))
        self.slope, self.shape = nn.Parameter(torch.randn(width)), (width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + self.shift + x.tanh() * self.slope.view(self.shape)


def scaled() -> nn.Module:
    return Trunk(conv_norm_act(3, 8), [Scaled(8), conv_norm_act(8, 10)], 10)


class Noisy(nn.Module):
    """Dropout as a function: no module to switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = conv_norm_act(3, 8), conv_norm_act(8, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.dropout(self.first(x), 0.3, self.training)).mean((2, 3))
        return self.fc(F.dropout(x, 0.5, self.training))


class Recurrent(nn.Module):
    """A recurrent layer between linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.gru = nn.Linear(6, 8), nn.GRU(8, 7, batch_first=True)
        self.middle, self.head = nn.Linear(7, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.middle(self.gru(F.relu(self.inlet(x)))[0][:, -1])))
