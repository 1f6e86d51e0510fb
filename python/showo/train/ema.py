"""An exponential moving average of the weights that a training learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """After every step that was not skipped, average = decay * average + (1 - decay) * weights.

    It begins as the weights. Only what is learned has an average of its own: frozen weights are what they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._learned.items()}

    @torch.no_grad()
    def update(self, finite: Tensor) -> None:
        """finite: bool without dimensions, whether the step was done. Does not wait for the device."""
        share = finite.float() * (1 - self.decay)
        for name, parameter in self._learned.items():
            self._average[name].lerp_(parameter, share.to(parameter.dtype))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Meanwhile the model has the average in place of its weights, and the average's tensors hold the weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Takes weights of the model's own names as the average."""
        for name, average in self._average.items():
            average.copy_(weights[name])

    def _exchange(self) -> None:
        for name, parameter in self._learned.items():
            parameter.data, self._average[name] = self._average[name], parameter.data
