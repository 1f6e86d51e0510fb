"""``sample_tokens`` in plain torch: written for reading; sorts rows and works in fp64 after the guidance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from showo_ext.reference.philox import STREAM_SAMPLE, uniforms


def sample_tokens(
    logits: Tensor,
    uncond: Tensor | None = None,
    *,
    guidance: float | Tensor = 0.0,
    weights: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    seed: int | Tensor,
    step: int | Tensor = 0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose one id per row of ``logits [..., V]``; see :func:`showo_ext.sample_tokens` for the meaning.

    With weights the logits are ``[K, ..., V]``. Returns int64 ``ids [...]`` and fp32 ``logprob [...]``. Arguments are
    taken to be valid.
    """
    guidance, temperature, top_k, top_p = float(guidance), float(temperature), int(top_k), float(top_p)
    guided = _guide(logits, uncond, guidance) if weights is None else _compose(logits, uncond, weights)
    scaled = guided.double() / (temperature or 1.0)
    if 0 < top_k < scaled.shape[-1]:
        scaled = _keep_top_k(scaled, top_k)
    if top_p < 1:
        scaled = _keep_top_p(scaled, top_p)
    logp = scaled.log_softmax(-1)
    if temperature == 0:
        ids = guided.argmax(-1)
    else:
        if noise is None:
            noise = _philox_noise(guided.shape, seed, step, logits.device)
        ids = (logp - (-noise.double().log()).log()).argmax(-1)
    return ids, logp.gather(-1, ids.unsqueeze(-1)).squeeze(-1).float()


def _guide(logits: Tensor, uncond: Tensor | None, guidance: float) -> Tensor:
    """(1 + g) cond - g uncond in fp32, each product rounded; a token that is -inf in either stays forbidden."""
    cond = logits.float()
    if uncond is None or guidance == 0:
        return cond
    free = uncond.float()
    guided = (1 + guidance) * cond - guidance * free
    return guided.masked_fill((cond == -math.inf) | (free == -math.inf), -math.inf)


def _compose(logits: Tensor, uncond: Tensor | None, weights: Tensor) -> Tensor:
    """sum_i w_i logits[i] - (sum_i w_i - 1) uncond in fp32, term by term; what has the factor 0 is not looked at."""
    assert uncond is not None
    columns = weights.double().reshape(*weights.shape, *[1] * (uncond.dim() + 1 - weights.dim()))  # [(B,) K, 1, ...]
    of_conditions = columns.unbind(weights.dim() - 1)
    total = of_conditions[0]
    for weight in of_conditions[1:]:
        total = total + weight
    factors = [*of_conditions, 1 - total]
    guided = torch.full(uncond.shape, -0.0, dtype=torch.float32, device=logits.device)
    forbidden = torch.zeros(uncond.shape, dtype=torch.bool, device=logits.device)
    for term, factor in zip([*logits.float(), uncond.float()], (factor.float() for factor in factors), strict=True):
        read = (factor != 0).expand(uncond.shape)
        guided = torch.where(read, guided + factor * term, guided)
        forbidden |= read & (term == -math.inf)
    return guided.masked_fill(forbidden, -math.inf)


def _keep_top_k(scaled: Tensor, top_k: int) -> Tensor:
    """Exactly the ``top_k`` largest; among equal values the lower index is kept."""
    order = scaled.argsort(dim=-1, descending=True, stable=True)
    return scaled.scatter(-1, order[..., top_k:], -math.inf)


def _keep_top_p(scaled: Tensor, top_p: float) -> Tensor:
    """The shortest prefix, most probable first and lower index first among equals, whose mass reaches ``top_p``."""
    order = scaled.argsort(dim=-1, descending=True, stable=True)
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp().gather(-1, order)
    before = weights.cumsum(-1) - weights
    kept = before < top_p * weights.sum(-1, keepdim=True)
    kept[..., :1] = True
    return scaled.masked_fill(~torch.zeros_like(kept).scatter(-1, order, kept), -math.inf)


def _philox_noise(shape: torch.Size, seed: int | Tensor, step: int | Tensor, device: torch.device) -> Tensor:
    """One uniform per logit: dimension 0 is the row, what lies between it and the vocabulary the position."""
    rows = shape[0] if len(shape) > 1 else 1
    positions = math.prod(shape[1:-1])
    return uniforms(seed, STREAM_SAMPLE, step, rows, positions, shape[-1], device).reshape(shape)
