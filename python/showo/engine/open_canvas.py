"""Pictures while they are filled in, step by step, from logits that somebody else computes.

canvas = OpenCanvas(model, texts, canvas=ids, steps=18, ...)
while not canvas.done:
    canvas.advance(logits)        # of canvas.ids, in rows that begin with canvas.texts, the first canvas.rows of them
codes = canvas.codes()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from showo.engine.composing import Others, compose
from showo.engine.growing import all_finite, check_finite
from showo.engine.guidance import guidance_weights
from showo.engine.samplers import Filling, Prediction, find_sampler
from showo.engine.schedule import mask_schedule
from showo.model.transformer import Showo
from showo.prompting import TextIds
from showo.seeds import row_seeds


@dataclass(frozen=True)
class GenerationStep:
    """What a callback sees after each step: all [B, N]; codes are 0-based."""

    step: int
    steps: int
    codes: Tensor  # the whole picture as of now, masked places filled with what was sampled, or 0 where nothing was
    masked: Tensor  # bool, the places that will be chosen again


class OpenCanvas:
    """B pictures; arguments are those of `showo.engine.generate.generate_codes`, which checks them. The canvas lies on
    the model's device and stays as it is.

    texts: of the rows that it takes to draw them: of all pictures their own, where prompts are composed their further
        ones, and at last, with guidance, those of the unconditional half. Row b + i * B is of picture b.
    ids: int64 [B, N], vocabulary ids as of now. step: the next one, from 0 on; it is `done` after `steps`.
    """

    def __init__(
        self,
        model: Showo,
        texts: Sequence[TextIds],
        *,
        negatives: Sequence[TextIds] | None = None,
        also: Sequence[Others] | None = None,
        canvas: Tensor,
        grid: tuple[int, int] | None = None,
        steps: int,
        guidance: float,
        top_k: int,
        schedule: str,
        temperature: float,
        sampler: str,
        guidance_schedule: str,
        seed: int | Sequence[int],
    ) -> None:
        vocab, device, self._batch = model.config.vocabulary, model.device, len(texts)
        make_sampler = find_sampler(sampler)
        weights = guidance_weights(guidance, steps, guidance_schedule)
        conditions, self._guided, composed = list(texts), [weight > 0 for weight in weights], None
        if also is not None:
            shares = guidance_weights(1.0, steps, guidance_schedule)
            conditions, table = compose(texts, also, guidance, shares)
            composed = torch.tensor(table, dtype=torch.float64, device=device)
            self._guided = [share > 0 for share in shares]
        self.texts = [*conditions, *(negatives or [[]] * self._batch)] if any(self._guided) else list(texts)
        self.ids = canvas
        self._filling = Filling(
            self.ids,
            grid,
            steps,
            torch.tensor(weights, dtype=torch.float64, device=device),
            row_seeds(seed, self._batch).to(device),
            vocab.mask_id,
            vocab.image_offset,
            mask_schedule(schedule),
            temperature,
            top_k,
            composed,
        )
        self.step, self.steps = 0, steps
        self._chooser = make_sampler(self._filling)
        self._masked, self._sampled = self.ids == vocab.mask_id, self.ids
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._on_cpu = device.type == "cpu"

    @property
    def done(self) -> bool:
        return self.step == self.steps

    @property
    def rows(self) -> int:
        """How many of the first rows the next step looks at."""
        return len(self.texts) if self._guided[self.step] else self._batch

    @property
    def rows_left(self) -> int:
        """How many of the first rows any of the steps that are left looks at."""
        return len(self.texts) if any(self._guided[self.step :]) else self._batch

    @property
    def places(self) -> Tensor | None:
        """The places whose logits the next step looks at, int64 [B, n]; None where these may be all."""
        return self._chooser.places(self.step)

    @property
    def needs_logits(self) -> bool:
        """Whether the next step draws anything."""
        # Whether a picture is done before its last step is asked where asking does not wait for the device.
        if self._chooser.ends_early and self._on_cpu and self.step > 0 and not self._masked.any():
            return False
        return self.places is None or self.places.shape[1] > 0

    def advance(
        self, logits: Tensor | None, places: Tensor | None = None, noise: tuple[Tensor, ...] = ()
    ) -> GenerationStep:
        """Does the next step. logits: [rows, N, codes]; or [rows, n, codes] of the places [B, n]; None where the step
        needs none. noise: see `Prediction`.

        Raises NotFiniteError for NaN and infinity, on a GPU not before the pictures are done.
        """
        if logits is not None:
            self._finite = self._finite & all_finite(logits)
            if self._on_cpu:
                check_finite(self._finite)
            if places is not None:
                logits = spread(logits, places, self.ids.shape[1])
            cond, uncond = logits, None
            if self._guided[self.step]:
                cond, uncond = logits[: -self._batch], logits[-self._batch :]
                if self._filling.weights is not None:
                    cond = cond.unflatten(0, (-1, self._batch))
            prediction = Prediction(cond, uncond, *noise)
            self.ids, self._masked, self._sampled = self._chooser.step(self.step, prediction, self.ids)
        self.step += 1
        return GenerationStep(self.step - 1, self.steps, self._sampled - self._filling.offset, self._masked)

    def codes(self) -> Tensor:
        """int64 [B, N], 0-based, of the last step."""
        if not self._on_cpu:  # once, since asking waits for the device; what is NaN stays NaN
            check_finite(self._finite)
        return self._sampled - self._filling.offset


def spread(logits: Tensor, places: Tensor, count: int) -> Tensor:
    """[rows, count, V] with logits [rows, n, V] at their places [B, n]; what is elsewhere nobody looks at."""
    whole = logits.new_empty(len(logits), count, logits.shape[2])
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    whole[rows, places.repeat(len(logits) // len(places), 1)] = logits
    return whole
