"""Pictures and answers whose steps run as CUDA graphs, compiled, or both, against the same without.

    python -m benchmarks.bench_graphs [--device cuda] [--codes 256] [--dtype bfloat16] [--layers 24] [--compile] [--csv]
    python -m benchmarks.bench_graphs --tiny         # at the size of the bundled model, which is bound by launches

Random weights; times are of whole calls on one device: a picture of 18 steps with guidance, its prompt read; 64 tokens
of an answer about a picture, picture and question read. What is captured and compiled is so before anything is timed,
and that time is printed. On the CPU there are no graphs, which the benchmark says.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks.harness import OURS, Case, arguments, measure, report, write_csv
from benchmarks.roofline import Work
from showo.config import ShowoConfig, official
from showo.engine.generate import generate_codes
from showo.engine.growing import compiled_steps
from showo.engine.loading import SHOWO_FOLDER, bundled_checkpoint
from showo.engine.understand import answer
from showo.model.graphs import Graphs
from showo.model.transformer import Showo
from showo.model.weights import read_config
from showo.prompting import Prompting

STEPS, TOKENS = 18, 64
NO_GPU = "CUDA graphs need a GPU"


def cases(config: ShowoConfig, dtype: torch.dtype, device: torch.device, *, compiled: bool) -> Iterator[Case]:
    torch.manual_seed(0)
    model = Showo(config).to(device, dtype)
    vocab = config.vocabulary
    never = vocab.text_vocab_size - 1  # with random weights hardly a row ends before it is cut
    prompting = Prompting.for_model(config, eot=never)
    image = torch.randint(vocab.image_offset, vocab.mask_id, (1, config.num_vq_tokens)).to(device)
    texts, question = [list(range(20))], list(range(30, 42))
    calls: dict[str, Callable[[], object]] = {
        f"picture of {config.num_vq_tokens} codes, {STEPS} steps": lambda: generate_codes(
            model, prompting, texts, steps=STEPS, guidance=1.75
        ),
        f"{TOKENS} tokens about {config.num_vq_tokens} codes": lambda: answer(
            model, prompting, image, [question], max_new_tokens=TOKENS
        ),
    }
    for name, call in calls.items():
        candidates: dict[str, Callable[..., object] | str] = {OURS: prepared(model, call)}
        kinds = [("CUDA graphs", True, False)]
        kinds += [("compiled", False, True), ("compiled, CUDA graphs", True, True)] if compiled else []
        for kind, graphs, steps in kinds:
            possible = device.type == "cuda" or not graphs
            candidates[kind] = prepared(model, call, graphs=graphs, compiled=steps, name=kind) if possible else NO_GPU
        sizes = f"{str(dtype).removeprefix('torch.')}, {config.num_layers} layers"
        yield Case("graphs", f"{name}, {sizes}", candidates, lambda _: (), Work(0, 0, dtype))


def prepared(
    model: Showo, call: Callable[[], object], *, graphs: bool = False, compiled: bool = False, name: str = ""
) -> Callable[[], object]:
    """The call with the model's steps as they are wanted, after its first time."""
    own_graphs, own_steps = Graphs(model) if graphs else None, compiled_steps() if compiled else {}

    def run() -> object:
        model.graphs, model.compiled = own_graphs, own_steps
        try:
            return call()
        finally:
            model.graphs, model.compiled = None, {}

    begun = time.perf_counter()
    run()
    if name:
        print(f"{name}: the first call took {time.perf_counter() - begun:.1f} s")
    return run


def main(argv: list[str] | None = None) -> None:
    parser: argparse.ArgumentParser = arguments(__doc__)
    parser.set_defaults(rounds=5)
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--tiny", action="store_true", help="the bundled model's sizes instead of --codes and --layers")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes its time")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    config = replace(official(num_vq_tokens=options.codes), num_layers=options.layers)
    if options.tiny:
        config = read_config(bundled_checkpoint() / SHOWO_FOLDER, ShowoConfig)
    device, rows = torch.device(options.device), []
    for case in cases(config, getattr(torch, options.dtype), device, compiled=options.compile):
        rows += measure(case, device=device, rounds=options.rounds, warmup=1)
    report(rows)
    if options.csv:
        print(f"appended to {write_csv(rows)}")


if __name__ == "__main__":
    main()
