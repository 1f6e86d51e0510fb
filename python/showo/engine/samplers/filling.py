"""What a sampler is and what every one is told before the first step, and the one call by which tokens are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from showo.engine.schedule import Schedule, mask_lengths
from showo_ext import resample


@dataclass(frozen=True)
class Prediction:
    """What the model says about the places [B, N] of pictures in one step.

    noise [B, N, V] and place_noise [B, N]: fp32 uniforms in (0, 1) for the choice of tokens and of places, instead of
    those that follow from the seeds: for exact tests.
    """

    cond: Tensor  # [B, N, V]; of composed prompts [K, B, N, V]
    uncond: Tensor | None  # [B, N, V]; None where all guidance is 0
    noise: Tensor | None = None
    place_noise: Tensor | None = None


class Drawn(NamedTuple):
    """What a step gives, all [B, N]."""

    ids: Tensor  # int64, the canvas of the next step: mask_id where a token is still wanted
    masked: Tensor  # bool, where that is
    sampled: Tensor  # int64, the canvas without masks: the picture, should this be the last step


class Sampler(Protocol):
    """Made of a `Filling` before the first step; what it can know in advance lies on the device from then on, so that
    no step waits for the device.

    ends_early: whether the picture may be done before the last step. Then the steps that are left change nothing, and
        where asking costs no wait (on the CPU) the loop may leave them out.
    """

    ends_early: bool = False

    def places(self, step: int) -> Tensor | None:
        """The places whose logits step `step` looks at, int64 [B, n], where they are known before the first step: the
        loop computes no other ones, and leaves out a step that has none. None: any masked place may be looked at.
        """
        return None

    def step(self, step: int, prediction: Prediction, canvas: Tensor) -> Drawn:
        """Step `step`, counted from 0, on the canvas that the step before has left."""
        ...


@dataclass(frozen=True)
class Filling:
    """A batch of pictures to fill in, and how. All tensors lie on one device, that of the logits.

    canvas: int64 [B, N] vocabulary ids to begin with, mask_id where tokens are wanted; the others are never changed.
    grid: (height, width), whose product is N; None where the caller did not say, which a square needs not.
    guidance: float64 [steps], w of (1 + w) * cond - w * uncond.
    weights: float64 [steps, B, K] of composed prompts, in place of guidance; or None.
    offset: the id of code 0. schedule, temperature: see the samplers. top_k: 0 is all codes. seeds: int64 [B].
    """

    canvas: Tensor
    grid: tuple[int, int] | None
    steps: int
    guidance: Tensor
    seeds: Tensor
    mask_id: int
    offset: int
    schedule: Schedule
    temperature: float = 1.0
    top_k: int = 0
    weights: Tensor | None = None

    def on_device(self, values: object, dtype: torch.dtype) -> Tensor:
        """Numbers that change from step to step, where the steps are computed."""
        return torch.tensor(values, dtype=dtype, device=self.canvas.device)

    def unknown(self) -> list[int]:
        """[B], the places that begin masked; reads the canvas."""
        return (self.canvas == self.mask_id).sum(1).tolist()

    def mask_lengths(self) -> list[list[int]]:
        """[steps][B], the places that stay masked after each step by the official rule; reads the canvas."""
        return mask_lengths(self.unknown(), self.canvas.shape[1], self.steps, self.schedule)

    def draw(
        self,
        step: int,
        number: Tensor,
        prediction: Prediction,
        canvas: Tensor,
        mask_len: int | Tensor = 0,
        temperature: float | Tensor = 0.0,
        known: Tensor | None = None,
    ) -> Drawn:
        """One call of `showo_ext.resample`: tokens for all places that are not `known` (None: that hold no mask), of
        which the `mask_len` least sure are masked again, by confidences with noise of this temperature.

        number: the step as an int64 tensor on the device.
        """
        weights = None if self.weights is None or prediction.uncond is None else self.weights[step]
        out = resample(
            prediction.cond,
            canvas,
            mask_len,
            self.mask_id,
            uncond=prediction.uncond,
            known=known,
            offset=self.offset,
            guidance=0.0 if weights is not None or prediction.uncond is None else self.guidance[step],
            weights=weights,
            top_k=self.top_k,
            remask_temperature=temperature,
            seed=self.seeds,
            step=number,
            noise=prediction.noise,
            remask_noise=prediction.place_noise,
        )
        return Drawn(out.ids, out.masked, out.sampled)

    def draw_at(self, places: Tensor, step: int, number: Tensor, prediction: Prediction, canvas: Tensor) -> Drawn:
        """Tokens for the `places` (bool [B, N]) alone, all of which stay. In `sampled`, places that are still masked
        hold code 0, since nothing was drawn for them.
        """
        ids = self.draw(step, number, prediction, canvas, known=~places).ids
        masked = ids == self.mask_id
        return Drawn(ids, masked, ids.masked_fill(masked, self.offset))

    def guided(self, step: int, prediction: Prediction) -> Tensor:
        """fp32 [B, N, V], the logits that a step draws from."""
        cond = prediction.cond.float()
        if prediction.uncond is None:
            return cond
        if self.weights is not None:
            factors = self.weights[step].float().T[..., None, None]  # [K, B, 1, 1]
            return (factors * cond).sum(0) - (factors.sum(0) - 1) * prediction.uncond.float()
        weight = self.guidance[step]
        return (1 + weight) * cond - weight * prediction.uncond.float()
