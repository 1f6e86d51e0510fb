"""What a checkpoint costs the steps of a training: written beside them, or while they wait.

    python -m benchmarks.bench_saving [--million 200] [--rounds 5] [--folder .]

Saves the weights of so many million parameters with the two moments of AdamW (12 bytes each) into a temporary folder
below `--folder`, as the trainer does, `--rounds` times in both ways in turn. Printed, as medians over the rounds: the
seconds that the loop waits for `Saver.start`, and those that it would wait for the whole checkpoint (start and wait),
with checksums and with everything on the disk; and by how much a step of matrix products is slower beside the writing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

from showo.train.config import LoopConfig
from showo.train.optimizer import make_optimizer
from showo.train.parallel import Parallel
from showo.train.saving import Saver

_WIDTH = 2048


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def training(million: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Square layers, and an optimizer that has done a step."""
    layers = max(1, round(million * 1e6 / (_WIDTH * _WIDTH)))
    model = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(layers)))
    optimizer = make_optimizer(model, LoopConfig(steps=1).optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", type=int, default=200, help="parameters")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("."), help="whose disk is written to")
    options = parser.parse_args()
    model, optimizer = training(options.million)
    size = 3 * 4 * sum(parameter.numel() for parameter in model.parameters())
    a = torch.randn(1024, 1024)

    def step() -> None:
        for _ in range(8):
            a @ a

    waits, wholes, alone, beside = [], [], [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        saver = Saver(Path(folder), Parallel(model), optimizer, None, LoopConfig(steps=1, keep_checkpoints=1), {}, None)
        number = 0
        for _ in range(options.rounds):
            alone.append(median(seconds(step) for _ in range(20)))
            number += 1
            waits.append(seconds(lambda: saver.start(number)))  # noqa: B023 - called at once
            beside.append(median(seconds(step) for _ in range(20)))
            saver.wait()
            number += 1
            wholes.append(seconds(lambda: (saver.start(number), saver.wait())))  # noqa: B023
    wait, whole = median(waits), median(wholes)
    print(f"{size / 1e9:.2f} GB, {options.rounds} rounds, {torch.get_num_threads()} threads")
    print(f"the loop waits {wait:.2f} s; for the whole checkpoint it would wait {whole:.2f} s: {wait / whole:.1%}")
    print(f"a step beside the writing takes {median(beside) / median(alone):.2f} times as long as alone")


if __name__ == "__main__":
    main()
