from __future__ import annotations

import pytest
import torch
from torch import Tensor

from archgrad.errors import DataError
from archgrad.tasks.augmentation import Augmentation, brightness, crop, cutout, flip, mask, rotate


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


def test_rotation_turns_about_the_center_by_at_most_its_angle() -> None:
    x, center = torch.zeros(200, 1, 9, 15), torch.zeros(200, 1, 9, 15)
    center[:, 0, 4, 7] = 1.0
    x[:, 0, 4, 13] = 1.0  # six columns beside it
    assert torch.allclose(rotate(30)(center, torch.Generator())[:, 0, 4, 7], torch.ones(200), atol=1e-5)
    turned = rotate(30)(x, torch.Generator().manual_seed(0))[:, 0]
    rows, columns = torch.arange(9.0)[:, None] - 4, torch.arange(15.0)[None] - 7
    weight = turned.sum((1, 2))
    place = torch.stack([(turned * rows).sum((1, 2)), (turned * columns).sum((1, 2))], 1) / weight[:, None]
    angle = torch.atan2(place[:, 0], place[:, 1]).rad2deg()
    assert torch.allclose(place.norm(dim=1), torch.full((200,), 6.0), atol=0.3)
    assert angle.abs().max() <= 31
    assert angle.abs().max() > 25
    assert angle.min() < -20 < 20 < angle.max()


def test_brightness_is_one_factor_an_image() -> None:
    x = torch.rand(300, 2, 3, 4) + 0.5
    ratio = brightness(25)(x, torch.Generator().manual_seed(0)) / x
    assert torch.allclose(ratio, ratio[:, :1, :1, :1].expand_as(ratio), atol=1e-5)
    factors = ratio[:, 0, 0, 0]
    assert 0.75 <= factors.min() < 0.77
    assert 1.23 < factors.max() <= 1.25


@pytest.mark.parametrize(("axis", "length"), [("time", 9), ("frequency", 5)])
def test_masks_are_bands_of_every_width_at_every_place(axis: str, length: int) -> None:
    masked = mask(3, axis=axis)(torch.ones(2000, 2, 5, 9), torch.Generator().manual_seed(0))
    lines = masked[:, 0, 0] if axis == "time" else masked[:, 0, :, 0]
    full = lines[:, None, None, :] if axis == "time" else lines[:, None, :, None]
    assert torch.equal(masked, full.expand_as(masked))
    widths = (1 - lines).sum(1)
    assert set(widths.tolist()) == {0.0, 1.0, 2.0, 3.0}
    edges = (lines.diff(dim=1) != 0).sum(1) + (lines[:, 0] == 0) + (lines[:, -1] == 0)
    assert edges[widths > 0].unique().tolist() == [2], "one band"
    assert ((1 - lines).sum(0) > 0).all(), "everywhere"
    assert lines.shape[1] == length
