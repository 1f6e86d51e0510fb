"""How the ranks of a training share a model: each has a whole one (DDP), or a part of one (`showo.train.sharded`).

A loss is a mean over the targets of the whole step, and each rank's is a summand of it. So gradients are added up over
the ranks; as DDP and FSDP take means of them, each rank's is multiplied by the number of ranks
(`showo.train.step.accumulate_gradients`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from showo.train.ranks import Ranks


class Parallel:
    """A model that one rank trains alone, and what the other kinds have in common.

    copies: how many ranks have one and the same part of a gradient, once it is added up.
    autocast: whether matrix products in bf16 are torch.autocast's business.
    """

    autocast = True

    def __init__(self, model: nn.Module, ranks: Ranks | None = None) -> None:
        self.model, self.ranks = model, ranks or Ranks()
        self.copies = self.ranks.count

    def trained(self, module: nn.Module) -> nn.Module:
        """What to call in training in place of `module`, of which the model is a part: once, before there is an
        optimizer.
        """
        return module

    @contextmanager
    def adding_up(self, last: bool) -> Iterator[None]:
        """Forward and backward pass of a micro-batch; ranks add up their gradients in the last one of a step."""
        yield

    @contextmanager
    def whole(self) -> Iterator[nn.Module | None]:
        """The model with all of its weights, on rank 0; None on the others, which enter together with it."""
        yield self.model if self.ranks.first else None

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole state, as `load` takes it on rank 0, which alone may look at it. All ranks call this together."""
        return optimizer.state_dict()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """All weights by the model's own names, which rank 0 has. All ranks call this together."""
        self.model.load_state_dict(weights)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """What `optimizer_state` has given on rank 0. All ranks call this together."""
        optimizer.load_state_dict(state)


class Replicated(Parallel):
    """A whole model on every rank (DistributedDataParallel)."""

    _ddp: DistributedDataParallel

    def trained(self, module: nn.Module) -> nn.Module:
        with warnings.catch_warnings():  # newer releases have another name for the option, which older ones lack
            warnings.simplefilter("ignore", FutureWarning)
            self._ddp = DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)
        return self._ddp

    @contextmanager
    def adding_up(self, last: bool) -> Iterator[None]:
        if last:
            yield
            return
        with self._ddp.no_sync():
            yield

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        set_model_state_dict(self.model, dict(weights), options=_FROM_FIRST)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        set_optimizer_state_dict(self.model, optimizer, by_name(self.model, optimizer, state), options=_FROM_FIRST)


_FROM_FIRST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def names_in_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Of the parameters of an optimizer, whose number there is their number in the list."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state that has the numbers of parameters, as `optimizer.state_dict()`, with their names; {} of {}."""
    if not state:
        return {}
    names = names_in_order(model, optimizer)
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[i]: values for i, values in state["state"].items()}, "param_groups": groups}


def local_part(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
