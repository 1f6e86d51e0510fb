"""What every part of the evaluation gives: one case for each thing that was asked of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

Advance = Callable[[int], object]  # called with how many cases are done since the last call


@dataclass(frozen=True)
class Case:
    """group: the category of a prompt, the kind of a question. asked: the prompt, the question. got: what came of it.

    fault: what is wrong with it, None if nothing is. picture: what the model drew or was shown.
    """

    group: str
    asked: str
    got: str
    fault: str | None
    picture: Image.Image

    @property
    def right(self) -> bool:
        return self.fault is None


def groups(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """The cases of every group, in the order in which groups first appear."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.group, []).append(case)
    return found


def share_right(cases: Sequence[Case]) -> float:
    return sum(case.right for case in cases) / len(cases)


def overall(cases: Sequence[Case]) -> float:
    """The mean of the groups' shares, as GenEval takes it: a group counts the same however many cases it has."""
    shares = [share_right(group) for group in groups(cases).values()]
    return sum(shares) / len(shares)
