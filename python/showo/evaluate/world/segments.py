"""Which pixels of a picture on white ground belong together: smoothing, colours, connected components.

Everything here is NumPy on one picture. Pictures are float32 [H, W, 3] with 255 for white, colours float32 [K, 3].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Labels = NDArray[np.int64]

WHITE = np.float32(255)


def smoothed(picture: Floats) -> Floats:
    """A picture without the noise of single pixels: weights 1 2 1 / 4 down and across."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    for _ in range(2):  # down, then across
        padded = np.swapaxes(np.float32(0.25) * (padded[:-2] + padded[1:-1] + padded[1:-1] + padded[2:]), 0, 1)
    return padded


def mixtures(pixels: Floats, colours: Floats, palest: float = 0.0) -> tuple[Floats, Floats]:
    """Every pixel as a mixture of white with each of the colours: smooth edges and blur make such mixtures.

    pixels [..., 3]. Returns, both float32 [..., K], the share of the colour, `palest` to 1, that brings the mixture
    nearest to the pixel, and how far from the pixel that mixture is (255 is the range of a channel).
    """
    depth = WHITE - colours
    dark = WHITE - pixels
    share = np.clip(dark @ (depth / np.square(depth).sum(1, keepdims=True)).T, palest, 1)
    missed = np.sqrt(np.square(dark[..., None, :] - share[..., None] * depth).sum(-1))
    return share, missed


def components(mask: Bools, smallest: int = 1) -> list[Bools]:
    """Masks of the connected parts of a mask (eight neighbours) that have `smallest` pixels or more.

    The horizontal runs of every row are joined with those that they touch in the row before (union-find).
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = (places.tolist() for places in np.nonzero(edges == 1))
    ends = np.nonzero(edges == -1)[1].tolist()
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    above = 0  # the first run of the row before that may touch the current one
    for run, row in enumerate(rows):
        while rows[above] < row - 1 or (rows[above] == row - 1 and ends[above] < starts[run]):
            above += 1
        other = above
        while rows[other] == row - 1 and starts[other] <= ends[run]:
            parent[root(other)] = root(run)
            other += 1
    parts: dict[int, list[int]] = {}
    for run in range(len(rows)):
        parts.setdefault(root(run), []).append(run)
    found = []
    for runs in parts.values():
        if sum(ends[run] - starts[run] for run in runs) >= smallest:
            part = np.zeros_like(mask)
            for run in runs:
                part[rows[run], starts[run] : ends[run]] = True
            found.append(part)
    return found


def inner(mask: Bools) -> Bools:
    """A mask without its rim of two pixels (four neighbours, twice); the whole mask where nothing else is left."""
    core = mask
    for _ in range(2):
        padded = np.pad(core, 1)
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return core if core.any() else mask


def grown(mask: Bools) -> Bools:
    """A mask and its eight neighbours."""
    padded = np.pad(mask, 1)
    down = padded[:-2] | padded[1:-1] | padded[2:]
    return down[:, :-2] | down[:, 1:-1] | down[:, 2:]
