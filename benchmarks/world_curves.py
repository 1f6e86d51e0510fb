"""How right a model's pictures are by the number of steps and by guidance, on a world: a picture and a CSV.

    python -m benchmarks.world_curves --world DIR [--model M] [--image-tokenizer T] [--count 200]
        [--steps 1 2 4 ...] [--guidance 0 0.7 ...] [--at-steps 18] [--at-guidance 1] [--out out/world-curves.png]

Steps vary at one guidance (--at-guidance), guidance at one number of steps (--at-steps). Each point is the overall
score of `showo evaluate world`, text to image, with the same prompts and seeds. The CSV lies beside the picture and
grows point by point.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from matplotlib import pyplot as plt

from benchmarks.plot import save
from showo.engine.pipeline import ShowoPipeline
from showo.evaluate.world.case import overall
from showo.evaluate.world.drawing import draw_prompts, read_prompts
from showo.evaluate.world.plan import COLUMNS
from showo.evaluate.world.settings import Settings

STEPS = (1, 2, 4, 6, 8, 12, 18, 24, 32)
GUIDANCE = (0.0, 0.35, 0.7, 1.0, 1.75, 3.0, 5.0)


@dataclass(frozen=True)
class Point:
    """axis: "steps" or "guidance", whichever varies. right: 0 to 1."""

    axis: str
    column: str
    steps: int
    guidance: float
    cases: int
    right: float


def measure(
    pipe: ShowoPipeline, folder: Path, settings: Settings, steps: Sequence[int], guidance: Sequence[float]
) -> Iterator[Point]:
    varied = [("steps", replace(settings, steps=value)) for value in steps]
    varied += [("guidance", replace(settings, guidance=value)) for value in guidance]
    prompts = {column: read_prompts(folder, column)[: settings.count] for column in COLUMNS}
    for axis, each in varied:
        for column, asked in prompts.items():
            cases = draw_prompts(pipe, asked, each, lambda done: None)
            yield Point(axis, column, each.steps, each.guidance, len(cases), overall(cases))


def plot(points: Sequence[Point], path: Path) -> Path:
    """Writes a PNG: right by steps on the left, by guidance on the right, a line for each column of the table."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, name in zip(axes, ("steps", "guidance"), strict=True):
        for column in COLUMNS:
            own = [point for point in points if (point.axis, point.column) == (name, column)]
            axis.plot([getattr(p, name) for p in own], [100 * p.right for p in own], marker="o", ms=4, label=column)
        fixed = "guidance" if name == "steps" else "steps"
        values = sorted({getattr(point, fixed) for point in points if point.axis == name})
        axis.set_xlabel(f"{name}, with {fixed} {', '.join(f'{value:g}' for value in values)}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("pictures judged right, %")
    axes[0].set_ylim(0, 100)
    axes[1].legend()
    return save(figure, path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder that showo make-world wrote")
    parser.add_argument("--model", help="folder, hub id or bundled:NAME; default: the bundled model")
    parser.add_argument("--image-tokenizer", help="likewise, where the model's folder does not name it")
    parser.add_argument("--count", type=int, default=200, help="prompts of every point and column")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs="*", default=STEPS)
    parser.add_argument("--guidance", type=float, nargs="*", default=GUIDANCE)
    parser.add_argument("--at-steps", type=int, help="steps while guidance varies; default: the model's own")
    parser.add_argument("--at-guidance", type=float, help="guidance while steps vary; default: the model's own")
    parser.add_argument("--out", type=Path, default=Path("out/world-curves.png"))
    options = parser.parse_args(argv)
    pipe = ShowoPipeline.from_pretrained(options.model, image_tokenizer=options.image_tokenizer)
    own = pipe.sampling.filled(steps=options.at_steps, guidance=options.at_guidance)
    settings = Settings(own.steps, own.guidance, seed=options.seed, count=options.count)
    points = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Point)])
        table.writeheader()
        for point in measure(pipe, options.world, settings, options.steps, options.guidance):
            points.append(point)
            table.writerow(asdict(point))
            file.flush()
            print(f"{point.column}: steps {point.steps}, guidance {point.guidance:g}: {point.right:.1%}", flush=True)
    print(plot(points, options.out))


if __name__ == "__main__":
    main()
