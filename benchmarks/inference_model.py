"""Predicts what pictures and answers take on an A100 in bf16: tables of docs/performance.md and docs/serving.md.

    python -m benchmarks.inference_model [--gpu a100-80] [--serving]

From the same model of kernels as `showo plan`: matrix products by their FLOPs or bytes, attention by what the emulator
counted, all else by its memory traffic, the sampling kernel by its counted instructions a place. Two times are given:
where nothing but the device takes time, with a gap between kernels as within a CUDA graph, and where the host launches
every kernel. With --serving it prints how many pictures a second are drawn when several share their steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from showo.config import ShowoConfig, official
from showo.engine.loading import SHOWO_FOLDER, bundled_checkpoint
from showo.gpus import GPUS, Gpu
from showo.model.weights import read_config
from showo.train.plan.kernels import LAUNCH, attention_seconds, memory_seconds, product_seconds

HALF = 2  # bytes
TOGETHER = (1, 2, 4, 8, 16)  # pictures
PROMPT, QUESTION = 24, 24  # tokens with their marks
# docs/performance.md, "Resampling": 116.8 us for 2,048 places of 8,192 codes, without the gaps of its two kernels.
SAMPLING_OF_PLACE = (116.8e-6 - 2 * LAUNCH) / 2048
# LayerNorm, four projections, rope, attention, GELU and its two products, two sums; embedding, head, sampling around.
LAUNCHES_OF_BLOCK, LAUNCHES_AROUND = 12, 12
LAUNCHES_OF_PICTURE = 10  # in an engine, beside the shared pass: is all finite, the sampler, codes and mask to the CPU
HOST_OF_LAUNCH = 8e-6  # seconds of Python and torch, assumed as in `showo plan`


@dataclass(frozen=True)
class Pass:
    """Seconds of the device in a forward pass, by what they are spent on."""

    parts: Mapping[str, float]
    launches: int

    @property
    def device(self) -> float:
        return sum(self.parts.values())

    @property
    def hosted(self) -> float:
        """Where the host launches every kernel, and one of both always works."""
        return max(self.device, self.launches * HOST_OF_LAUNCH)


def forward(config: ShowoConfig, gpu: Gpu, rows: int, new: int, wanted: int, before: int, outputs: int) -> Pass:
    """Of `rows` rows with `new` places each after `before` cached ones; the last layer and a head of `outputs` ids see
    `wanted` of the new ones alone. The sampling kernel is left out.
    """
    hidden, wide, layers = config.hidden_size, config.intermediate_size, config.num_layers
    every, some = rows * new, rows * wanted

    def products(places: int, *shapes: tuple[int, int]) -> float:
        return sum(product_seconds(gpu, True, places, inner, outer) for inner, outer in shapes)

    square, mlp = (hidden, hidden), ((hidden, wide), (wide, hidden))
    blocks = (layers - 1) * products(every, *[square] * 4, *mlp)
    last = products(every, square, square) + products(some, square, square, *mlp)
    columns = before + new
    attention = attention_seconds(gpu, hidden, rows * (new + columns) / 2, rows * new * columns)[0]
    # A token's attention is the reading of its columns; more rows do the work that the kernel was counted to do.
    cached = memory_seconds(gpu, HALF * 2 * rows * columns * hidden) + LAUNCH
    around = 2 + 2 * wide / hidden + 6 + 6  # LayerNorm, GELU, sums, rope: how often a place's width goes to memory
    launches = LAUNCHES_OF_BLOCK * layers + LAUNCHES_AROUND
    parts = {
        "products": blocks + last + products(some, (hidden, outputs)),
        "attention": layers * (cached if new == 1 else attention),
        "norms, rope, GELU, sums": memory_seconds(gpu, HALF * layers * every * hidden * around),
        "gaps": LAUNCH * (launches - layers),
    }
    return Pass(parts, launches)


def step(config: ShowoConfig, gpu: Gpu, pictures: int) -> Pass:
    """A step of generation with guidance."""
    places, codes = config.num_vq_tokens, config.codebook_size
    found = forward(config, gpu, 2 * pictures, places + 2, places, PROMPT, codes)
    return Pass({**found.parts, "sampling": pictures * places * SAMPLING_OF_PLACE}, found.launches)


def token(config: ShowoConfig, gpu: Gpu, answers: int) -> Pass:
    """A token of answers of which 50 are there."""
    before = 3 + config.num_vq_tokens + QUESTION + 50
    return forward(config, gpu, answers, 1, 1, before, config.text_vocab_size)


def table(gpu: Gpu) -> str:
    titles = ["what", "ms", "host launches, ms", "products", "attention", "norms, rope, GELU, sums", "gaps", "sampling"]
    lines = [f"| {' | '.join(titles)} |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    for codes, steps, resolution in ((256, 16, 256), (1024, 50, 512)):
        config = official(num_vq_tokens=codes)
        for pictures in (1, 16):
            what = f"{pictures} picture{'s' * (pictures > 1)} of {resolution}x{resolution}, {steps} steps with guidance"
            lines.append(_row(what, step(config, gpu, pictures), steps))
        for answers in (1, 16):
            what = f"a token of {answers} answer{'s' * (answers > 1)} about {resolution}x{resolution}"
            lines.append(_row(what, token(config, gpu, answers), 1))
    return "\n".join(lines)


def _row(what: str, each: Pass, times: int) -> str:
    names = ("products", "attention", "norms, rope, GELU, sums", "gaps", "sampling")
    shares = [f"{each.parts.get(name, 0) / each.device:.0%}" for name in names]
    cells = [what, f"{1e3 * times * each.device:.1f}", f"{1e3 * times * each.hosted:.1f}", *shares]
    return f"| {' | '.join(cells)} |"


def serving_table(gpu: Gpu) -> str:
    """Pictures a second in an engine, by how many are drawn at a time: of their steps alone, without what is done once
    for each picture (reading its prompt, decoding it). Every picture is sampled by itself, and looked at before the
    next one, so that the host's work for it comes on top of the shared forward pass.
    """
    bundled = read_config(bundled_checkpoint() / SHOWO_FOLDER, ShowoConfig)
    titles = ["model, picture, steps", *(f"{count} at a time" for count in TOGETHER), "gain"]
    lines = [f"| {' | '.join(titles)} |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    for what, config, steps in (
        ("bundled, 64x64, 18", bundled, 18),
        ("released, 256x256, 16", official(num_vq_tokens=256), 16),
        ("released, 512x512, 50", official(num_vq_tokens=1024), 50),
    ):
        passes = [step(config, gpu, count) for count in TOGETHER]
        graphs = _rates(steps, [each.device for each in passes])
        hosted = _rates(steps, [each.hosted for each in passes])
        if graphs == hosted:
            lines.append(f"| {what}, with or without CUDA graphs | {graphs} |")
        else:
            lines += [f"| {what}, CUDA graphs | {graphs} |", f"| {what}, without | {hosted} |"]
    return "\n".join(lines)


def _rates(steps: int, shared: Sequence[float]) -> str:
    """Cells of pictures a second, of the seconds that a shared pass takes."""
    seconds = [
        steps * (one + count * LAUNCHES_OF_PICTURE * HOST_OF_LAUNCH)
        for count, one in zip(TOGETHER, shared, strict=True)
    ]
    rates = [count / each for count, each in zip(TOGETHER, seconds, strict=True)]
    return " | ".join([*map(_three_digits, rates), f"{rates[-1] / rates[0]:.2f} times"])


def _three_digits(rate: float) -> str:
    return f"{float(f'{rate:.3g}'):,g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=GPUS, default="a100-80")
    parser.add_argument("--serving", action="store_true", help="the table of docs/serving.md")
    options = parser.parse_args()
    print((serving_table if options.serving else table)(GPUS[options.gpu]))


if __name__ == "__main__":
    main()
