"""Independent statements of what the sampling operators do: plain Python and numpy, nothing shared with the package."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def philox4x32_10(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """The generator as its paper states it: S-box by multiplication, key bumped by the Weyl constants."""
    x = list(counter)
    k = list(key)
    for _ in range(10):
        a = 0xD2511F53 * x[0]
        b = 0xCD9E8D57 * x[2]
        x = [(b >> 32) ^ x[1] ^ k[0], b % 2**32, (a >> 32) ^ x[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(x)


def philox_uniform(seed: int, stream: int, row: int, position: int, step: int, element: int) -> np.float32:
    """One uniform by the documented counter layout, exact."""
    seed %= 2**64
    words = philox4x32_10((element // 4, position, step, stream * 2**24 + row), (seed % 2**32, seed // 2**32))
    return np.float32(math.ldexp(2 * (words[element % 4] // 2**9) + 1, -24))


def guided(cond: Tensor, uncond: Tensor | None, guidance: float) -> np.ndarray:
    """(1 + g) c - g u, every operation rounded to fp32; forbidden in one input is forbidden."""
    c = cond.detach().float().numpy()
    if uncond is None or guidance == 0:
        return c
    u = uncond.detach().float().numpy()
    with np.errstate(invalid="ignore"):
        x = np.float32(1 + guidance) * c - np.float32(guidance) * u
    x[np.isneginf(c) | np.isneginf(u)] = -np.inf
    return x


def composed(conditions: Tensor, uncond: Tensor, weights: list[float]) -> np.ndarray:
    """sum_i w_i c_i - (sum_i w_i - 1) u of rows that share their weights, every operation rounded to fp32."""
    terms = [*zip(conditions.detach().float().numpy(), map(np.float32, weights)), None]
    terms[-1] = (uncond.detach().float().numpy(), np.float32(-(math.fsum(weights) - 1)))
    read = [(logits, factor) for logits, factor in terms if factor != 0]
    with np.errstate(invalid="ignore"):
        x = read[0][0] * read[0][1]
        for logits, factor in read[1:]:
            x = x + logits * factor
    x[np.logical_or.reduce([np.isneginf(logits) for logits, _ in read])] = -np.inf
    return x


def kept_by_filters(logits: np.ndarray, top_k: int, top_p: float) -> list[int]:
    """Indices kept of one row of temperature'd logits, most probable first, lower index first among equals."""
    order = sorted((i for i in range(len(logits)) if logits[i] > -np.inf), key=lambda i: (-logits[i], i))
    if 0 < top_k < len(logits):
        order = order[:top_k]
    if top_p < 1:
        weights = [math.exp(logits[i] - logits[order[0]]) for i in order]
        target, mass, count = top_p * math.fsum(weights), 0.0, 0
        while count < len(order) and (count == 0 or mass < target):
            mass += weights[count]
            count += 1
        order = order[:count]
    return order


def sample_row(
    x: np.ndarray, noise: np.ndarray | None, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> tuple[int, float, float]:
    """(index, log-probability, lead over the runner-up) of one row of guided logits, in fp64."""
    z = x.astype(np.float64) / (temperature or 1.0)
    kept = kept_by_filters(z, top_k, top_p)
    top = z[kept[0]]
    log_sum = top + math.log(math.fsum(math.exp(z[i] - top) for i in kept))
    if temperature == 0:
        return kept[0], z[kept[0]] - log_sum, math.inf
    assert noise is not None
    scores = sorted((-(z[i] - math.log(-math.log(float(noise[i])))), i) for i in kept)
    lead = scores[1][0] - scores[0][0] if len(scores) > 1 else math.inf
    return scores[0][1], z[scores[0][1]] - log_sum, lead


def remask_row(
    ids: list[int],
    logprob: list[float],
    known: list[bool],
    mask_len: int,
    temperature: float,
    mask_id: int,
    noise: list[float],
) -> tuple[list[int], list[bool]]:
    unknown = [i for i in range(len(ids)) if not known[i]]
    confidence = {i: logprob[i] + temperature * -math.log(-math.log(noise[i])) for i in unknown}
    chosen = set(sorted(unknown, key=lambda i: (confidence[i], i))[:mask_len])
    return [mask_id if i in chosen else v for i, v in enumerate(ids)], [i in chosen for i in range(len(ids))]


def corrupt_row(
    ids: list[int], count: int, mask_id: int, noise: list[float]
) -> tuple[list[int], list[int], list[bool]]:
    chosen = set(sorted(range(len(ids)), key=lambda i: (noise[i], i))[:count])
    masked = [i in chosen for i in range(len(ids))]
    inputs = [mask_id if m else v for m, v in zip(masked, ids)]
    return inputs, [v if m else -100 for m, v in zip(masked, ids)], masked


def favouring_noise(size: int) -> Tensor:
    """`[size, size]` uniforms; row j makes token j win by 19.4 nats, so it is chosen exactly if a filter keeps it."""
    noise = torch.full((size, size), 2.0**-24)
    return noise.fill_diagonal_(1 - 2.0**-24)
