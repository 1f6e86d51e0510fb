"""A token of an answer at the full size: against reading its weights once, and against the loop without a cache.

    python -m benchmarks.bench_text [--weights float32 bfloat16 int8] [--threads 2] [--tokens 100] [--layers 24]

For each kind of weights a model of random weights answers about a picture of 256 codes, `--tokens` tokens long; int8
weights have activations in bf16. Printed are

- what is read for a token: the blocks' weights and the rows of the head that text has,
- the rate at which torch.sum reads memory, which is taken for the machine's: the median of some turns that are spread
  over the answer,
- the median token, and how much longer it takes than reading at that rate does,
- the whole answer, picture and question included, against the loop of the official code: for every token the whole
  sequence and the whole vocabulary again, by the eager formula with a dense mask. The loop's time is the mean of its
  first, middle and last token times their number, in fp32 and in the dtype of the row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import mean, median

import torch
from torch import Tensor

from benchmarks.bench_step_memory import make_eager, sizes
from showo.config import ShowoConfig
from showo.engine.understand import stream
from showo.model.quantize import quantize
from showo.model.transformer import Showo
from showo.prompting import Prompting
from showo_ext import OmniMask

KINDS = ("float32", "bfloat16", "int8")
QUESTION = list(range(100, 112))
TURNS = 5


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def make_model(config: ShowoConfig, kind: str) -> Showo:
    torch.manual_seed(0)
    model = Showo(config).to(torch.float32 if kind == "float32" else torch.bfloat16)
    if kind == "int8":
        quantize(model, kind)
    return model


def bytes_of_token(model: Showo) -> int:
    """Of the weights that a token needs. Its row of the embedding is nothing beside them."""
    head = model.showo.lm_head
    tensors = [*model.showo.model.layers.parameters(), *model.showo.model.layers.buffers()]
    rows = model.config.vocabulary.text_vocab_size
    return sum(t.nbytes for t in tensors) + sum(t[:rows].nbytes for t in (*head.parameters(), *head.buffers()))


class Reading:
    """Reads memory at the rate of the machine: parts of 64 MB, which no cache holds, summed."""

    def __init__(self) -> None:
        self.parts = [torch.ones(1 << 24) for _ in range(8)]
        self.rates: list[float] = []  # bytes a second

    def turn(self) -> None:
        taken = seconds(lambda: [part.sum() for part in self.parts])
        self.rates.append(sum(part.nbytes for part in self.parts) / taken)


def answer(model: Showo, prompting: Prompting, image: Tensor, tokens: int, reading: Reading) -> list[float]:
    """Seconds of every token; of the first one with picture and question, of all together `tokens`."""
    taken: list[float] = []
    answers = stream(model, prompting, image, [QUESTION], max_new_tokens=tokens)
    while len(taken) < tokens:
        taken.append(seconds(lambda: next(answers)))
        if len(taken) % max(1, tokens // TURNS) == 0:
            reading.turn()
    return taken


@torch.inference_mode()
def loop_without_cache(model: Showo, prompting: Prompting, image: Tensor, tokens: int) -> float:
    """Seconds of `tokens` tokens. The model is of no other use afterwards."""
    asked = prompting.asked([QUESTION], image.shape[1]).input_ids
    taken = []
    for more in (0, 0, tokens // 2, tokens - 1):  # the first one once more, to warm up
        ids = torch.cat((asked, asked.new_full((1, more), 7)), dim=1)
        vocab = prompting.vocabulary
        mask = OmniMask.mmu(ids, soi_id=vocab.soi, eoi_id=vocab.eoi)
        make_eager(model, mask)
        taken.append(seconds(lambda ids=ids, mask=mask: model(ids, mask=mask)))
    return tokens * mean(taken[1:])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=24)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    config = sizes(options.hidden, options.layers)
    prompting = Prompting.for_model(config, eot=config.vocabulary.text_vocab_size - 1)
    image = torch.randint(0, config.codebook_size, (1, 256)) + config.vocabulary.image_offset
    loops: dict[str, float] = {}
    for kind in options.weights:
        model, reading = make_model(config, kind), Reading()
        answer(model, prompting, image, 2, reading)
        taken = answer(model, prompting, image, options.tokens, reading)
        needed, rate, token = bytes_of_token(model), median(reading.rates), median(taken[1:])
        print(f"{kind}: {needed / 1e9:.2f} GB a token, read at {rate / 1e9:.1f} GB/s in {1e3 * needed / rate:.1f} ms")
        print(
            f"  a token {1e3 * token:.1f} ms, {token * rate / needed:.2f} times that; picture, question, first token "
            f"{taken[0]:.2f} s; {len(taken)} tokens {sum(taken):.2f} s"
        )
        if kind != "int8":
            loops[kind] = loop_without_cache(model, prompting, image, options.tokens)
        for name, loop in loops.items():
            print(f"  the loop without a cache in {name}: {loop:.0f} s, {loop / sum(taken):.1f} times as long")


if __name__ == "__main__":
    main()
