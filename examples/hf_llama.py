"""A decoder of transformers with `attn_implementation="omni"`: a step of training and a generation, beside eager.

    python examples/hf_llama.py

The model is a tiny Llama with random weights; `AutoModelForCausalLM.from_pretrained(name, attn_implementation="omni")`
does the same to one with weights.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from showo_ext.integrations import hf

CONFIG = LlamaConfig(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
)


def build(implementation: str) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIG), attn_implementation=implementation)


def train(model: nn.Module, ids: Tensor, shown: Tensor) -> float:
    """The loss after one step of SGD."""
    labels = ids.masked_fill(shown == 0, -100)
    labels[:, 1:].masked_fill_(shown[:, :-1] == 0, -100)  # places of padding predict nothing either
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids, attention_mask=shown, labels=labels).loss.backward()
    optimizer.step()
    with torch.no_grad():
        return float(model(ids, attention_mask=shown, labels=labels).loss)


def main() -> None:
    hf.register()
    omni, eager = build("omni"), build("eager")
    ids = torch.randint(2, 256, (2, 24), generator=torch.Generator().manual_seed(1))
    shown = torch.ones_like(ids)
    shown[0, :9] = 0  # left padding

    losses = [train(model, ids, shown) for model in (omni, eager)]
    print(f"a step of training: loss {losses[0]:.4f}, largest difference {abs(losses[0] - losses[1]):.1e}")

    options = {"attention_mask": shown, "max_new_tokens": 8, "do_sample": False, "output_logits": True}
    ours, theirs = (model.generate(ids, **options, return_dict_in_generate=True) for model in (omni, eager))
    difference = (torch.stack(ours.logits) - torch.stack(theirs.logits)).abs().max()
    print(f"generated {ours.sequences[1, 24:].tolist()}: largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
