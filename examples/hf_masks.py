"""The masks of transformers' decoders on `attn_implementation="omni"`, each beside eager attention.

    python examples/hf_masks.py

A tiny Qwen2 whose last layer has a window of six tokens: packed rows, given by positions that begin anew; and a dense
mask of the caller's own, in which a prefix sees itself both ways. The last mask needs more than eight intervals a row.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config

from showo_ext import OmniMask
from showo_ext.integrations import hf

LENGTH = 24
CONFIG = Qwen2Config(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    use_sliding_window=True,
    sliding_window=6,
    max_window_layers=1,
)


def build(implementation: str) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIG), attn_implementation=implementation).eval()


def additive(seen: Tensor) -> Tensor:
    """bool [B, S, S] as eager attention takes it: [B, 1, S, S], 0 where a row sees a column."""
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min).unsqueeze(1)


def main() -> None:
    hf.register()
    omni, eager = build("omni"), build("eager")
    ids = torch.randint(256, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    prefix = OmniMask.prefix(torch.tensor([10]), LENGTH).to_dense()
    masks: dict[str, dict[str, Any]] = {
        "packed, 9 and 15 tokens": {"position_ids": torch.tensor([[*range(9), *range(15)]])},
        "a prefix of 10 tokens": {"attention_mask": additive(prefix)},
    }
    for name, mask in masks.items():
        with torch.no_grad():
            ours, theirs = (model(ids, **mask, use_cache=False).logits for model in (omni, eager))
        print(f"{name}: largest difference {(ours - theirs).abs().max():.1e}")

    every_second = prefix & (torch.arange(LENGTH) % 2 == 0)
    try:
        omni(ids, attention_mask=additive(every_second))
    except ValueError as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    main()
