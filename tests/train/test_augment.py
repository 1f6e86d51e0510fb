"""Pictures varied at random: what changes, what must not, and how pairs are joined."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from showo.train.augment import augment, recolour, seam


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))


def test_augmentation_keeps_the_range_and_the_untouched() -> None:
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(augment(images, 0.0, generator), images)
    moved = augment(images, 1.0, generator)
    assert not torch.equal(moved, images)
    assert moved.min() >= -1 - 1e-6
    assert moved.max() <= 1 + 1e-6


def maps(count: int, height: int, width: int) -> Tensor:
    """Pictures whose first two channels say where a pixel is, in (-1, 1) of the width and of the height."""
    x, y = (torch.arange(size).mul(2).add(1).div(size).sub(1) for size in (width, height))
    channels = x.expand(height, width) / 4, y[:, None].expand(height, width) / 4 + 0.5, -0.5 * torch.ones(height, width)
    return torch.stack(channels).expand(count, 3, height, width)


def ways(images: Tensor) -> tuple[Tensor, Tensor]:
    """Of changed maps [B, 3, H, W]: affine maps [B, 2, 3] from their pixels to those before, and int64 [B, 3], which
    channels these now have. In the middle nothing comes from beyond the picture, and what is linear stays exact.
    """
    batch, _, height, width = images.shape
    middle = images[:, :, height // 4 : -(height // 4), width // 4 : -(width // 4)]
    x, y = maps(1, height, width)[0, :2, height // 4 : -(height // 4), width // 4 : -(width // 4)].flatten(1).double()
    known = torch.stack([4 * x, 4 * y - 2, torch.ones_like(x)], 1)  # [pixels, 3]
    found = torch.linalg.lstsq(known.expand(batch, -1, -1), middle.flatten(2).double().mT).solution.mT
    assert (known @ found.mT - middle.flatten(2).double().mT).abs().max() < 1e-5
    channels = torch.tensor([0, 1, 2])[(2 * found[:, :, 2]).round().long()]
    ordered = found.gather(1, channels.argsort(1)[:, :, None].expand(-1, -1, 3))
    ordered[:, 1, 2] -= 0.5
    return 4 * ordered[:, :2], channels


def test_augmentation_turns_scales_moves_mirrors_and_swaps() -> None:
    height, width, count = 48, 64, 100
    moved, channels = zip(*(ways(augment(maps(count, height, width), 1.0, generator())) for _ in range(8)))
    across, down, shift = torch.cat(moved).unbind(2)
    scale = down.norm(dim=1)
    torch.testing.assert_close(across.norm(dim=1), scale, rtol=1e-4, atol=0)
    assert (across * down).sum(1).abs().max() < 1e-4  # squares stay squares
    mirrored = across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0] < 0
    degrees = torch.rad2deg(torch.atan2(-down[:, 0], down[:, 1]))
    pixels = shift * torch.tensor([width / 2, height / 2])
    for values, low, high in ((degrees, -15, 15), (scale, 0.8, 1.2), *((each, -6, 6) for each in pixels.T)):
        near = (high - low) / 20
        assert low - 1e-3 < values.min() < low + near
        assert high - near < values.max() < high + 1e-3
    assert 0.4 < mirrored.float().mean() < 0.6
    swapped = [(each != torch.arange(3)).any(1).float().mean() for each in channels]
    seen = [float(share) for share in swapped if share]  # none is where the drawn order is the one before
    assert 0.2 < sum(seen) / len(seen) < 0.4
    assert torch.equal(augment(torch.ones(2, 3, 32, 32), 1.0, generator()), torch.ones(2, 3, 32, 32))  # white stays


def test_the_share_of_augmented_pictures() -> None:
    images = maps(400, 16, 16)
    changed = (augment(images, 0.3, generator()) != images).flatten(1).any(1).float().mean()
    assert 0.2 < changed < 0.4


def test_most_recoloured_pictures_keep_channels_in_some_order() -> None:
    """Of pictures of three pixels, with all ink in one channel each."""
    inks = torch.eye(3).expand(1000, 3, 3)[:, :, None]  # [B, channel, 1, pixel]
    mixed = (1 - recolour(1 - 2 * inks, 1.0, generator())[:, :, 0]) / 2  # [B, channel, pixel]
    most, which = mixed.max(2)
    clear = most.min(1).values > 0.85
    assert 0.08 < clear.float().mean() < 0.4  # a little mixed; the others more
    assert {*permutations(range(3))} <= {*map(tuple, which[clear].tolist())}
    assert most.min() < 0.5


def test_recolouring_keeps_white_and_equal_pixels_and_the_range() -> None:
    colours = torch.rand(6, 3, 2) * 2 - 1
    which = torch.randint(2, (6, 8, 8))
    images = torch.where(which[:, None] == 0, colours[:, :, :1, None], colours[:, :, 1:, None])
    images[:, :, :, :3] = 1
    changed = recolour(images, 1.0, generator())
    torch.testing.assert_close(changed[:, :, :, :3], images[:, :, :, :3])
    for picture, before in zip(changed, which):
        for part in (0, 1):
            assert picture[:, :, 3:][:, before[:, 3:] == part].unique(dim=1).shape[1] <= 1
    assert (changed - images).abs().amax((1, 2, 3)).min() > 0.01
    assert changed.abs().max() <= 1


def test_the_share_of_recoloured_pictures() -> None:
    images = torch.rand(400, 3, 2, 2) * 2 - 1
    changed = (recolour(images, 0.3, generator()) != images).flatten(1).any(1).float().mean()
    assert 0.2 < changed < 0.4
    assert torch.equal(recolour(images, 0.0, generator()), images)


def test_pictures_are_recoloured_each_in_its_own_way() -> None:
    images = (torch.rand(1, 3, 4, 4) * 2 - 1).expand(5, -1, -1, -1)
    assert recolour(images, 1.0, generator()).unique(dim=0).shape[0] == 5


@pytest.mark.parametrize("count", [1, 2, 16])
def test_a_seam_joins_two_pictures_between_patches(count: int) -> None:
    axes = set()
    for _ in range(20):
        images = torch.rand(count, 3, 32, 40)
        line = seam(images, 8, generator())
        axes.add(line.axis)
        assert len(line.first) == len(line.second) == max(1, count // 4)
        assert 1 <= line.cut < images.shape[line.axis] // 8
        joined = line.join(images).movedim(line.axis, 1)
        before, after = images[line.first].movedim(line.axis, 1), images[line.second].movedim(line.axis, 1)
        assert torch.equal(joined[:, : 8 * line.cut], before[:, : 8 * line.cut])
        assert torch.equal(joined[:, 8 * line.cut :], after[:, 8 * line.cut :])
        if count > 1:
            assert not (line.first == line.second).any()
    assert axes == {2, 3}
