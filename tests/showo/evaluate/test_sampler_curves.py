"""The curves of `benchmarks.sampler_curves`: what is measured for every sampler, and that they can be drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.sampler_curves import emoji_subject, main, measure, plot, world_subject
from showo.data.sources import read_pictures
from showo.data.world.objects import SIDE
from showo.data.world.world import World
from showo.engine.generate import GenerationStep
from showo.engine.pipeline import ShowoPipeline
from tests.showo.evaluate.truth import Truth


class Hasty(Truth):
    """Halton draws nothing; a budget of entropy has every other picture done after its first step."""

    def generate(  # type: ignore[override]
        self,
        prompts: Sequence[str],
        *,
        sampler: str,
        steps: int,
        callback: Callable[[int, GenerationStep], None],
        **options: Any,
    ) -> list[Image.Image]:
        for step in range(steps):
            masked = torch.ones(len(prompts), 4, dtype=torch.bool)
            masked[::2] = not sampler.startswith("entropy")
            callback(0, GenerationStep(step, steps, masked.long(), masked))
        if sampler == "halton":
            return [Image.new("RGB", (SIDE, SIDE), "white") for _ in prompts]
        return super().generate(prompts, **options)


def test_every_point_is_measured_at_its_settings(
    small_pipe: ShowoPipeline, world: World, world_folder: Path, tmp_path: Path
) -> None:
    subjects = {column: world_subject(world_folder, column, 16) for column in ("seen", "held-out")}
    settings = [("halton", 2), ("confidence", 5), ("entropy-bound:2", 5)]
    points = list(measure(Hasty(small_pipe, world, world_folder), subjects, settings, guidance=1.0))
    assert [(p.subject, p.sampler, p.steps, p.taken, p.right) for p in points] == [
        (subject, sampler, steps, taken, right)
        for sampler, steps, taken, right in (
            ("halton", 2, 2, 0),
            ("confidence", 5, 5, 1),
            ("entropy-bound:2", 5, 3, 1),
        )
        for subject in subjects
    ]
    with Image.open(plot(points, tmp_path / "curves.png")) as image:
        assert image.width > 500


def test_emoji_are_found_by_their_picture() -> None:
    texts, right = emoji_subject(6, seed=2)
    by_caption = {sample.caption: sample.picture.open() for sample in read_pictures("bundled:emoji/train-*.tar")}
    pictures = [by_caption[text] for text in texts]
    assert right(pictures) == 1
    assert right([*pictures[1:], pictures[0]]) == 0


def test_the_command_line(checkpoint: Path, world_folder: Path, tmp_path: Path) -> None:
    options = ["--steps", "1", "--samplers", "halton", "--budgets", "2", "--count", "2", "--subjects", "emoji"]
    main(["--world", str(world_folder), "--model", str(checkpoint), *options, "--out", str(tmp_path / "a.png")])
    rows = (tmp_path / "a.csv").read_text().splitlines()
    assert rows[0] == "subject,sampler,steps,taken,pictures,right"
    assert [row.split(",")[:3] for row in rows[1:]] == [["emoji", "entropy-bound:2", "1"], ["emoji", "halton", "1"]]
