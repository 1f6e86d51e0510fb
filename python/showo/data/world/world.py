"""A world as a whole: what was asked for, what follows from it, and the file world.json that says so."""

from __future__ import annotations

import functools
import json
import random
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from showo.data.world.holdout import Holdout
from showo.data.world.sampling import SPLITS
from showo.errors import DataError, UserError
from showo.seeds import seeded_random

FORMAT = 1
WORLD_FILE = "world.json"
MAX_SCENES = 1_000_000
MAX_EMOJI = 0.5  # an emoji has no colour to ask about, and is in no held-out combination
HELD_OUT_SHARE, MIN_HELD_OUT = 20, 200  # what is not trained on: one in so many, but at least so many


class Kind(IntEnum):
    """What is drawn. The random numbers of different kinds have nothing to do with each other."""

    HOLDOUT = 0
    SCENE = 1
    OBJECT = 2
    QUESTION = 3
    STEP = 4
    TEXT = 5
    PROMPT = 6


# The parts of a world: how many of them there are for each scene, and in which splits.
_PER_SCENE = {Kind.SCENE: 1.0, Kind.OBJECT: 0.25, Kind.QUESTION: 1.0, Kind.STEP: 0.5, Kind.TEXT: 1.0}
_SPLITS = {Kind.STEP: ("train", "val"), Kind.TEXT: ("train", "val")}  # the others have all


@dataclass(frozen=True)
class World:
    """What a world follows from: the same three values give the same files.

    seed: any integer, modulo 2^64.
    scenes: captioned scenes of the training part; with more of them a world gets longer, and what was there stays.
    emoji: the share of objects that are emoji, 0 to MAX_EMOJI.
    """

    seed: int
    scenes: int
    emoji: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.scenes <= MAX_SCENES:
            raise UserError(f"--scenes must be 1 to {MAX_SCENES}, got {self.scenes}")
        if not 0 <= self.emoji <= MAX_EMOJI:
            raise UserError(f"--emoji must be 0 to {MAX_EMOJI}, got {self.emoji}")
        object.__setattr__(self, "seed", self.seed % 2**64)

    @functools.cached_property
    def holdout(self) -> Holdout:
        return Holdout.draw(seeded_random(self.seed, Kind.HOLDOUT))

    def generator(self, kind: Kind, split: str, number: int) -> random.Random:
        """The random numbers behind one thing; how many there are beside it plays no part."""
        return seeded_random(self.seed, kind, SPLITS.index(split), number)

    @staticmethod
    def splits(kind: Kind) -> tuple[str, ...]:
        return _SPLITS.get(kind, SPLITS)

    @property
    def size(self) -> int:
        """How many things there are in all, prompts apart."""
        return sum(self.count(kind, split) for kind in _PER_SCENE for split in self.splits(kind))

    def count(self, kind: Kind, split: str) -> int:
        """How many of a kind a split has."""
        train = max(1, round(self.scenes * _PER_SCENE[kind]))
        return train if split == "train" else max(MIN_HELD_OUT, train // HELD_OUT_SHARE)

    def to_json(self) -> dict[str, Any]:
        holdout = self.holdout.to_json()
        return {"format": FORMAT, "seed": self.seed, "scenes": self.scenes, "emoji": self.emoji, "held_out": holdout}

    @classmethod
    def load(cls, folder: str | Path) -> World:
        """The world that `showo make-world` wrote into a folder. Raises DataError where there is none."""
        path = Path(folder) / WORLD_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            world = cls(found["seed"], found["scenes"], found["emoji"])
        except FileNotFoundError:
            raise DataError(f"{folder} holds no world: {WORLD_FILE} is missing; showo make-world writes one") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read as a world: {error}") from error
        if found != world.to_json():
            raise DataError(f"{path} is of another version of showo; make the world again")
        return world
