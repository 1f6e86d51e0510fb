"""What the weights' kind changes in a model's answers: memory, time, how many are right, how many stay the same.

    python -m benchmarks.quantized_answers --world DIR [--model M] [--count 200] [--captions 64]

Questions about a world's scenes, seen and held out, as `showo evaluate world` asks them, --count of each, and captions
of --captions seen scenes; a caption is never counted as right or wrong here, only compared. fp32 weights come first,
which the other kinds are compared with, by their texts. Seconds are the processors'.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from showo.data.world.draw import draw_scene
from showo.data.world.world import World
from showo.engine.pipeline import ShowoPipeline
from showo.evaluate.world.answering import MAX_NEW_TOKENS, answer_questions, questions, scenes
from showo.evaluate.world.plan import COLUMNS

# Names for the table, dtype of activations and of what is not quantized, and quantization.
KINDS = (
    ("fp32", torch.float32, None),
    ("bf16", torch.bfloat16, None),
    ("int8, activations in fp32", torch.float32, "int8"),
    ("int8, activations in bf16", torch.bfloat16, "int8"),
)
BATCH = 8


@dataclass(frozen=True)
class Answers:
    """Of one kind of weights. bytes: of the transformer. right: of the questions, by column."""

    kind: str
    bytes: int
    seconds: float
    right: dict[str, int]
    texts: list[str]

    def like(self, other: Answers) -> int:
        return sum(own == its for own, its in zip(self.texts, other.texts, strict=True))


def answers(pipe: ShowoPipeline, world: World, kind: str, count: int, captions: int) -> Answers:
    right, texts, began = {}, [], time.process_time()
    for column, split in COLUMNS.items():
        cases = answer_questions(pipe, questions(world, split, count), BATCH, lambda done: None)
        right[column] = sum(case.fault is None for case in cases)
        texts += [case.got for case in cases]
    shown = [draw_scene(scene) for scene in scenes(world, COLUMNS["seen"], captions)]
    texts += pipe.describe(shown, max_new_tokens=MAX_NEW_TOKENS, batch=BATCH)
    seconds = time.process_time() - began
    tensors = [*pipe.model.parameters(), *pipe.model.buffers()]
    return Answers(kind, sum(tensor.nbytes for tensor in tensors), seconds, right, texts)


def measure(
    load: Callable[[torch.dtype, str | None], ShowoPipeline], world: World, count: int, captions: int
) -> Iterator[Answers]:
    """load: the model with weights of a dtype and a quantization."""
    for kind, dtype, quantization in KINDS:
        yield answers(load(dtype, quantization), world, kind, count, captions)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder that showo make-world wrote")
    parser.add_argument("--model", help="folder, hub id or bundled:NAME; default: the bundled model")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--captions", type=int, default=64)
    options = parser.parse_args(argv)

    def load(dtype: torch.dtype, quantization: str | None) -> ShowoPipeline:
        return ShowoPipeline.from_pretrained(options.model, dtype=dtype, quantization=quantization)

    first = None
    for each in measure(load, World.load(options.world), options.count, options.captions):
        first = first or each
        right = ", ".join(f"{column} {number}" for column, number in each.right.items())
        print(
            f"{each.kind}: {each.bytes / 1e6:.3g} MB; right of {options.count}: {right}; "
            f"{each.like(first)} of {len(each.texts)} texts as in {first.kind}; "
            f"{each.seconds:.1f} s, {each.seconds / first.seconds:.2f} times {first.kind}",
            flush=True,
        )


if __name__ == "__main__":
    main()
