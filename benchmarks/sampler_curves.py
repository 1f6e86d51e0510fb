"""How right pictures are by the number of steps, for every sampler: on a world and on the bundled emoji.

    python -m benchmarks.sampler_curves --world DIR [--model M] [--count 96] [--steps 1 2 4 ...] [--guidance 1]
        [--samplers halton entropy-bound:2 ...] [--out out/samplers.png]

The world: seen and held-out prompts, judged as `showo evaluate world` does (mean of the categories). The emoji: how
often the picture that is nearest to the drawn one, among all, is the one whose caption was asked for, as in
`benchmarks.quality`. A sampler that ends early stands at the mean number of steps that its pictures took; a budget of
entropy is what varies there, and the greatest of --steps bounds the steps. The CSV lies beside the picture and grows
point by point.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from PIL import Image

from benchmarks.plot import save
from benchmarks.quality import HELD_OUT, TRAIN, retrieval_ranks
from showo.data.sources import read_pictures
from showo.engine.generate import GenerationStep
from showo.engine.pipeline import ShowoPipeline
from showo.evaluate.world.case import Case, overall
from showo.evaluate.world.drawing import find_fault, in_words, read_prompts
from showo.evaluate.world.judge import as_scene, find_objects

STEPS = (1, 2, 4, 8, 16, 32)
BUDGETS = (64, 32, 16, 8, 4, 2, 1, 0.5)
SAMPLERS = ("confidence", "linear-temperature", "halton", "remask")
SUBJECTS = ("seen", "held-out", "emoji")

# The texts of a subject, and what share of the pictures drawn for them is right.
Subject = tuple[list[str], Callable[[list[Image.Image]], float]]
# Pictures, and the mean number of steps that they took.
Drawing = tuple[list[Image.Image], float]


@dataclass(frozen=True)
class Point:
    """steps: at most; taken: the mean of what the pictures took. right: 0 to 1."""

    subject: str
    sampler: str
    steps: int
    taken: float
    pictures: int
    right: float


def world_subject(folder: Path, column: str, count: int) -> Subject:
    prompts = read_prompts(folder, column)[:count]

    def right(pictures: list[Image.Image]) -> float:
        cases = []
        for prompt, picture in zip(prompts, pictures, strict=True):
            found = find_objects(picture)
            fault = find_fault(prompt.demand, as_scene(found))
            cases.append(Case(prompt.demand.category, prompt.text, in_words(found), fault, picture))
        return overall(cases)

    return [prompt.text for prompt in prompts], right


def emoji_subject(count: int, seed: int) -> Subject:
    train = read_pictures(TRAIN)
    pictures = [sample.picture.open() for sample in train + read_pictures(HELD_OUT)]
    chosen = random.Random(seed).sample(range(len(train)), min(count, len(train)))

    def right(drawn: list[Image.Image]) -> float:
        return float((retrieval_ranks(drawn, pictures, chosen) < 1).double().mean())

    return [train[i].caption for i in chosen], right


def draw(pipe: ShowoPipeline, texts: Sequence[str], sampler: str, steps: int, guidance: float, seed: int) -> Drawing:
    """Pictures, and how many steps they took: those after which something was masked, and the last."""
    taken = torch.ones(len(texts))

    def watch(first: int, step: GenerationStep) -> None:
        if step.step + 1 < steps:
            taken[first : first + len(step.masked)] += step.masked.any(1)

    pictures = pipe.generate(texts, sampler=sampler, steps=steps, guidance=guidance, seed=seed, callback=watch)
    return pictures, float(taken.mean())


def measure(
    pipe: ShowoPipeline,
    subjects: dict[str, Subject],
    settings: Sequence[tuple[str, int]],
    guidance: float,
    seed: int = 0,
) -> Iterator[Point]:
    """settings: of samplers and steps."""
    for sampler, steps in settings:
        for name, (texts, right) in subjects.items():
            pictures, taken = draw(pipe, texts, sampler, steps, guidance, seed)
            yield Point(name, sampler, steps, taken, len(texts), right(pictures))


def plot(points: Sequence[Point], path: Path) -> Path:
    """Writes a PNG: right by steps, a panel for each subject and a line for each kind of sampler."""
    subjects = list(dict.fromkeys(point.subject for point in points))
    figure, axes = plt.subplots(1, len(subjects), figsize=(4 * len(subjects), 3.4), squeeze=False, layout="constrained")
    for axis, subject in zip(axes[0], subjects, strict=True):
        for kind in dict.fromkeys(point.sampler.partition(":")[0] for point in points):
            own = [p for p in points if p.subject == subject and p.sampler.partition(":")[0] == kind]
            own.sort(key=lambda point: point.taken)
            axis.plot([p.taken for p in own], [100 * p.right for p in own], marker="o", ms=4, label=kind)
        axis.set_title(subject)
        axis.set_xlabel("steps taken")
        axis.set_ylim(0, 100)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("pictures judged right, %")
    axes[0][-1].legend()
    return save(figure, path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder that showo make-world wrote")
    parser.add_argument("--model", help="folder, hub id or bundled:NAME; default: the bundled model")
    parser.add_argument("--image-tokenizer", help="likewise, where the model's folder does not name it")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    parser.add_argument("--count", type=int, default=96, help="pictures of every point")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument("--samplers", nargs="*", default=SAMPLERS, help="those that vary by --steps")
    parser.add_argument("--budgets", type=float, nargs="*", default=BUDGETS, help="nats, of entropy-bound")
    parser.add_argument("--out", type=Path, default=Path("out/samplers.png"))
    options = parser.parse_args(argv)
    pipe = ShowoPipeline.from_pretrained(options.model, image_tokenizer=options.image_tokenizer)
    guidance = pipe.sampling.filled(guidance=options.guidance).guidance
    subjects = {
        name: emoji_subject(options.count, options.seed)
        if name == "emoji"
        else world_subject(options.world, name, options.count)
        for name in options.subjects
    }
    settings = [(f"entropy-bound:{budget:g}", max(options.steps)) for budget in options.budgets]
    settings += [(sampler, steps) for steps in options.steps for sampler in options.samplers]
    points = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Point)])
        table.writeheader()
        for point in measure(pipe, subjects, settings, guidance, options.seed):
            points.append(point)
            table.writerow(asdict(point))
            file.flush()
            print(f"{point.subject}: {point.sampler}, {point.taken:.1f} steps: {point.right:.1%}", flush=True)
    print(plot(points, options.out))


if __name__ == "__main__":
    main()
