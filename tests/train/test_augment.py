"""Pictures varied at random: what changes, what must not, and how pairs are joined."""

import pytest
import torch

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
