"""Places in an order known in advance, spread evenly over the picture (Halton scheduler, arXiv 2503.17076).

Codes that are drawn in one step do not see each other, so they should lie far apart. The points of the Halton sequence
do: point i = 1, 2, ... lies in the column of the base-2 radical inverse of i and in the row of its base-3 radical
inverse. A place's turn comes with the first point that falls on it. How many places a step settles is the schedule's;
tokens that were drawn stay.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from showo.engine.samplers.filling import Drawn, Filling, Prediction, Sampler
from showo.errors import UserError


def _cells(points: int, base: int, cells: int) -> np.ndarray:
    """int64 [points], floor(cells * radical inverse of i) for i = 1, ..., points, exact."""
    rest = np.arange(1, points + 1)
    mirrored, scale = np.zeros_like(rest), 1
    while rest.any():
        rest, digit = rest // base, rest % base
        mirrored, scale = mirrored * base + digit, scale * base
    return mirrored * cells // scale


def halton_order(height: int, width: int) -> Tensor:
    """int64 [height * width], the numbers of the places (row by row) in their order."""
    points = 4 * height * width
    while True:
        place, first = np.unique(_cells(points, 3, height) * width + _cells(points, 2, width), return_index=True)
        if len(place) == height * width:
            return torch.from_numpy(place[np.argsort(first)])
        points *= 2


def _square(places: int) -> tuple[int, int]:
    side = math.isqrt(places)
    if side * side != places:
        raise UserError(f"sampler halton: {places} codes are no square: give the grid")
    return side, side


class Halton(Sampler):
    """settled: bool [steps, B, N], the places whose token each step draws; wanted: of each step the same, int64 [B, n],
    where n is that of the row with most, and the other rows have places besides that are not drawn.
    """

    def __init__(self, filling: Filling) -> None:
        device = filling.canvas.device
        order = halton_order(*(filling.grid or _square(filling.canvas.shape[1]))).to(device)
        masked = filling.canvas == filling.mask_id
        turn = torch.empty_like(filling.canvas)
        turn[:, order] = masked[:, order].cumsum(1) - 1  # how many masked places come before a place
        unknown, lengths = filling.unknown(), filling.mask_lengths()
        left = [unknown, *lengths[:-1], [0] * len(unknown)]  # [steps + 1][B], masked before each step and at last
        done = filling.on_device([[a - b for a, b in zip(unknown, row, strict=True)] for row in left], torch.int64)
        done = done[..., None]
        self.filling = filling
        self.settled = masked & (done[:-1] <= turn) & (turn < done[1:])
        most = [max(a - b for a, b in zip(*rows, strict=True)) for rows in pairwise(left)]
        first = (~self.settled).int().argsort(dim=2, stable=True)
        self.wanted = [order[:, :count] for order, count in zip(first, most, strict=True)]
        self.numbers = torch.arange(filling.steps, device=device)

    def places(self, step: int) -> Tensor:
        return self.wanted[step]

    def step(self, step: int, prediction: Prediction, canvas: Tensor) -> Drawn:
        return self.filling.draw_at(self.settled[step], step, self.numbers[step], prediction, canvas)
