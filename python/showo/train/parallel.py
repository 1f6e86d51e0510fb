"""How the ranks of a training share a model: each has a whole one (DDP), or a part of one (`showo.train.sharded`).

A loss is a mean over the targets of the whole step, and each rank's is a summand of it. So gradients are added up over
the ranks; as DDP and FSDP take means of them, each rank's is multiplied by the number of ranks
(`showo.train.step.accumulate_gradients`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
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


def local_part(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
