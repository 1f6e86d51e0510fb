"""transformers' decoders on omni_attention: what they compute equals what they compute on `eager`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from showo_ext.integrations import hf
from showo_ext.testing import CountOperators
from tests.integrations import models

BATCH, LENGTH = 2, 11


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    hf.register()


@pytest.fixture
def seed() -> int:
    number = random.SystemRandom().randrange(1 << 20)
    print(f"seed {number}")
    return number


# ---- masks: which places are real, and the arguments of the model ----------------------------------------------------


def every_place() -> Tensor:
    return torch.ones(BATCH, LENGTH, dtype=torch.bool)


def padded(side: str) -> Tensor:
    real = every_place()
    real[0, slice(0, 4) if side == "left" else slice(7, None)] = False
    return real


def lower_triangle(real: Tensor) -> Tensor:
    return (torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() & real[:, None]).unsqueeze(1)


def causal(seed: int) -> tuple[Tensor, dict[str, Any]]:
    return every_place(), {}


def left_padding(seed: int) -> tuple[Tensor, dict[str, Any]]:
    real = padded("left")
    return real, {"attention_mask": real.long(), "position_ids": (real.long().cumsum(1) - 1).clamp(0)}


def right_padding(seed: int) -> tuple[Tensor, dict[str, Any]]:
    real = padded("right")
    return real, {"attention_mask": real.long()}


def packed(seed: int) -> tuple[Tensor, dict[str, Any]]:
    positions = torch.tensor([[*range(3), *range(7), 0], [*range(6), *range(5)]])
    return every_place(), {"position_ids": positions}


def dense_bool(seed: int) -> tuple[Tensor, dict[str, Any]]:
    """A random mask of up to 5 runs a row, in which every row sees itself."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.rand(BATCH, 1, LENGTH, LENGTH, generator=generator) < 0.5
    return every_place(), {"attention_mask": seen | torch.eye(LENGTH, dtype=torch.bool)}


def dense_additive(seed: int) -> tuple[Tensor, dict[str, Any]]:
    seen = dense_bool(seed)[1]["attention_mask"]
    return every_place(), {"attention_mask": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)}


MASKS = [causal, left_padding, right_padding, packed, dense_additive]


def inputs_of(keywords: dict[str, Any], seed: int) -> Callable[[torch.dtype], dict[str, Any]]:
    def inputs(dtype: torch.dtype) -> dict[str, Any]:
        given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in keywords.items()}
        return {"input_ids": models.ids(BATCH, LENGTH, seed), **given}

    return inputs


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.__name__)
@pytest.mark.parametrize("name", models.CONFIGS)
def test_outputs_and_gradients(name: str, mask: Callable[[int], tuple[Tensor, dict[str, Any]]], seed: int) -> None:
    real, keywords = mask(seed)
    models.assert_equal_to_eager(models.CONFIGS[name](), real, seed, inputs_of(keywords, seed))


@pytest.mark.parametrize("mask", [causal, left_padding])
def test_gemma2_on_the_cuda_kernels(mask: Callable[[int], tuple[Tensor, dict[str, Any]]], seed: int, emulated) -> None:
    """Its softcap, and the window of its layers."""
    real, keywords = mask(seed)
    models.assert_equal_to_eager(models.gemma2(), real, seed, inputs_of(keywords, seed))


def test_a_dense_bool_mask(seed: int) -> None:
    """eager attention would add the mask to the scores, so that it is compared by its additive form."""
    model = models.build(models.llama(), "omni", seed)
    ids = models.ids(BATCH, LENGTH, seed)
    by_bool, by_sum = (model(ids, **mask(seed)[1]).logits for mask in (dense_bool, dense_additive))
    assert torch.equal(by_bool, by_sum)


@pytest.mark.parametrize("config", [models.gemma3_pictures, models.paligemma], ids=lambda config: config.__name__)
def test_spans_of_pictures_see_themselves_both_ways(config: Callable[[], Any], seed: int) -> None:
    """By token types: 1 for a picture's place in Gemma 3, two pictures; 0 for the prefix in PaliGemma."""
    pictures = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    if config is models.gemma3_pictures:
        pictures[0, 2:6] = pictures[1, 1:5] = pictures[1, 6:10] = 1
    else:
        pictures[0, 7:] = pictures[1, 4:] = 1
    real = every_place()
    ids = models.ids(BATCH, LENGTH, seed)
    keywords = {"token_type_ids": pictures, "attention_mask": real.long(), "labels": ids}  # PaliGemma 4 asks for labels
    model = models.build(config(), "omni", seed).train()
    causal = model(
        input_ids=ids, **{**keywords, "token_type_ids": torch.full_like(pictures, config is models.paligemma)}
    )
    spans = model(input_ids=ids, **keywords)
    assert (causal.logits - spans.logits).abs().max() > 1e-3  # else this test would show nothing
    models.assert_equal_to_eager(config(), real, seed, inputs_of(keywords, seed), model)


def test_one_mask_for_all_layers_and_one_kernel_each(seed: int) -> None:
    model = models.build(models.llama(), "omni", seed)
    ids, mask = models.ids(BATCH, LENGTH, seed), padded("left").long()
    with CountOperators() as counted:
        model.generate(ids, attention_mask=mask, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert counted.calls["omni_block_table"] == 3  # a forward pass each
    assert counted.calls["omni_attention_forward"] == 2 * 3
    assert not [name for name in counted.calls if "softmax" in name or "scaled_dot_product" in name]


# ---- caches and generation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", models.CONFIGS)
def test_generate(name: str, cache: str, seed: int) -> None:
    """Greedy ids of a batch with left padding, longer than the windows, equal those of eager; so do the scores."""
    found = []
    for implementation in ("omni", "eager"):
        model = models.build(models.CONFIGS[name](), implementation, seed)
        found.append(
            model.generate(
                models.ids(BATCH, LENGTH, seed),
                attention_mask=padded("left").long(),
                max_new_tokens=6,
                do_sample=False,
                cache_implementation=None if cache == "dynamic" else cache,
                disable_compile=True,
                output_logits=True,
                return_dict_in_generate=True,
            )
        )
    ours, eager = found
    assert torch.equal(ours.sequences, eager.sequences)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(eager.logits), rtol=1e-4, atol=1e-4)


def test_a_cache_filled_in_parts(seed: int) -> None:
    """Several new queries against a filled cache see what they would see in one forward pass."""
    model = models.build(models.qwen2(), "omni", seed)
    ids = models.ids(BATCH, LENGTH, seed)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        parts, cache = [], None
        for part in ids.split((4, 6, 1), dim=1):
            found = model(part, past_key_values=cache, use_cache=True)
            parts.append(found.logits)
            cache = found.past_key_values
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


# ---- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    int(transformers.__version__.partition(".")[0]) >= 5 and torch.__version__ < (2, 7),
    reason="transformers 5 holds code of its own that torch.compile of torch 2.6 does not take",
)
@pytest.mark.parametrize("mask", [left_padding, packed, dense_additive], ids=lambda mask: mask.__name__)
def test_compiled(mask: Callable[[int], tuple[Tensor, dict[str, Any]]], seed: int) -> None:
    torch.compiler.reset()
    real, keywords = mask(seed)
    model = models.build(models.qwen2(layers=1), "omni", seed)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = inputs_of(keywords, seed)
    eager = models.results(model, real, seed, **inputs(torch.float32))
    traced = models.results(compiled, real, seed, **inputs(torch.float32))
    assert len(traced) == len(eager)
    for name, value in traced.items():
        torch.testing.assert_close(value, eager[name.removeprefix("_orig_mod.")], rtol=1e-4, atol=1e-4)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_registering_attention_without_masks_is_refused(seed: int) -> None:
    transformers.AttentionInterface.register("omni_alone", hf.attention)
    model = models.build(models.llama(), "omni_alone", seed)
    ids = models.ids(BATCH, LENGTH, seed)
    for keywords in ({}, {"attention_mask": padded("left").long()}):
        with pytest.raises(RuntimeError, match=r"AttentionMaskInterface.*omni_alone.*register\(\)"):
            model(ids, **keywords)


def test_dropout_in_training_is_refused(seed: int) -> None:
    config = models.llama()
    config.attention_dropout = 0.1
    model = models.build(config, "omni", seed)
    ids = models.ids(BATCH, LENGTH, seed)
    model(ids)
    with pytest.raises(NotImplementedError, match=r"dropout is 0.1.*attention_dropout=0"):
        model.train()(ids)


def test_a_mask_of_too_many_runs_is_refused_and_the_row_is_named(seed: int) -> None:
    seen = torch.ones(BATCH, 1, 20, 20, dtype=torch.bool).tril()
    seen[1, 0, 18, ::2] = False
    model = models.build(models.llama(), "omni", seed)
    with pytest.raises(ValueError, match=r"attention_mask\[1, 18\] has 9 intervals, expected at most 8"):
        model(models.ids(BATCH, 20, seed), attention_mask=seen)
