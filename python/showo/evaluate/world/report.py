"""What an evaluation found: as JSON, as a table, as a sheet of pictures, and against the floors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from PIL import Image, ImageOps
from rich.table import Table

from showo.evaluate.world.case import Case, groups, overall, share_right
from showo.evaluate.world.floors import FLOORS
from showo.evaluate.world.plan import COLUMNS
from showo.evaluate.world.settings import Settings
from showo.sheets import Sheet
from showo_ext import __version__

FORMAT = 1  # of the JSON
ON_SHEET = {"text to image": 48, "steps": 24}  # how many pictures of a part and column
FRAME = 2  # pixels around a picture on the sheet, red where it is wrong

Cases = dict[str, dict[str, list[Case]]]  # by part and column


@dataclass(frozen=True)
class Report:
    """model, world: what was judged, on what, in words. cases: in every column at least one of every part."""

    model: str
    world: str
    settings: Settings
    cases: Cases

    def missed(self) -> list[str]:
        """A line for every floor that is not held."""
        lines = []
        for (part, column), (floor, _) in FLOORS.items():
            share = overall(self.cases[part][column])
            if share < floor:
                lines.append(f"{part}, {column}: {share:.1%}, the floor is {floor:.0%}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Settings, scores and all cases."""
        return {
            "format": FORMAT,
            "showo": __version__,
            "model": self.model,
            "world": self.world,
            "settings": asdict(self.settings),
            "missed": self.missed(),
            "scores": {
                part: {column: _scores(cases) for column, cases in columns.items()}
                for part, columns in self.cases.items()
            },
            "cases": {
                part: {column: [_written(case) for case in cases] for column, cases in columns.items()}
                for part, columns in self.cases.items()
            },
        }

    def table(self) -> Table:
        """A row for every group, and for every part the mean of its groups beside floor and goal."""
        table = Table("", *COLUMNS, "floor (goal)", "what is wrong", title=f"{self.model} on {self.world}")
        for part, columns in self.cases.items():
            table.add_section()
            found = {column: groups(cases) for column, cases in columns.items()}
            for group in sorted(set(chain.from_iterable(found.values()))):
                shares = [_percent(found.get(column, {}).get(group)) for column in COLUMNS]
                wrong = [case for each in found.values() for case in each.get(group, [])]
                table.add_row(f"  {group}", *shares, "", _faults(wrong))
            shares = [f"{overall(columns[column]):.1%}" if column in columns else "" for column in COLUMNS]
            floors = [FLOORS[part, column] for column in COLUMNS if (part, column) in FLOORS]
            wanted = ", ".join(f"{floor:.0%} ({goal:.0%})" for floor, goal in floors)
            table.add_row(part, *shares, wanted, _faults(list(chain(*columns.values()))), style="bold")
        return table

    def sheet(self) -> Image.Image:
        """Pictures that were drawn, with what was asked for under each, framed in red where something is wrong."""
        shown = [
            (case, column)
            for part, most in ON_SHEET.items()
            for column, cases in self.cases.get(part, {}).items()
            for case in cases[:most]
        ]
        pictures = [ImageOps.expand(case.picture, FRAME, "white" if case.right else "red") for case, _ in shown]
        captions = [case.asked if column == "seen" else f"({column}) {case.asked}" for case, column in shown]
        return Sheet(len(shown), pictures[0].size, captions, columns=8, scale=2).draw(pictures)


def _scores(cases: Sequence[Case]) -> dict[str, Any]:
    return {
        "overall": overall(cases),
        "cases": len(cases),
        "right": sum(case.right for case in cases),
        "faults": dict(Counter(case.fault for case in cases if case.fault)),
        "groups": {
            group: {"cases": len(some), "right": sum(case.right for case in some)}
            for group, some in groups(cases).items()
        },
    }


def _written(case: Case) -> dict[str, Any]:
    return {"group": case.group, "asked": case.asked, "got": case.got, "fault": case.fault}


def _percent(cases: Sequence[Case] | None) -> str:
    return f"{share_right(cases):.1%} of {len(cases)}" if cases else "-"


def _faults(cases: Sequence[Case]) -> str:
    """The most frequent faults."""
    found = Counter(case.fault for case in cases if case.fault)
    return ", ".join(f"{fault} {count}" for fault, count in found.most_common(3))
