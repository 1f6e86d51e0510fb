"""The curves of `benchmarks.world_curves`: what is measured at which settings, and that they can be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.world_curves import measure, plot
from showo.data.world.objects import SIDE
from showo.data.world.world import World
from showo.engine.pipeline import ShowoPipeline
from showo.evaluate.world.settings import Settings
from tests.showo.evaluate.truth import Truth


class Patient(Truth):
    """Draws nothing with fewer than four steps, or with too much guidance."""

    def generate(self, prompts: Sequence[str], *, steps: int, guidance: float, **options: Any) -> list[Image.Image]:  # type: ignore[override]
        if steps < 4 or guidance > 3:
            return [Image.new("RGB", (SIDE, SIDE), "white") for _ in prompts]
        return super().generate(prompts, **options)


def test_every_point_is_measured_at_its_settings(
    small_pipe: ShowoPipeline, world: World, world_folder: Path, tmp_path: Path
) -> None:
    pipe = Patient(small_pipe, world, world_folder)
    points = list(measure(pipe, world_folder, Settings(steps=5, guidance=1.0, count=16), (1, 4), (0.0, 9.0)))
    found = [(p.axis, p.column, p.steps, p.guidance, p.right) for p in points]
    assert found == [
        (axis, column, steps, guidance, right)
        for axis, steps, guidance, right in (
            ("steps", 1, 1.0, 0),
            ("steps", 4, 1.0, 1),
            ("guidance", 5, 0.0, 1),
            ("guidance", 5, 9.0, 0),
        )
        for column in ("seen", "held-out")
    ]
    with Image.open(plot(points, tmp_path / "curves.png")) as image:
        assert image.width > 500
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
