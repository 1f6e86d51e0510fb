"""Pictures varied at random for the image tokenizer's training. All are [B, 3, H, W] in [-1, 1], on white."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from showo.devices import moved_to

# Of recoloured pictures, so many keep channels that are mostly those of before in another order; others get any mix.
_CLEAR_COLOURS, _MOST_MIXED = 0.7, 0.6
_PALEST, _STRONGEST = 0.7, 1.2


def augment(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Turns (15 degrees), scales (0.8 to 1.2), moves (6 pixels), mirrors and swaps colour channels of a share of
    the pictures, on white.
    """
    batch, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * moved_to(images.device, torch.rand(batch, generator=generator))

    angle = uniform(-math.pi / 12, math.pi / 12)
    scale = uniform(0.8, 1.2)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    matrix = [scale * angle.cos() * mirror, -scale * angle.sin(), uniform(-6, 6) * 2 / width,
              scale * angle.sin() * mirror, scale * angle.cos(), uniform(-6, 6) * 2 / height]  # fmt: skip
    theta = torch.stack(matrix, 1).view(batch, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images - 1, grid, align_corners=False) + 1  # zero padding of (image - 1) is white
    chosen = uniform(0, 1) < share
    swapped = chosen & (uniform(0, 1) < 0.3)
    out = torch.where(chosen[:, None, None, None], moved, images)
    order = moved_to(images.device, torch.randperm(3, generator=generator))
    return torch.where(swapped[:, None, None, None], out[:, order], out)


def recolour(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Gives a share of the pictures other colours. White stays white, what was equal stays equal.

    What a pixel lacks of white, its ink in three channels, is multiplied by a random 3x3 matrix of its picture.
    """
    batch = len(images)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator)

    mixed = uniform(3, 3)
    mixed = mixed / mixed.sum(1, keepdim=True) * (_PALEST + (_STRONGEST - _PALEST) * uniform(1, 3))
    order = torch.eye(3)[uniform(3).argsort(1)]
    part = torch.where(uniform(1, 1) < _CLEAR_COLOURS, _MOST_MIXED * uniform(1, 1), torch.ones(()))
    matrix = moved_to(images.device, order + part * (mixed - order))
    chosen = moved_to(images.device, uniform() < share)
    ink = torch.einsum("bchw,bcd->bdhw", (1 - images) / 2, matrix)
    return torch.where(chosen[:, None, None, None], 1 - 2 * ink.clamp(0, 1), images)


@dataclass(frozen=True)
class Seam:
    """How pairs of pictures are joined along a line between patches.

    first, second: int64 [pairs], which pictures lie before and after the line. cut: how many patches lie before the
    line. axis: 3 for a vertical line, 2 for a horizontal one. patch: pixels of a patch's side.
    """

    first: Tensor
    second: Tensor
    cut: int
    axis: int
    patch: int

    def join(self, images: Tensor) -> Tensor:
        """The joined pictures [pairs, 3, H, W]."""
        sizes = [self.cut * self.patch, images.shape[self.axis] - self.cut * self.patch]
        before, _ = images[self.first].split(sizes, self.axis)
        _, after = images[self.second].split(sizes, self.axis)
        return torch.cat([before, after], self.axis)


def seam(images: Tensor, patch: int, generator: torch.Generator) -> Seam:
    """A random line, the same for a quarter as many pairs as there are pictures (at least one), near the middle."""
    axis = 2 + int(torch.randint(2, (), generator=generator))
    patches = images.shape[axis] // patch
    cut = int(torch.randint(max(1, patches * 3 // 8), max(2, patches * 5 // 8 + 1), (), generator=generator))
    order = torch.randperm(len(images), generator=generator)
    pairs = max(1, len(images) // 4)
    return Seam(order[:pairs], order[-pairs:], cut, axis, patch)
