"""An exponential moving average of the weights that a training learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from showo.train.parallel import local_part


class WeightAverage:
    """After every step that was not skipped, average = decay * average + (1 - decay) * weights.

    It begins as the weights. Only what is learned has an average of its own: frozen weights are what they are.

    tensors: the averages, by the names of the weights, and shared among ranks as these are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().clone() for name, p in self._learned.items()}

    @torch.no_grad()
    def update(self, finite: Tensor) -> None:
        """finite: bool without dimensions, whether the step was done. Does not wait for the device."""
        share = finite.float() * (1 - self.decay)
        for average, weights in self._pairs():
            average.lerp_(weights, share.to(weights.device, weights.dtype))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Meanwhile the model has the average in place of its weights, and the average's tensors hold the weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The average of every weight that is learned, and the weight: where ranks have parts of it, this rank's."""
        for name, parameter in self._learned.items():
            yield local_part(self.tensors[name]), local_part(parameter.detach())

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, weights in self._pairs():
            before = weights.clone()
            weights.copy_(average)
            average.copy_(before)
