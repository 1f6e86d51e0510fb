"""The memory of a training step on a CPU, ours against the eager formula with dense masks and full logits.

    python -m benchmarks.bench_step_memory [--hidden 2048] [--layers 2] [--threads 1]

Four rows of t2i, 387 places with captions of 40 tokens, go forward and backward in fp32, each way in a process of its
own: ours with all activations kept, ours with whole blocks computed again (recompute=full), and the official code's
formula in plain torch. Printed are what the blocks keep for the backward pass, beside what `showo plan` expects, and
the most that the step has needed at once beside weights and gradients, as the kernel counts it: the high-water mark of
the resident set, which is looked at and set back after the forward pass and whenever a large gradient is there.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.mixed_rows import padded_rows
from showo.batch import IGNORE, Batch
from showo.config import ShowoConfig, official
from showo.model.losses import DEFAULT_WEIGHTS, Losses, token_loss
from showo.model.transformer import Showo
from showo.train.blocks import recompute_activations
from showo.train.plan.memory import activation_memory
from showo_ext import OmniMask

WAYS = ("showo", "showo, recompute=full", "eager")
ROWS = (4, 0, 0)
CAPTION = 40


def resident(kind: str = "VmRSS") -> int:
    """Bytes of this process, now, or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(kind)).split()[1])


def sizes(hidden: int, layers: int) -> ShowoConfig:
    wide = {"hidden_size": hidden, "num_heads": hidden // 64, "intermediate_size": 4 * hidden}
    return replace(official(), num_layers=layers, **wide)


class EagerGelu(nn.Module):
    """`gelu_new` as transformers computes it, operation by operation."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def make_eager(model: Showo, mask: OmniMask) -> None:
    """The blocks compute as the official code's backbone does, in plain torch: heads normed and turned one operation
    after the other, the GELU by its formula, scores of all pairs with a dense mask added, softmax in fp32.
    """
    blocked = ~mask.to_dense()[:, None]
    bias = torch.zeros(blocked.shape).masked_fill(blocked, torch.finfo(torch.float32).min)

    def attend(q: Tensor, k: Tensor, v: Tensor, _: OmniMask) -> Tensor:
        scores = q.float() @ k.float().transpose(2, 3) / math.sqrt(q.shape[-1]) + bias
        return F.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype) @ v

    model.attend = attend
    gelu = EagerGelu()
    for block in model.showo.model.layers:
        block.self_attn.fused_heads = block.self_attn.split_heads
        block.mlp.forward = lambda x, mlp=block.mlp: mlp.fc2(gelu(mlp.fc1(x)))


def eager_loss(model: Showo, batch: Batch, hidden: Tensor) -> Tensor:
    """As officially: logits of all places, of which each part of the batch is cut out with its labels, t2i from the
    picture on, texts all but their last place.
    """
    logits, total = model.logits(hidden).float(), hidden.new_zeros(())
    length, text = batch.input_ids.shape[1], model.config.max_text_len + 1
    for name, part in batch.parts.items():
        rows = slice(part.first // length, part.end // length)
        places = slice(text, None) if name == "t2i" else slice(None, -1)
        some = logits[rows, places].contiguous().view(-1, logits.shape[-1])
        loss = F.cross_entropy(some, batch.targets[rows, places].contiguous().view(-1), ignore_index=IGNORE)
        total = total + DEFAULT_WEIGHTS[name] * loss
    return total


def showo_loss(model: Showo, batch: Batch, hidden: Tensor) -> Tensor:
    """As `multimodal_loss`, of hidden states that are there."""
    counts = [part.targets for part in batch.parts.values()]
    targets = batch.targets.flatten()[batch.labelled].split(counts)
    parts = zip(batch.parts, hidden.flatten(0, 1).split(counts), targets, strict=True)
    sums = {name: token_loss(model, some, wanted) for name, some, wanted in parts}
    return Losses(sums, dict(zip(batch.parts, map(float, counts), strict=True)), DEFAULT_WEIGHTS).total


class Peak:
    """The most that this process has at once beside what it had at first and the gradients of `model`: of those, what
    is there when somebody looks.
    """

    def __init__(self, model: Showo) -> None:
        self.model, self.before, self.most = model, resident(), 0
        for parameter in model.parameters():
            if parameter.nbytes > 2**20:
                parameter.register_post_accumulate_grad_hook(self.look)
        _set_back()

    def look(self, _: object = None) -> None:
        gradients = sum(p.grad.nbytes for p in self.model.parameters() if p.grad is not None)
        self.most = max(self.most, resident("VmHWM") - self.before - gradients)
        _set_back()


def _set_back() -> None:
    """The high-water mark is what there is now (Linux, proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(way: str, config: ShowoConfig) -> dict[str, float]:
    """In this process."""
    torch.manual_seed(0)
    model = Showo(config)
    batch, rows = padded_rows(config, *ROWS, CAPTION), None
    recompute = "full" if way.endswith("full") else "none"
    if way == "eager":
        make_eager(model, batch.mask)
    else:
        batch = batch.packed(config.vocabulary.pad)
        rows = batch.labelled[None]
        recompute_activations(model, recompute)
    peak = Peak(model)
    hidden = model.hidden_states(batch.input_ids, mask=batch.mask, positions=batch.positions, rows=rows)
    kept = resident() - peak.before
    loss = (eager_loss if way == "eager" else showo_loss)(model, batch, hidden)
    peak.look()
    loss.backward()
    peak.look()
    return {
        "loss": float(loss.detach()),
        "places": batch.input_ids.numel(),
        "state": sum(2 * parameter.nbytes for parameter in model.parameters()),
        "kept": kept,
        "planned": activation_memory(model, "fp32", batch.input_ids.numel())[recompute],
        "most": peak.most,
    }


def in_own_process(way: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench_step_memory", "--way", way]
    command += [f"--hidden={options.hidden}", f"--layers={options.layers}", f"--threads={options.threads}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} has failed: {done.stderr}")
    found: dict[str, float] = json.loads(re.findall(r"\{.*\}", done.stdout)[-1])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=WAYS, help="measure this way in this process, as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.way:
        print(json.dumps(measure(options.way, sizes(options.hidden, options.layers))))
        return
    found = {way: in_own_process(way, options) for way in WAYS}
    table = Table("MiB", *WAYS)
    names = {
        "state": "weights and gradients",
        "kept": "kept of the blocks for the backward pass",
        "planned": "as showo plan expects of so many places",
        "most": "at most at once, beside weights and gradients",
    }
    for key, name in names.items():
        table.add_row(name, *(f"{each[key] / 2**20:,.0f}" for each in found.values()))
    table.add_row("places", *(f"{each['places']:,.0f}" for each in found.values()))
    table.add_row("loss", *(f"{each['loss']:.4f}" for each in found.values()))
    Console(width=120).print(table)
    *ours, eager = (found[way]["most"] for way in WAYS)
    print("of eager: " + ", ".join(f"{each / eager:.3f}" for each in ours))


if __name__ == "__main__":
    main()
