"""flash-attn's functions against its documented formula, in fp64, sequence by sequence."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from showo_ext import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from showo_ext.testing import poisoned, randn


def formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    softmax_scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """out [S_q, H, D] and lse [H, S_q] of one sequence, q [S_q, H, D] and k, v [S_kv, H_kv, D]; rows without columns
    give zeros and -inf.
    """
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    left, right = window_size[0], 0 if causal else window_size[1]
    own = torch.arange(len(q))[:, None] + len(k) - len(q)
    column = torch.arange(len(k))[None]
    hidden = torch.zeros(len(q), len(k), dtype=torch.bool)
    if left >= 0:
        hidden |= column < own - left
    if right >= 0:
        hidden |= column > own + right
    scores = scores.masked_fill(hidden, float("-inf"))
    empty = hidden.all(1)
    lse = scores.logsumexp(-1)
    weights = (scores.masked_fill(empty[:, None], 0.0) - lse.masked_fill(empty, 0.0)[..., None]).exp()
    return torch.einsum("hij,jhd->ihd", weights.masked_fill(hidden, 0.0), v), lse


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Within two roundings of the dtype of what is largest: test_omni_attention.py holds the operator to its budget."""
    assert actual.shape == expected.shape
    actual, expected = actual.detach(), expected.detach()
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite)
    error = (actual.double() - expected)[finite].abs().max() if finite.any() else torch.tensor(0.0)
    unit = max(torch.finfo(dtype).eps, 1e-6)
    assert error <= 4 * unit * max(1.0, float(expected[finite].abs().max()) if finite.any() else 0.0), float(error)


OPTIONS = [
    {},
    {"causal": True},
    {"window_size": (3, 2)},
    {"window_size": (5, -1), "causal": True},
    {"window_size": (-1, 4), "softcap": 2.5},
    {"softmax_scale": 0.3, "causal": True, "softcap": 10.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_func(options: dict) -> None:
    """Values, lse and gradients of both, with rows before the first column and grouped heads; a head size per case."""
    number = OPTIONS.index(options)
    dim, dtype = (64, 40, 128, 8, 256, 96)[number], (torch.float32, torch.bfloat16)[number % 2]
    rows, columns = ((7, 19), (19, 7), (33, 33))[number % 3]
    q = randn(2, rows, 4, dim, dtype=dtype, seed=number).requires_grad_()
    k, v = (randn(2, columns, 2, dim, dtype=dtype, seed=n + 100 * number).requires_grad_() for n in (1, 2))
    out, lse, probabilities = flash_attn_func(q, k, v, return_attn_probs=True, **options)
    assert probabilities is None
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert torch.equal(flash_attn_func(q, k, v, **options), out)
    doubles = [x.detach().double().requires_grad_() for x in (q, k, v)]
    each = [formula(*(x[n] for x in doubles), **options) for n in range(2)]
    expected, expected_lse = (torch.stack(parts) for parts in zip(*each, strict=True))
    close(out, expected, dtype)
    close(lse, expected_lse, torch.float32)
    dout = randn(*out.shape, dtype=dtype, seed=9)
    gradients = torch.autograd.grad(out, (q, k, v), dout)
    for actual, oracle in zip(gradients, torch.autograd.grad(expected, doubles, dout.double()), strict=True):
        close(actual, oracle, dtype)


@pytest.mark.parametrize("options", OPTIONS[1:], ids=str)
def test_varlen(options: dict) -> None:
    """Sequences of random lengths, empty ones too, against each by itself; a place behind the last gives zeros."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    rows, columns = ([rng.choice([0, 1, 5, 9]) for _ in range(5)] for _ in range(2))
    q = randn(sum(rows) + 1, 4, 32, seed=seed)
    k, v = (randn(max(1, sum(columns)), 4, 32, seed=seed + n) for n in (1, 2))
    ends = [torch.tensor([0, *sizes], dtype=torch.int32).cumsum(0, dtype=torch.int32) for sizes in (rows, columns)]
    out, lse, _ = flash_attn_varlen_func(q, k, v, *ends, max(rows), max(columns), return_attn_probs=True, **options)
    assert lse.shape == (4, sum(rows) + 1)
    for first, last, begin, end in zip(ends[0], ends[0][1:], ends[1], ends[1][1:], strict=False):
        expected, expected_lse = formula(
            q[first:last].double(), k[begin:end].double(), v[begin:end].double(), **options
        )
        if last > first:
            close(out[first:last], expected, torch.float32)
            close(lse[:, first:last], expected_lse, torch.float32)
    assert not out[-1].any()


@pytest.mark.parametrize("window", [(-1, -1), (4, -1)])
@pytest.mark.parametrize("kind", ["int", "tensor", "none"])
def test_kvcache(kind: str, window: tuple[int, int]) -> None:
    """New keys and values are written behind each sample's own, and what lies behind them is not read."""
    batch, slots, new = 3, 20, 0 if kind == "none" else 2
    filled = {"int": [6] * 3, "tensor": [0, 11, 18], "none": [slots] * 3}[kind]
    caches = [randn(batch, slots, 2, 64, seed=n) for n in (1, 2)]
    for cache in caches:
        for sample, length in enumerate(filled):
            cache[sample, length:] = poisoned((slots - length, 2, 64))
    before = [cache.clone() for cache in caches]
    added = [randn(batch, new, 2, 64, seed=n) for n in (3, 4)] if new else []
    q = randn(batch, 2, 4, 64, seed=5)
    lengths = {"int": 6, "tensor": torch.tensor(filled, dtype=torch.int32), "none": None}[kind]
    out, lse = flash_attn_with_kvcache(
        q, *caches, *added, cache_seqlens=lengths, causal=True, window_size=window, return_softmax_lse=True
    )
    for sample, length in enumerate(filled):
        for cache, old, part in zip(caches, before, added, strict=False):
            assert torch.equal(cache[sample, :length], old[sample, :length])
            assert torch.equal(cache[sample, length : length + new], part[sample])
        keys, values = (cache[sample, : length + new].double() for cache in caches)
        expected, expected_lse = formula(q[sample].double(), keys, values, causal=True, window_size=window)
        close(out[sample], expected, torch.float32)
        close(lse[sample], expected_lse, torch.float32)


def test_masks_follow_lengths_that_change_in_place() -> None:
    q, k, v = (randn(12, 2, 32, seed=n) for n in range(3))
    ends = torch.tensor([0, 4, 12], dtype=torch.int32)
    first = flash_attn_varlen_func(q, k, v, ends, ends, causal=True)
    assert torch.equal(flash_attn_varlen_func(q, k, v, ends, ends, causal=True), first)
    ends[1] = 9
    again = flash_attn_varlen_func(q, k, v, ends, ends, causal=True)
    assert not torch.equal(again, first)
    assert torch.equal(again, flash_attn_varlen_func(q, k, v, ends.clone(), ends.clone(), causal=True))


def test_compiles() -> None:
    q, k, v = (randn(2, 9, 4, 64, seed=n).requires_grad_() for n in range(3))
    compiled = torch.compile(flash_attn_func, fullgraph=True, backend="aot_eager")
    out = compiled(q, k, v, causal=True, window_size=(3, 0))
    expected = flash_attn_func(q, k, v, causal=True, window_size=(3, 0))
    assert torch.equal(out, expected)
    for one, other in zip(
        torch.autograd.grad(out.sum(), (q, k, v)), torch.autograd.grad(expected.sum(), (q, k, v)), strict=True
    ):
        assert torch.equal(one, other)


Q = torch.zeros(1, 3, 2, 32)
ENDS = torch.tensor([0, 3], dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: flash_attn_func(Q, Q, Q, 0.1), NotImplementedError, "dropout_p is 0.1, .* have no dropout"),
        (lambda: flash_attn_func(Q, Q, Q, alibi_slopes=Q[0, 0, :, 0]), NotImplementedError, "alibi_slopes is a tensor"),
        (lambda: flash_attn_func(Q, Q, Q, softcap=-1.0), ValueError, "softcap is -1.0"),
        (lambda: flash_attn_func(Q, Q, Q, window_size=(-2, 0)), ValueError, "window_size is -2, expected"),
        (lambda: flash_attn_func(Q, Q, Q, window_size=(1,)), ValueError, r"window_size is \(1,\), expected"),
        (lambda: flash_attn_func(Q[0], Q, Q), ValueError, r"q has shape \[3, 2, 32\], expected \[B, length, heads"),
        (lambda: flash_attn_func(Q.long(), Q, Q), TypeError, "q has dtype int64"),
        (
            lambda: flash_attn_varlen_func(Q[0], Q[0], Q[0], ENDS, ENDS, block_table=ENDS),
            NotImplementedError,
            "block_table is a tensor, .* none is paged",
        ),
        (lambda: flash_attn_with_kvcache(Q, Q, Q, rotary_cos=Q), NotImplementedError, "rotary_cos is a tensor"),
        (lambda: flash_attn_with_kvcache(Q, Q, Q, cache_seqlens=4), ValueError, "cache_seqlens is 4, expected"),
        (lambda: flash_attn_with_kvcache(Q, Q, Q, Q, Q), ValueError, "cache_seqlens is .* room for k and v"),
        (lambda: flash_attn_with_kvcache(Q, Q, Q, Q), TypeError, "v has type NoneType, expected a torch.Tensor"),
    ],
)
def test_mistakes(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
