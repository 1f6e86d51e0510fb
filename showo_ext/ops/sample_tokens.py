"""sample_tokens: guidance, temperature, top-k, top-p, choice and log-probability in one pass over the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from showo_ext._native import launch
from showo_ext._operator import Operator
from showo_ext.ops._sampling import (
    SAMPLING_SCHEMA,
    Number,
    check_logits,
    noise_arguments,
    sample_arguments,
    split_guidance,
    split_limits,
    split_seed,
    split_step,
    split_temperature,
    split_weights,
)


def sample_tokens(
    logits: Tensor,
    uncond: Tensor | None = None,
    *,
    guidance: Number = 0.0,
    weights: Tensor | None = None,
    temperature: Number = 1.0,
    top_k: int | Tensor = 0,
    top_p: Number = 1.0,
    seed: int | Tensor,
    step: int | Tensor = 0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Chooses one index per row of `logits` and gives its log-probability. Not differentiable.

    With x = (1 + guidance) * logits - guidance * uncond (rounded to fp32 after every product, whatever the dtype), the
    distribution is p = softmax(x / temperature) over the tokens that `top_k`, then `top_p` keep, and the choice is
    argmax of log p + Gumbel(u), Gumbel(u) = -log(-log u); equal scores go to the lower index. `logprob` is log p of
    the choice, with p renormalised over what was kept. `temperature=0` takes the most probable token; its logprob is
    that at temperature 1 (the limit would be 0 for every token, useless as a confidence).

    `top_k` keeps exactly that many tokens, equal ones by lower index. `top_p` keeps the shortest prefix in order of
    probability (equal ones by lower index) whose mass among the tokens that top_k left reaches it; masses are right to
    about 1e-6, so a prefix that ends within that of `top_p` may end one token sooner or later. A token whose logit is
    -inf in `logits` or `uncond` is never chosen.

    Without `noise` the uniforms come from Philox4x32-10 (csrc/common/philox.h), the same on every device: keyed by
    seed, step, row (dimension 0; only with one seed for the whole batch), position (the dimensions between, flattened)
    and index. They have 23 bits, so tokens e^19 times less probable than the likeliest are not drawn.

    Numbers that change from call to call (guidance, temperature, top_k, top_p, step) may be tensors of one number on
    the device of `logits`: 0-d, float32 or float64 (top_k and step int64). They are read there, without waiting for
    the device, by a captured CUDA graph anew at every replay; torch.compile compiles once for all their values. The
    results are those of the same number in Python, bit for bit.

    Several conditions are composed with `weights` (arXiv 2206.01714 for diffusion; 2405.06535): `logits` has K of them
    first, and x = sum_i w_i * logits[i] - (sum_i w_i - 1) * uncond, which is uncond + sum_i w_i * (logits[i] - uncond),
    added in this order, every operation rounded to fp32. A negative weight leads away from its condition. Logits whose
    factor is 0 in fp32 are not read, and a token that is -inf in others is never chosen. One condition of weight 1 + g
    is guidance g, bit for bit.

    Args:
        logits: `[..., V]` float32, float16 or bfloat16, any strides with a contiguous last dimension. With weights
            `[K, ..., V]`, 1 to 8 conditions; the other shapes below are then those of `logits[0]`.
        uncond: logits without the condition, same shape and dtype. Not read if guidance is 0.
        guidance: at least 0; as in the official Show-o code, 0 means none.
        weights: float32 or float64 `[K]`, or `[B, K]` for every row (dimension 0) its own, of logits' device, between
            -1e30 and 1e30; instead of guidance. Read on the device, as the tensors above.
        temperature: 0, or between 1e-30 and 1e30.
        top_k: 0 for no limit; V or more also keep every token.
        top_p: in (0, 1], 1 for no limit.
        seed: any integer for the batch, taken modulo 2^64 (-1 is 2^64 - 1), or int64 `[B]`, one for each
            row: a row then gets the same noise in any batch, namely that of a batch of one with this seed. (A 0-d
            tensor is like an int.)
        step: a number below 2^32 that makes the noise of one step of a loop differ from the next.
        noise: float32 uniforms in (0, 1) of the shape of `logits`, instead of Philox.

    Returns:
        `ids`, int64 `[...]`, and `logprob`, float32 `[...]`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range; on the CPU also NaN or +inf
            among the logits, a row of -inf, guidance that overflows fp32, noise outside (0, 1). CUDA kernels cannot
            raise for values: there the row in which they stand gets index 0 and logprob NaN, and so does every row
            for a temperature tensor out of range. Of the other tensors, a negative guidance is used as it is, a
            negative top_k and a top_p that is NaN or above 1 are no limit, a top_p of 0 or less keeps one token, and
            of a step the low 32 bits count.
    """
    one = check_logits(logits, uncond, noise, weights, guidance)
    weight, weight_tensor = split_guidance(guidance, uncond, logits)
    seed, seeds = split_seed(seed, one.shape[0] if one.dim() > 1 else 1, "logits", one)
    step, step_tensor = split_step(step, "logits", logits)
    if weight == 0 and weights is None:
        uncond = None
    ids, logprob = _OPERATOR(
        logits.detach(),
        None if uncond is None else uncond.detach(),
        seed,
        seeds,
        step,
        step_tensor,
        noise,
        weight,
        weight_tensor,
        split_weights(weights),
        *split_temperature(temperature, logits),
        *split_limits(top_k, top_p, logits),
    )
    return ids, logprob


# ----------------------------------------------------------------------------------------------------------------
# implementations


def as_rows(logits: Tensor, first: int = 0) -> Tensor:
    """`[B, N, V]`: dimension `first` is the batch row, what lies between it and the vocabulary the position; dimensions
    before it stay. A view if it can be.
    """
    if logits.dim() == first + 1:
        return logits[..., None, None, :]
    if logits.dim() == first + 2:
        return logits[..., None, :]
    rows = logits.flatten(first + 1, -2)
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _sample_tokens(
    logits: Tensor,
    uncond: Tensor | None,
    seed: int,
    seeds: Tensor | None,
    step: int,
    step_tensor: Tensor | None,
    noise: Tensor | None,
    guidance: float,
    guidance_tensor: Tensor | None,
    weights: Tensor | None,
    *sampling: Any,
) -> tuple[Tensor, Tensor]:
    ids, logprob = _outputs(logits if weights is None else logits[0])
    cond = as_rows(logits, 0 if weights is None else 1)
    free = None if uncond is None else as_rows(uncond)
    launch(
        "sample_tokens",
        cond,
        ids=ids,
        logprob=logprob,
        **sample_arguments(cond, free, guidance, guidance_tensor, weights, *sampling),
        **noise_arguments(noise, seed, seeds, step, step_tensor),
    )
    return ids, logprob


def _sample_tokens_fake(
    logits: Tensor,
    uncond: Tensor | None,
    seed: int,
    seeds: Tensor | None,
    step: int,
    step_tensor: Tensor | None,
    noise: Tensor | None,
    guidance: float,
    guidance_tensor: Tensor | None,
    weights: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    return _outputs(logits if weights is None else logits[0])


def _outputs(logits: Tensor) -> tuple[Tensor, Tensor]:
    shape = logits.shape[:-1]
    return logits.new_empty(shape, dtype=torch.int64), logits.new_empty(shape, dtype=torch.float32)


# ----------------------------------------------------------------------------------------------------------------
# registration

_OPERATOR = Operator(
    "sample_tokens(Tensor logits, Tensor? uncond, SymInt seed, Tensor? seeds, SymInt step, Tensor? step_tensor, "
    f"Tensor? noise, {SAMPLING_SCHEMA}) -> (Tensor ids, Tensor logprob)",
    _sample_tokens,
    _sample_tokens_fake,
)
