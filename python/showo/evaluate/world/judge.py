"""What is on a picture of the world: found by colour and by template, without any model.

    find_objects(picture)  ->  [FoundObject("star", "red", 20, 44), ...]

The picture is smoothed a little and cut into blobs, which are connected. A blob has the colour that most of its inside
is near to. How much of that colour every pixel in and around the blob holds is its outline; the outline is laid over
those of all shapes in all places nearby, and the best correlation says shape and place. A blob that resembles no shape
well enough is cut apart by colour, for two objects may touch. What then still resembles no shape, or has none of the
world's colours, is no object: it is reported without shape or colour, so that garbage is never called a star.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from showo.data.world.draw import draw_object
from showo.data.world.objects import COLOURS, SHAPES, SIDE, Object
from showo.data.world.scene import Scene
from showo.errors import UserError
from showo.evaluate.world.segments import WHITE, Bools, Floats, components, grown, inner, mixtures, smoothed

SPECK = 24  # pixels, once smoothed: what is smaller is noise, not an object
FAINTEST = 65.0  # of 442: how far from white a pixel of an object is at least; half as far as the palest colour
PALER = (90.0, 130.0, 180.0)  # likewise, for the parts of objects that blur has joined
# A blob has a colour if MOST of its inner pixels lie within FARTHEST of it (255 is the range of a channel). Blur mixes
# white into the inside of thin strokes, so that PALEST of the colour is enough.
MOST, FARTHEST, PALEST = 0.75, 60.0, 0.7
# The least correlation with a shape. Drawn objects reach 1.0, blurred ones (a Gaussian of 1.5 pixels) 0.97, halves of
# two different shapes put together 0.91 in the median, random blobs 0.84.
LEAST_LIKENESS = 0.94
WINDOW = 32  # pixels: side of the square in which outlines are compared; the largest object and the shifts fit in
REACH = 2  # pixels: how far an object's centre may lie from the middle of its blob's bounding box
NEAR = 3  # pixels: how far a found object may lie from its true place; the world's places are 4 pixels apart


@dataclass(frozen=True)
class FoundObject:
    """Something on a picture. shape or colour is None where it is none of the world's. x, y: the centre in pixels.

    likeness: correlation of its outline with that of the most similar shape, 1 at most.
    """

    shape: str | None
    colour: str | None
    x: int
    y: int
    likeness: float


def find_objects(picture: Image.Image) -> list[FoundObject]:
    """Everything on a picture that is not its white ground, from top to bottom.

    Raises UserError for a picture of another size than SIDE x SIDE.
    """
    if picture.size != (SIDE, SIDE):
        raise UserError(f"a picture of the world has {SIDE}x{SIDE} pixels, got {picture.width}x{picture.height}")
    pixels = smoothed(np.asarray(picture.convert("RGB"), np.float32))
    found = []
    for blob in components(_darker(pixels, FAINTEST), SPECK):
        whole = [_recognised(pixels, blob)]
        if whole[0].shape is None:
            cuts = [[_recognised(pixels, part) for part in parts] for parts in _cuts(pixels, blob)]
            whole = max([whole, *cuts], key=lambda things: sum(thing.shape is not None for thing in things))
        found += whole
    return sorted(found, key=lambda thing: (thing.y, thing.x))


def as_scene(found: Iterable[FoundObject]) -> Scene | None:
    """The scene that was found; None where something is no object of the world."""
    objects = []
    for thing in found:
        if thing.shape is None or thing.colour is None:
            return None
        objects.append(Object(thing.shape, thing.colour, thing.x, thing.y))
    return Scene(tuple(objects))


def shows(found: Iterable[FoundObject], scene: Scene) -> bool:
    """Whether what was found is the scene: the same objects, each within NEAR pixels of its place, and nothing else."""
    left = list(scene.objects)
    for thing in found:
        match = next((true for true in left if _is(thing, true)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _is(thing: FoundObject, true: Object) -> bool:
    near = max(abs(thing.x - true.x), abs(thing.y - true.y)) <= NEAR
    return near and (thing.shape, thing.colour) == (true.shape, true.colour)


def _darker(pixels: Floats, than: float) -> Bools:
    """Which pixels are farther from white."""
    return np.square(WHITE - pixels).sum(-1) > than**2


def _cuts(pixels: Floats, blob: Bools) -> Iterator[list[Bools]]:
    """Ways to cut a blob into parts: at what is pale, as between objects that blur has joined, and by colour."""
    for level in PALER:
        parts = components(blob & _darker(pixels, level), SPECK)
        if len(parts) > 1:
            yield [grown(part) & blob for part in parts]
    nearest = mixtures(pixels, _colours())[1].argmin(-1)
    yield [part for colour in np.unique(nearest[blob]) for part in components(blob & (nearest == colour), SPECK)]


def _recognised(pixels: Floats, mask: Bools) -> FoundObject:
    """What a blob is."""
    missed = np.quantile(mixtures(pixels[inner(mask)], _colours(), PALEST)[1], MOST, axis=0)
    colour = int(missed.argmin())
    row, column = _middle(mask)
    shapes, shifts, templates = _templates()
    likeness = templates @ _outline(pixels, mask, _colours()[colour], row, column)
    best = int(likeness.argmax())
    return FoundObject(
        shape=shapes[best] if likeness[best] >= LEAST_LIKENESS else None,
        colour=tuple(COLOURS)[colour] if missed[colour] <= FARTHEST else None,
        x=column + shifts[best][1],
        y=row + shifts[best][0],
        likeness=float(likeness[best]),
    )


def _middle(mask: Bools) -> tuple[int, int]:
    """Row and column of the middle of a blob's bounding box, rounded up."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0] + rows[-1] + 1) // 2, int(columns[0] + columns[-1] + 1) // 2


def _outline(pixels: Floats, mask: Bools, colour: Floats, row: int, column: int) -> Floats:
    """How much of a colour, against white, the pixels of a blob and its rim hold, in a window around (row, column).

    Returns float32 [WINDOW * WINDOW] of mean 0 and length 1.
    """
    top, left = row - WINDOW // 2, column - WINDOW // 2
    inside = np.s_[max(top, 0) : top + WINDOW, max(left, 0) : left + WINDOW]
    share = mixtures(pixels[inside], colour[None])[0][..., 0] * grown(mask)[inside]
    window = np.zeros((WINDOW, WINDOW), np.float32)
    window[max(-top, 0) :, max(-left, 0) :][: share.shape[0], : share.shape[1]] = share
    outline = window.ravel() - window.mean()
    return outline / max(float(np.linalg.norm(outline)), 1e-6)


@functools.cache
def _colours() -> Floats:
    return np.array(list(COLOURS.values()), np.float32)


@functools.cache
def _templates() -> tuple[list[str], list[tuple[int, int]], Floats]:
    """Shape, centre (rows and columns from the window's middle) and outline [n, WINDOW * WINDOW] of every template."""
    middle, black = SIDE // 2, np.array(COLOURS["black"], np.float32)
    shapes, shifts, outlines = [], [], []
    for shape in SHAPES:
        pixels = smoothed(np.asarray(draw_object(Object(shape, "black", middle, middle)), np.float32))
        (mask,) = components(_darker(pixels, FAINTEST))
        for down in range(-REACH, REACH + 1):
            for right in range(-REACH, REACH + 1):
                shapes.append(shape)
                shifts.append((down, right))
                outlines.append(_outline(pixels, mask, black, middle - down, middle - right))
    return shapes, shifts, np.stack(outlines)
