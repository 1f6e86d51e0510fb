"""What is on a picture of the world: found by colour and by template, without any model.

    find_objects(picture)  ->  [FoundObject("star", "red", 20, 44), ...]

The picture is smoothed a little and cut into blobs, which are connected. A blob has the colour that most of its inside
is near to. How much of that colour every pixel in and around the blob holds is its outline; the outline is laid over
those of all shapes in all places nearby, and the best correlation says shape and place. An emoji is found likewise, by
how dark every pixel is in each channel: it has no colour. A blob that resembles nothing of the world
well enough is cut apart by colour, for two objects may touch. What then still resembles no shape, or has none of the
world's colours, is no object: it is reported without shape or colour, so that garbage is never called a star.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from showo.data.world.draw import draw_object
from showo.data.world.objects import COLOURS, EMOJI, SHAPES, SIDE, Object
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
# Likewise with an emoji. Drawn ones reach 1.0, blurred ones 0.90 (umbrella) to 0.99, other emoji and drawn shapes 0.92.
LEAST_EMOJI_LIKENESS = 0.9
WINDOW = 32  # pixels: side of the square in which outlines are compared; the largest object and the shifts fit in
REACH = 2  # pixels: how far an object's centre may lie from the middle of its blob's bounding box
NEAR = 3  # pixels: how far a found object may lie from its true place; the world's places are 4 pixels apart


@dataclass(frozen=True)
class FoundObject:
    """Something on a picture. shape or colour is None where it is none of the world's; an emoji has no colour.

    x, y: the centre in pixels. likeness: correlation with the most similar shape or emoji, 1 at most.
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
        if thing.shape is None or (thing.colour is None) != (thing.shape in EMOJI):
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
    shape, down, right, likeness = _likest(_shape_templates(), _outline(pixels, mask, _colours()[colour], row, column))
    emoji, *place, emoji_likeness = _likest(_emoji_templates(), _darkness(pixels, mask, row, column))
    if emoji_likeness >= max(LEAST_EMOJI_LIKENESS, likeness):
        return FoundObject(emoji, None, column + place[1], row + place[0], emoji_likeness)
    return FoundObject(
        shape=shape if likeness >= LEAST_LIKENESS else None,
        colour=tuple(COLOURS)[colour] if missed[colour] <= FARTHEST else None,
        x=column + right,
        y=row + down,
        likeness=likeness,
    )


def _middle(mask: Bools) -> tuple[int, int]:
    """Row and column of the middle of a blob's bounding box, rounded up."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0] + rows[-1] + 1) // 2, int(columns[0] + columns[-1] + 1) // 2


def _outline(pixels: Floats, mask: Bools, colour: Floats, row: int, column: int) -> Floats:
    """How much of a colour, against white, the pixels around (row, column) hold: [WINDOW * WINDOW], of mean 0."""
    share = _window(mixtures(pixels, colour[None])[0], mask, row, column)
    return _of_length_1(share - share.mean())


def _darkness(pixels: Floats, mask: Bools, row: int, column: int) -> Floats:
    """How far from white the pixels around (row, column) are, channel by channel: [WINDOW * WINDOW * 3]."""
    return _of_length_1(_window(WHITE - pixels, mask, row, column))


def _window(values: Floats, mask: Bools, row: int, column: int) -> Floats:
    """values [SIDE, SIDE, n] of a blob and its rim, 0 elsewhere, in a window around (row, column), flat."""
    far = WINDOW // 2
    around = np.pad(values * grown(mask)[..., None], ((far, far), (far, far), (0, 0)))
    return around[row : row + WINDOW, column : column + WINDOW].ravel()


def _of_length_1(values: Floats) -> Floats:
    return values / max(float(np.linalg.norm(values)), 1e-6)


@functools.cache
def _colours() -> Floats:
    return np.array(list(COLOURS.values()), np.float32)


class Templates(NamedTuple):
    """Of every thing at every shift: its name, rows and columns from the window's middle, and what it looks like."""

    names: list[str]
    shifts: list[tuple[int, int]]
    looks: Floats  # [n, numbers of a look], each of length 1


def _likest(templates: Templates, look: Floats) -> tuple[str, int, int, float]:
    """Name, shift down and right, and correlation of the template that is most alike."""
    likeness = templates.looks @ look
    best = int(likeness.argmax())
    return (templates.names[best], *templates.shifts[best], float(likeness[best]))


@functools.cache
def _shape_templates() -> Templates:
    black = np.array(COLOURS["black"], np.float32)
    return _templates(SHAPES, "black", lambda pixels, mask, row, column: _outline(pixels, mask, black, row, column))


@functools.cache
def _emoji_templates() -> Templates:
    return _templates(EMOJI, None, _darkness)


def _templates(
    names: Sequence[str], colour: str | None, look: Callable[[Floats, Bools, int, int], Floats]
) -> Templates:
    middle, reach = SIDE // 2, range(-REACH, REACH + 1)
    shifts = [(down, right) for down in reach for right in reach]
    looks = []
    for name in names:
        pixels = smoothed(np.asarray(draw_object(Object(name, colour, middle, middle)), np.float32))
        (mask,) = components(_darker(pixels, FAINTEST))
        looks += [look(pixels, mask, middle - down, middle - right) for down, right in shifts]
    return Templates([name for name in names for _ in shifts], shifts * len(names), np.stack(looks))
