from __future__ import annotations

import pytest
import torch
from torch import Tensor

from archgrad.errors import DataError
from archgrad.tasks.augmentation import Augmentation, crop, cutout, flip


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_crop(x: Tensor, padding: int, draws: torch.Generator) -> Tensor:
    count, channels, height, width = x.shape
    top = torch.randint(2 * padding + 1, (count,), generator=draws)
    left = torch.randint(2 * padding + 1, (count,), generator=draws)
    out = torch.zeros_like(x)
    for i in range(count):
        big = torch.zeros(channels, height + 2 * padding, width + 2 * padding)
        big[:, padding : padding + height, padding : padding + width] = x[i]
        out[i] = big[:, top[i] : top[i] + height, left[i] : left[i] + width]
    return out


def slow_flip(x: Tensor, draws: torch.Generator) -> Tensor:
    mirrored = torch.randint(2, (len(x),), generator=draws)
    return torch.stack([image.flip(-1) if m else image for image, m in zip(x, mirrored, strict=True)])


def slow_cutout(x: Tensor, size: int, draws: torch.Generator) -> Tensor:
    count, _, height, width = x.shape
    row = torch.randint(height, (count,), generator=draws)
    column = torch.randint(width, (count,), generator=draws)
    out = x.clone()
    for i in range(count):
        top, left = int(row[i]) - size // 2, int(column[i]) - size // 2
        out[i, :, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
    return out


CASES = [
    (crop(3), lambda x, g: slow_crop(x, 3, g)),
    (crop(12), lambda x, g: slow_crop(x, 12, g)),
    (flip(), slow_flip),
    (cutout(4), lambda x, g: slow_cutout(x, 4, g)),
    (cutout(5), lambda x, g: slow_cutout(x, 5, g)),
]


@pytest.mark.parametrize(("augmentation", "slow"), CASES, ids=[str(case[0]) for case in CASES])
def test_equals_the_slow_reference(augmentation: Augmentation, slow) -> None:
    x = torch.randn(40, 3, 9, 7)
    before = x.clone()
    out = augmentation(x, generator(5))
    assert torch.equal(out, slow(x, generator(5)))
    assert torch.equal(x, before), "the batch given is not changed in place"
    # Negative control: other draws give other pictures, so equality above is not for want of an effect.
    assert not torch.equal(out, slow(x, generator(6)))
    assert not torch.equal(out, x)


def test_uint8_and_names() -> None:
    x = torch.randint(0, 256, (8, 1, 6, 6), dtype=torch.uint8)
    for augmentation in (crop(2), flip(), cutout(3)):
        assert augmentation(x, generator(0)).dtype == torch.uint8
    assert [repr(each) for each in (crop(2), flip(), cutout(3))] == ["crop(2)", "flip()", "cutout(3)"]


def test_flip_is_fair_and_crop_reaches_every_offset() -> None:
    x = torch.arange(4.0).expand(2000, 1, 1, 4)
    share = (flip()(x, generator(0))[:, 0, 0, 0] == 3).float().mean()
    assert abs(float(share) - 0.5) < 0.05
    point = torch.zeros(2000, 1, 5, 5)
    point[:, :, 2, 2] = 1
    assert bool((crop(2)(point, generator(0)).sum(0) > 0).all())


def test_refuses_other_shapes_and_sizes() -> None:
    with pytest.raises(DataError, match=r"flip\(\) augments images \[B, C, H, W\].*\(3, 4\)"):
        flip()(torch.zeros(3, 4), generator(0))
    with pytest.raises(DataError, match="inputs given are tuple"):
        crop(1)((torch.zeros(1, 1, 2, 2),), generator(0))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="padding is a whole number"):
        crop(0)
    with pytest.raises(DataError, match="size is a whole number"):
        cutout(2.5)  # type: ignore[arg-type]
