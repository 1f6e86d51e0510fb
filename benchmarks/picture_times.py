"""How long a picture takes by its number of codes and by how many are drawn at a time: a picture and a CSV.

    python -m benchmarks.picture_times [--codes 64 256 1024 4096] [--batches 1 2 4 8 16] [--most 16384] [--threads 1]
        [--hidden 256] [--layers 8] [--rounds 1] [--out out/picture-times.png]

A model of random weights, as wide and deep as the bundled one unless told, with as many positions as the codes need;
with guidance, a prompt of 20 tokens, 18 steps. Two steps are computed: the first, which reads the prompt, and one that
stands for the other 17. The image tokenizer is the bundled one. Points with more than --most codes in a batch are left
out. Seconds are the processors', medians of the rounds; each round visits all points, so that all of them meet the same
disturbances. In the picture they are multiples of the time of one picture of the fewest codes. The CSV lies beside it.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median

import torch
from matplotlib import pyplot as plt

from benchmarks.bench_step_memory import sizes
from benchmarks.plot import save
from showo.engine.generate import GenerationStep, generate_codes
from showo.engine.loading import IMAGE_TOKENIZER_FOLDER, bundled_checkpoint
from showo.model.image_tokenizer import ImageTokenizer
from showo.model.transformer import Showo
from showo.prompting import Prompting

STEPS, PROMPT = 18, 20


@dataclass(frozen=True)
class Point:
    """Seconds of processors for a batch: its first step with the prompts read, a later one, and all codes decoded."""

    codes: int
    batch: int
    first: float
    step: float
    decode: float

    @property
    def picture(self) -> float:
        """Seconds of one picture of the batch, in STEPS steps."""
        return (self.first + (STEPS - 1) * self.step + self.decode) / self.batch


def make_model(hidden: int, layers: int, codes: int) -> Showo:
    torch.manual_seed(0)
    config = sizes(hidden, layers)
    positions = config.max_text_len + codes + 3
    return Showo(replace(config, num_vq_tokens=codes, max_positions=positions)).eval()


def measure(model: Showo, tokenizer: ImageTokenizer, codes: int, batch: int) -> Point:
    """One visit; the grid is as near to a square as the number of codes allows."""
    height = max(side for side in range(1, math.isqrt(codes) + 1) if codes % side == 0)
    grid = (height, codes // height)
    prompting = Prompting.for_model(model.config, eot=model.config.text_vocab_size - 1)
    times = [time.process_time()]

    def note(step: GenerationStep) -> None:
        times.append(time.process_time())

    texts = [list(range(PROMPT))] * batch
    drawn = generate_codes(model, prompting, texts, grid=grid, steps=2, callback=note)
    began = time.process_time()
    with torch.inference_mode():
        tokenizer.decode(drawn, *grid)
    ended = time.process_time()
    return Point(codes, batch, times[1] - times[0], times[2] - times[1], ended - began)


def measure_all(
    hidden: int, layers: int, codes: Sequence[int], batches: Sequence[int], most: int, rounds: int
) -> Iterator[list[Point]]:
    """The points of each round; the first, of the fewest codes, is visited once before, which counts for nothing."""
    tokenizer = ImageTokenizer.from_pretrained(bundled_checkpoint() / IMAGE_TOKENIZER_FOLDER)
    model = make_model(hidden, layers, max(codes))
    measure(model, tokenizer, min(codes), 1)
    for _ in range(rounds):
        yield [
            measure(model, tokenizer, places, batch)
            for places in codes
            for batch in batches
            if batch == 1 or places * batch <= most
        ]


def medians(rounds: Sequence[Sequence[Point]]) -> list[Point]:
    names = ("first", "step", "decode")
    return [
        replace(visits[0], **{name: median(getattr(visit, name) for visit in visits) for name in names})
        for visits in zip(*rounds, strict=True)
    ]


def plot(points: Sequence[Point], path: Path) -> Path:
    """Writes a PNG: a picture's time by codes on the left, a line for each batch; by batch on the right."""
    unit = min(points, key=lambda point: (point.codes, point.batch)).picture
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, along, other in zip(axes, ("codes", "batch"), ("batch", "codes"), strict=True):
        for value in sorted({getattr(point, other) for point in points}):
            own = [point for point in points if getattr(point, other) == value]
            ratios = [point.picture / unit for point in own]
            axis.plot([getattr(p, along) for p in own], ratios, marker="o", ms=4, label=f"{other} {value:,}")
        values = sorted({getattr(point, along) for point in points})
        axis.set_xscale("log", base=2)
        axis.set_xticks(values, [f"{value:,}" for value in values])
        axis.set_yscale("log")
        axis.set_xlabel({"codes": "codes of a picture", "batch": "pictures drawn at a time"}[along])
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    fewest = [point for point in points if point.batch == 1]
    codes = [point.codes for point in fewest]
    axes[0].plot(codes, [count / codes[0] for count in codes], color="black", ls="--", lw=0.8)
    axes[0].set_ylabel(f"time of a picture; 1 is {codes[0]} codes, alone")
    return save(figure, path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--most", type=int, default=16384, help="codes of a batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/picture-times.png"))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rounds = []
    codes, batches = sorted(options.codes), sorted(options.batches)
    for visited in measure_all(options.hidden, options.layers, codes, batches, options.most, options.rounds):
        rounds.append(visited)
        points = medians(rounds)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.with_suffix(".csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow([*(field.name for field in fields(Point)), "picture"])
            table.writerows([*asdict(point).values(), point.picture] for point in points)
        print(f"round {len(rounds)} of {options.rounds}", flush=True)
    for point in points:
        print(f"{point.codes} codes, {point.batch} at a time: {point.picture:.3f} s a picture, {point.step:.3f} a step")
    print(plot(points, options.out))


if __name__ == "__main__":
    main()
