"""Decoders of transformers on `omni` against `sdpa` and `eager`: a step of training and a generation.

    python -m benchmarks.bench_hf [--rounds 15] [--threads 2] [--device cpu] [--csv]

A Llama and a Qwen2 with windows, tiny on a CPU. The batch has left padding, which all three are told of; a generation
is a prompt and a few tokens against a dynamic cache.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from benchmarks.harness import OURS, Case, arguments, run
from benchmarks.roofline import Work
from showo_ext.integrations import hf
from showo_ext.testing import randint

IMPLEMENTATIONS = {OURS: "omni", "sdpa": "sdpa", "eager": "eager"}
NEW = 16  # tokens of a generation


def configs(a100: bool) -> dict[str, Any]:
    sizes = {
        "vocab_size": 1024,
        "hidden_size": 2048 if a100 else 256,
        "intermediate_size": 5632 if a100 else 512,
        "num_hidden_layers": 12 if a100 else 2,
        "num_attention_heads": 32 if a100 else 4,
        "num_key_value_heads": 8 if a100 else 2,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    window = {"use_sliding_window": True, "sliding_window": 256 if a100 else 64, "max_window_layers": 1}
    return {"Llama": LlamaConfig(**sizes), "Qwen2": Qwen2Config(**sizes, **window)}


def build(config: Any, implementation: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The same weights for every implementation."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=implementation)
    return model.to(device, dtype).eval()


def step(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def forward_and_backward(ids: Tensor, shown: Tensor) -> Tensor:
        model.zero_grad()
        loss = model(ids, attention_mask=shown, labels=ids, use_cache=False).loss
        loss.backward()
        return loss

    return forward_and_backward


def generation(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda ids, shown: model.generate(ids, attention_mask=shown, max_new_tokens=NEW, do_sample=False)


def cases(device: torch.device, a100: bool) -> Iterator[Case]:
    hf.register()
    dtype = torch.bfloat16 if a100 else torch.float32
    # Eager attention keeps its weights of all layers for the backward pass: 25 GiB of these fit beside three models.
    batch, length = (8, 1024) if a100 else (2, 384)
    shown = torch.ones(batch, length, dtype=torch.int64, device=device)
    shown[0, : length // 3] = 0

    def inputs(i: int) -> tuple[Tensor, Tensor]:
        return randint(1, 1024, (batch, length), seed=i, device=device), shown

    for name, config in configs(a100).items():
        models = {label: build(config, kind, device, dtype) for label, kind in IMPLEMENTATIONS.items()}
        weights = sum(weight.numel() for weight in models[OURS].parameters())
        size = f"B{batch} S{length} hidden {config.hidden_size}, {config.num_hidden_layers} layers"
        for what, make, flops in (
            (f"{name}: training step, {size}", step, 6.0 * weights * batch * length),
            (f"{name}: {NEW} new tokens, {size}", generation, 2.0 * weights * batch * (length + NEW)),
        ):
            candidates = {label: make(model) for label, model in models.items()}
            yield Case("hf", what, candidates, inputs, Work(flops, 0.0, dtype))


if __name__ == "__main__":
    run(cases, arguments(__doc__).parse_args())
