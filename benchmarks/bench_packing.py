"""Packed rows against padded ones: tokens a second of a training step, by the length of captions.

    python -m benchmarks.bench_packing [--device cuda] [--captions 8 16 32 64 127] [--rounds 5] [--csv]

Rows are mixed as in stage 2, 10 of t2i, 4 of lm and 10 of mmu, or on a CPU half of them, and go forward and backward
through 4 layers, on a GPU as wide as the official ones, on a CPU an eighth as wide and with few ids of text, so that
the head is no larger a part of the work than it is there. Both ways compute the same real tokens, so the ratio of their
times is that of their tokens a second; only places with a target go through the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.harness import OURS, Case, arguments, run
from benchmarks.mixed_rows import padded_rows
from benchmarks.roofline import Work
from showo.batch import Batch
from showo.config import ShowoConfig
from showo.model.losses import multimodal_loss
from showo.model.transformer import Showo
from showo.train.plan.flops import Rows, step_flops

PADDED = "padded"
CAPTIONS = (8, 16, 32, 64, 127)


def step(model: Showo, batch: Batch) -> Callable[[], Tensor]:
    """A forward and a backward pass, which gives the loss."""

    def go() -> Tensor:
        model.zero_grad(set_to_none=True)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            loss = multimodal_loss(model, batch).total
        loss.backward()
        return loss.detach()

    return go


def cases(device: torch.device, a100: bool, captions: Sequence[int] = CAPTIONS) -> Iterator[Case]:
    wide, texts, rows = (2048, 50295, (10, 4, 10)) if a100 else (256, 1024, (5, 2, 5))
    config = ShowoConfig(
        hidden_size=wide,
        num_layers=4,
        num_heads=wide // 64,
        intermediate_size=4 * wide,
        text_vocab_size=texts,
        num_vq_tokens=256,
        max_text_len=128,
    )
    with device:
        model = Showo(config)
    for caption in captions:
        padded = padded_rows(config, *rows, caption)
        real = Rows.of(padded, config.vocabulary)
        flops = sum(part.total for part in step_flops(model, real).values())
        dtype = torch.bfloat16 if a100 else torch.float32
        yield Case(
            "packing",
            f"stage 2, captions of {caption}, {real.padding / (real.places + real.padding):.0%} padding",
            {
                OURS: step(model, padded.packed(config.vocabulary.pad).to(device)),
                PADDED: step(model, padded.to(device)),
            },
            lambda i: (),
            Work(flops, 0.0, dtype),
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--captions", type=int, nargs="+", default=list(CAPTIONS))
    parser.set_defaults(rounds=5)
    options = parser.parse_args(argv)
    run(lambda device, a100: cases(device, a100, options.captions), options)


if __name__ == "__main__":
    main()
