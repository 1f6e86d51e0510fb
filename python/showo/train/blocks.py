"""How training runs the blocks of a model: which activations are kept for the backward pass, and compiled or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from showo.errors import ConfigError
from showo.model.transformer import Showo

# What takes most of a block's time, and is kept by `selective`: matrix products and attention.
_KEPT = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.showo_ext.omni_attention_forward.default,
    }
)


def recompute_activations(model: Showo, how: str, *, draws: bool = False) -> None:
    """Changes the blocks of `model`. Results and gradients stay the same, bit for bit.

    how: "none" keeps all activations. "full" keeps the input of every block, and computes the block twice.
    "selective" keeps the results of its matrix products and of attention too, and computes the rest twice.
    draws: whether blocks draw random numbers (dropout), which then are kept for the second time.
    """
    if how == "none":
        return
    contexts = partial(create_selective_checkpoint_contexts, _policy) if how == "selective" else None
    for block in model.showo.model.layers:
        block.forward = partial(_twice, block.forward, contexts, draws)


def _twice(
    forward: Callable[..., Any], contexts: Callable[[], Any] | None, draws: bool, *arguments: Any, **named: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **named)
    more: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}
    return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=draws, **more, **named)


def _policy(context: Any, operator: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(model: Showo, backend: str) -> None:
    """Compiles every block by itself, for rows of any length; they share what is compiled. backend: of torch.compile.

    Raises ConfigError for a backend that torch does not have.
    """
    known = torch._dynamo.list_backends(None)
    if backend not in known:
        raise ConfigError(f"compile must be one of {', '.join(sorted(known))}, got {backend!r}")
    for block in model.showo.model.layers:
        block.compile(backend=backend, dynamic=True)
