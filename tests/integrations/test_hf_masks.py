"""The masks of the transformers integration: what its mask function makes, and what tensors it reads as masks."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import masking_utils

from showo_ext import OmniMask
from showo_ext.integrations import _mask_functions, _mask_tensors, hf
from showo_ext.integrations._mask_tensors import mask_of

BATCH, PLACES = 3, 13
HIDDEN = torch.finfo(torch.float32).min


@pytest.fixture
def generator() -> torch.Generator:
    seed = random.SystemRandom().randrange(1 << 20)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


# ---- mask functions --------------------------------------------------------------------------------------------------


def numbers() -> Tensor:
    return torch.tensor([[0] * 5 + [1] * 7 + [2], [0] * 13, [0, 1, 2, 3] + [4] * 9])


def packed_window() -> Callable[..., Any]:
    """As transformers puts it together for packed rows of a model with a window."""
    positions = torch.arange(PLACES) - (numbers()[:, None] < numbers()[..., None]).sum(-1)
    window = masking_utils.sliding_window_causal_mask_function(4)
    if hasattr(masking_utils, "remap_positions_for_packed_sequence"):
        window = masking_utils.remap_positions_for_packed_sequence(window, positions)
    return masking_utils.and_masks(window, masking_utils.packed_sequence_mask_function(numbers()))


def near_or_first(sample: Any, head: Any, q: Any, kv: Any) -> Any:
    """A function of a user: the first two places, and a window that is not causal."""
    return (kv < 2) | ((kv - q).abs() < 2)


FUNCTIONS = {
    "causal": lambda: masking_utils.causal_mask_function,
    "window": lambda: masking_utils.sliding_window_causal_mask_function(4),
    "packed": lambda: masking_utils.and_masks(
        masking_utils.causal_mask_function, masking_utils.packed_sequence_mask_function(numbers())
    ),
    "packed window": packed_window,
    "users": lambda: near_or_first,
}


@pytest.mark.parametrize("padding", ["none", "left", "right", "holes", "uneven", "short"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_intervals_say_what_the_function_says(name: str, padding: str, generator: torch.Generator) -> None:
    """For all places, and for the last three against the last nine, as a cache with an offset asks for them."""
    function = FUNCTIONS[name]()
    shown = torch.ones(BATCH, PLACES, dtype=torch.bool)
    if padding == "left":
        shown[0, :5] = shown[2, :12] = False
    elif padding == "right":
        shown[0, 5:] = shown[2, 1:] = False
    elif padding == "holes":
        shown = torch.rand(BATCH, PLACES, generator=generator) < 0.6
    elif padding == "uneven":  # as many runs as rows, but not one in each
        shown[0, 3:5] = shown[1] = False
    elif padding == "short":  # places that the mask does not reach are padding
        shown = shown[:, :10]
    place = torch.arange(PLACES)
    sample = torch.arange(BATCH)[:, None, None, None]
    said = function(sample, torch.zeros_like(sample), place[:, None], place).expand(BATCH, 1, PLACES, PLACES)[:, 0]
    said = said & torch.nn.functional.pad(shown, (0, PLACES - shown.size(1)))[:, None]
    for q_length, kv_length in ((PLACES, PLACES), (3, 9)):
        q_offset, kv_offset = PLACES - q_length, PLACES - kv_length
        given = None if padding == "none" else shown
        for number in (int, torch.tensor):  # static caches of some versions have tensors for offsets
            made = hf.make_mask(
                BATCH, kv_length, number(kv_offset), function, given, **_queries(q_length, number(q_offset))
            )
            dense = OmniMask(made, kv_length).to_dense().expand(BATCH, -1, -1)
            assert torch.equal(dense, said[:, q_offset:, kv_offset:])


def _queries(length: int, offset: int | Tensor) -> dict[str, Any]:
    """The arguments by which this version of transformers names the queries."""
    if hf.sdpa_mask.__code__.co_varnames[1] == "cache_position":
        return {"cache_position": torch.arange(length) + offset}
    return {"q_length": length, "q_offset": offset}


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "users"])
def test_functions_of_ordinary_decoders_are_not_evaluated_pair_by_pair(name: str) -> None:
    assert _mask_functions.bounds(FUNCTIONS[name](), torch.arange(PLACES)) is not None


def test_a_version_whose_functions_mean_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = masking_utils.sliding_window_overlay

    def wider(sliding_window: int) -> Callable[..., Any]:
        def inner(sample: Any, head: Any, q: Any, kv: Any) -> Any:
            return kv >= q - sliding_window

        inner.__module__, inner.__qualname__ = overlay.__module__, overlay(1).__qualname__
        return inner

    monkeypatch.setattr(masking_utils, "sliding_window_overlay", wider)
    with pytest.raises(RuntimeError, match=r"transformers \d.* hides other pairs"):
        hf.register()


# ---- mask tensors ----------------------------------------------------------------------------------------------------


def dense(generator: torch.Generator) -> Tensor:
    return torch.rand(BATCH, 1, 5, PLACES, generator=generator) < 0.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", ["lowest", "-inf"])
def test_dense_masks(hidden: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    seen = dense(generator)
    value = torch.finfo(dtype).min if hidden == "lowest" else -float("inf")
    additive = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, value)
    for mask in (seen, additive, additive.expand(-1, 4, -1, -1)):
        assert torch.equal(mask_of(mask, 5, PLACES).to_dense(), seen[:, 0])
    assert torch.equal(mask_of(additive[1, 0], 5, PLACES).to_dense(), seen[1:2, 0])
    assert mask_of(additive[:1].expand(BATCH, 1, -1, -1), 5, PLACES).batch_size == 1


def test_a_mask_is_read_once_until_it_is_written_to(generator: torch.Generator) -> None:
    for mask in (dense(generator), OmniMask.causal(BATCH, 5).intervals.contiguous()):
        first = mask_of(mask, 5, PLACES)
        assert mask_of(mask, 5, PLACES) is first
        mask[0, 0] = 0
        second = mask_of(mask, 5, PLACES)
        assert second is not first
        assert not second.to_dense()[0, 0].any()


def test_what_was_read_is_dropped_with_the_tensor(generator: torch.Generator) -> None:
    for make in (dense, lambda _: OmniMask.causal(BATCH, 5).intervals.contiguous()):
        gc.collect()
        before = len(_mask_tensors._MADE)
        mask = make(generator)
        mask_of(mask, 5, PLACES)
        assert len(_mask_tensors._MADE) == before + 1
        del mask
        gc.collect()
        assert len(_mask_tensors._MADE) == before


def test_masks_under_inference_mode(generator: torch.Generator) -> None:
    with torch.inference_mode():
        seen = dense(generator)
        assert torch.equal(mask_of(seen, 5, PLACES).to_dense(), seen[:, 0])
        intervals = OmniMask.causal(BATCH, 5).intervals.clone()
        assert mask_of(intervals, 5, PLACES).to_dense().sum() == 15 * BATCH


REFUSED: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "no tensor": (lambda seen: [[1]], TypeError, "attention_mask"),
    "integers": (lambda seen: seen.long(), TypeError, "attention_mask"),
    "two dimensions of padding": (lambda seen: seen[:, 0, 0], ValueError, r"shape \[3, 13\], expected .*5, 13"),
    "other keys": (lambda seen: seen[..., 1:], ValueError, r"shape \[3, 1, 5, 12\], expected"),
    "intervals of other queries": (lambda seen: OmniMask.causal(3, 4).intervals, ValueError, r"intervals \[B, 5"),
    "a bias": (lambda seen: torch.zeros(seen.shape) + torch.eye(5, 13) * -3, ValueError, r"-3\.0 for \(0, 0, 0\)"),
    "a positive entry": (lambda seen: torch.zeros(seen.shape) + torch.eye(5, 13), ValueError, r"1\.0 for \(0, 0, 0\)"),
    "NaN": (lambda seen: torch.zeros(seen.shape) / 0, ValueError, r"nan for \(0, 0, 0\)"),
    "heads": (lambda seen: torch.cat([seen, ~seen], 1), ValueError, "heads that see different columns"),
    "a learned bias": (lambda seen: torch.zeros(seen.shape, requires_grad=True), NotImplementedError, "requires grad"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str, generator: torch.Generator) -> None:
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        mask_of(make(dense(generator)), 5, PLACES)
