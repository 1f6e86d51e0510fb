"""Low-rank adapters through `peft`: small matrices beside the linear layers of the blocks, which learn in their place.

The layer of weight W becomes  W x + alpha / rank * B A dropout(x)  with learned A [rank, in] and B [out, rank], where B
begins as zero (LoRA, arXiv 2106.09685). A model with adapters is saved twice: in the official layout, which holds the
sums W + alpha / rank * B A, and its adapters alone in peft's own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from showo.files import atomic_path

# Linear layers of a block. Embeddings and head are no modules that are called, which peft would need.
TARGETS = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's files
_ADAPTER = "default"  # as peft calls the only one


def add_lora(
    model: nn.Module, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], base: str, seed: int
) -> None:
    """Gives the layers of these names adapters, which alone learn from now on. Needs `peft`.

    base: where the weights of `model` are from, for the adapters' configuration. seed: of the first A.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets), base_model_name_or_path=base
    )
    torch.manual_seed(seed % 2**64)
    inject_adapter_in_model(config, model, _ADAPTER)


def adapted_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers of a module that have adapters, by name."""
    if "peft" in sys.modules:  # else there are none, and it takes seconds to import
        from peft.tuners.lora import LoraLayer

        yield from ((name, part) for name, part in module.named_modules() if isinstance(part, LoraLayer))


def merged_layer(layer: Any) -> dict[str, Tensor]:
    """The tensors of the plain layer that computes what a layer with its adapter does."""
    plain = {name: tensor.detach() for name, tensor in layer.base_layer.named_parameters()}
    return {**plain, "weight": plain["weight"] + layer.get_delta_weight(_ADAPTER).detach()}


def save_adapters(module: nn.Module, folder: Path) -> None:
    """Writes the adapters of a module, if it has any, as `peft.PeftModel.from_pretrained` loads them with their
    configuration (`save_adapter_config`).
    """
    if not any(adapted_layers(module)):
        return
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    found = get_peft_model_state_dict(module, adapter_name=_ADAPTER, save_embedding_layers=False)
    tensors = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    with atomic_path(folder / ADAPTER_WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def save_adapter_config(module: nn.Module, folder: Path) -> None:
    """Writes adapter_config.json, as peft loads it, for a module that has adapters."""
    if any(adapted_layers(module)):
        config: Any = module.peft_config
        config[_ADAPTER].save_pretrained(folder)
