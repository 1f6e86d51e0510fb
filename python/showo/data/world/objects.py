"""What a scene consists of: shapes and emoji of one size on a square white ground, and the names of places on it."""

from __future__ import annotations

from dataclasses import dataclass

SIDE = 64  # of a picture, in pixels
SIZE = 20  # width and height of an object
APART = SIZE + 4  # of two centres, across or down: at least 4 pixels lie between the boxes of two objects
LATTICE = tuple(range(12, 53, 4))  # what a centre's x or y may be: every object lies wholly inside

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
COLOURS = {
    "red": (222, 28, 36),
    "orange": (250, 140, 10),
    "yellow": (250, 220, 20),
    "green": (30, 160, 70),
    "blue": (30, 80, 220),
    "purple": (130, 40, 170),
    "pink": (255, 140, 195),
    "black": (24, 24, 24),
}
# Emoji that may be objects, by their captions in the bundled training set.
EMOJI = (
    "anchor",
    "banana",
    "bell",
    "cactus",
    "carrot",
    "fish",
    "ghost",
    "key",
    "lemon",
    "mushroom",
    "pizza",
    "robot",
    "rocket",
    "snail",
    "tulip",
    "umbrella",
)

_ROWS = ("top", "", "bottom")
_COLUMNS = ("left", "", "right")
PLACES = tuple(f"{row} {column}".strip() or "centre" for row in _ROWS for column in _COLUMNS)
# Coordinates whose third of the picture is plain to see: the others lie less than 3 pixels from where a third ends.
CLEAR = (12, 16, 28, 32, 36, 48, 52)


@dataclass(frozen=True, order=True)
class Object:
    """shape: one of SHAPES or EMOJI; colour: one of COLOURS, None for an emoji; x, y: the centre in pixels."""

    shape: str
    colour: str | None
    x: int
    y: int

    @property
    def name(self) -> str:
        """Colour and shape, "red star"."""
        return f"{self.colour} {self.shape}" if self.colour else self.shape

    @property
    def place(self) -> str:
        """The one of PLACES where the centre lies: the picture cut into thirds, across and down."""
        return PLACES[3 * _third(self.y) + _third(self.x)]

    @property
    def place_is_clear(self) -> bool:
        """Whether the centre lies well inside its place."""
        return self.x in CLEAR and self.y in CLEAR


def _third(coordinate: float) -> int:
    return min(2, max(0, int(3 * coordinate / SIDE)))
