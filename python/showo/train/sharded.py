"""Ranks that have a part of the model each: weights, gradients and the optimizer's state (FSDP2, `fully_shard`).

A block's weights are together on a rank only while the rank computes with them. Products are computed in the
configuration's precision, from copies of the weights in it; weights, gradients that are added up, and the optimizer's
state are fp32. Embeddings, head, final norm and projector are one part, which is whole through a micro-batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from showo.errors import ConfigError
from showo.train.config import ShardOptions
from showo.train.parallel import Replicated
from showo.train.ranks import Ranks

_ON_FIRST = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Sharded(Replicated):
    """Shares a model out. Until `trained` has been called its weights are whole, on any device."""

    autocast = False

    def __init__(
        self,
        model: nn.Module,
        ranks: Ranks,
        blocks: Sequence[nn.Module],
        options: ShardOptions,
        precision: str,
        device: torch.device,
    ) -> None:
        """blocks: parts of the model that are whole one after the other. Raises ConfigError as `shard_mesh`."""
        super().__init__(model, ranks)
        self.blocks, self.options, self.precision, self.device = blocks, options, precision, device
        self.mesh = shard_mesh(ranks.count, options, device)
        self.copies = self.mesh.size(0) if self.mesh.ndim == 2 else 1
        self._plain = without_weights(model) if ranks.first else None
        self._root: FSDPModule

    def trained(self, module: nn.Module) -> nn.Module:
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if self.precision == "bf16" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # rotary tables stay fp32
        )
        offload = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if self.options.offload else OffloadPolicy()
        for part in (*self.blocks, module):
            fully_shard(part, mesh=self.mesh, mp_policy=policy, offload_policy=offload)
        assert isinstance(module, FSDPModule)
        self._root = module
        return module

    @contextmanager
    def adding_up(self, last: bool) -> Iterator[None]:
        self._root.set_requires_gradient_sync(last)
        yield

    @contextmanager
    def whole(self) -> Iterator[nn.Module | None]:
        weights: Any = get_model_state_dict(self.model, options=_ON_FIRST)
        if self._plain is None:
            yield None
            return
        self._plain.load_state_dict(weights, assign=True)
        try:
            yield self._plain.to(self.device).eval()
        finally:
            self._plain.load_state_dict({name: weight.to("meta") for name, weight in weights.items()}, assign=True)


def shard_mesh(count: int, options: ShardOptions, device: torch.device) -> DeviceMesh:
    """Ranks in a row, which share one copy of the weights; or, where `shards` ranks share a copy, rows of so many.

    Raises ConfigError where that is no divisor of the number of ranks.
    """
    shards = options.shards or count
    if count % shards:
        raise ConfigError(f"fsdp.shards must divide the number of ranks, {count}, got {shards}")
    if shards == count:
        return init_device_mesh(device.type, (count,), mesh_dim_names=("shards",))
    return init_device_mesh(device.type, (count // shards, shards), mesh_dim_names=("replicas", "shards"))


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters take no memory (torch's meta device)."""
    kept: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, kept)
