"""Scenes as pictures: each object is drawn once, smoothly, and pasted from then on."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from PIL import Image, ImageChops, ImageDraw

from showo.data.sources import read_pictures
from showo.data.world.objects import COLOURS, EMOJI, SIDE, SIZE, Object
from showo.data.world.scene import Scene
from showo.files import BUNDLED

_FINE = 16  # shapes are drawn so many times as large, then averaged, which makes smooth edges


def draw_scene(scene: Scene) -> Image.Image:
    """RGB picture of SIDE x SIDE pixels, objects on white."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    for thing in scene.objects:
        corner = (thing.x - SIZE // 2, thing.y - SIZE // 2)
        if thing.colour is None:
            picture.paste(_emoji()[thing.shape], corner)
        else:
            picture.paste(COLOURS[thing.colour], (*corner, corner[0] + SIZE, corner[1] + SIZE), shape_mask(thing.shape))
    return picture


def draw_object(thing: Object) -> Image.Image:
    """The picture of a scene that holds this object alone."""
    return draw_scene(Scene((thing,)))


@functools.cache
def shape_mask(shape: str) -> Image.Image:
    """How much of each pixel a shape covers: 8-bit grey, SIZE x SIZE, 255 inside."""
    side = SIZE * _FINE
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    if shape in _POLYGONS:
        pen.polygon(_scaled(_POLYGONS[shape], side), fill=255)
    elif shape == "heart":
        pen.polygon(_scaled(_heart(), side), fill=255)
    else:  # a circle, or a ring, which is a circle with a hole
        pen.ellipse((0, 0, side - 1, side - 1), fill=255)
        if shape == "ring":
            hole = round(0.24 * side)
            pen.ellipse((hole, hole, side - 1 - hole, side - 1 - hole), fill=0)
    return mask.resize((SIZE, SIZE), Image.Resampling.BOX)


def _regular_star(points: int, inner: float) -> list[tuple[float, float]]:
    """A star that fills the unit square, a point upwards. inner: the radius of its notches over that of its points."""
    corners = []
    for corner in range(2 * points):
        radius = 0.5 if corner % 2 == 0 else 0.5 * inner
        angle = math.pi * corner / points
        corners.append((radius * math.sin(angle), -radius * math.cos(angle)))
    left, right = min(x for x, _ in corners), max(x for x, _ in corners)
    top, bottom = min(y for _, y in corners), max(y for _, y in corners)
    return [((x - left) / (right - left), (y - top) / (bottom - top)) for x, y in corners]


# Corners in the unit square, x to the right, y downwards.
_POLYGONS = {
    "square": [(0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95)],
    "triangle": [(0.5, 0.02), (1.0, 0.95), (0.0, 0.95)],
    "diamond": [(0.5, 0.0), (0.92, 0.5), (0.5, 1.0), (0.08, 0.5)],
    "star": _regular_star(5, 0.45),
    "cross": [
        (0.35, 0.0),
        (0.65, 0.0),
        (0.65, 0.35),
        (1.0, 0.35),
        (1.0, 0.65),
        (0.65, 0.65),
        (0.65, 1.0),
        (0.35, 1.0),
        (0.35, 0.65),
        (0.0, 0.65),
        (0.0, 0.35),
        (0.35, 0.35),
    ],
}


def _heart() -> list[tuple[float, float]]:
    """The curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, in the unit square."""
    curve = []
    for step in range(200):
        t = 2 * math.pi * step / 200
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        curve.append(((x + 16) / 32, (12 - y) / 29.5 + 0.02))
    return curve


def _scaled(corners: Sequence[tuple[float, float]], side: int) -> list[tuple[float, float]]:
    return [(x * (side - 1), y * (side - 1)) for x, y in corners]


@functools.cache
def _emoji() -> dict[str, Image.Image]:
    """The emoji that may be objects, RGB, SIZE x SIZE, cut out of the bundled pictures."""
    samples = {sample.caption: sample for sample in read_pictures(f"{BUNDLED}emoji/train-*.tar")}
    glyphs = {}
    for name in EMOJI:
        picture = samples[name].picture.open()
        left, top, right, bottom = ImageChops.invert(picture.convert("L")).getbbox() or (0, 0, *picture.size)
        side = max(right - left, bottom - top)
        square = Image.new("RGB", (side, side), "white")
        square.paste(picture, ((side - left - right) // 2, (side - top - bottom) // 2))
        glyphs[name] = square.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return glyphs
