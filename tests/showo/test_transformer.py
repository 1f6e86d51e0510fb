"""The transformer: official layout, an independent implementation in fp64, caches, row and vocabulary slices."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from showo.batch import FeatureSpans
from showo.config import ShowoConfig, official
from showo.model.kv_cache import KVCache
from showo.model.transformer import Showo
from showo_ext import OmniMask
from showo_ext.testing import CountOperators
from tests.official import SHAPES, shapes_of
from tests.showo.official_twin import forward as plain_forward


@pytest.mark.parametrize(("clip", "tensors", "parameters"), [(False, 437, 1448176770), (True, 441, 1454472322)])
def test_official_names_shapes_and_size(clip: bool, tensors: int, parameters: int) -> None:
    with torch.device("meta"):
        model = Showo(official(w_clip_vit=clip))
    assert shapes_of(model) == SHAPES["showo_w_clip_vit" if clip else "showo"]
    assert len(model.state_dict()) == tensors
    assert sum(p.numel() for p in model.parameters()) == parameters


def random_mask(batch: int, length: int) -> Tensor:
    """Dense masks with an interval per row that holds the row itself."""
    row = torch.arange(length)
    start = (torch.rand(batch, length) * (row + 1)).long()
    stop = row + 1 + (torch.rand(batch, length) * (length - row)).long()
    return (row >= start[..., None]) & (row < stop[..., None])


def test_forward_equals_an_independent_implementation(model64: Showo) -> None:
    ids = torch.randint(0, model64.config.vocab_size, (3, 11))
    positions = torch.randint(0, 60, (3, 11))
    dense = random_mask(3, 11)
    with torch.no_grad():
        logits = model64(ids, mask=OmniMask.from_dense(dense), positions=positions)
        expected = torch.stack(
            [plain_forward(model64.state_dict(), model64.config, *row) for row in zip(ids, dense, positions)]
        )
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)  # rotary angles are fp32


def test_native_attention_in_fp32_agrees(model: Showo) -> None:
    ids = torch.randint(0, model.config.vocab_size, (2, 20))
    dense = random_mask(2, 20)
    positions = torch.arange(20)
    with torch.no_grad():
        logits = model(ids, mask=OmniMask.from_dense(dense))
        expected = torch.stack(
            [plain_forward(model.state_dict(), model.config, *row, positions) for row in zip(ids, dense)]
        )
    torch.testing.assert_close(logits.double(), expected, rtol=1e-3, atol=1e-3)


def test_no_mask_is_causal(model: Showo) -> None:
    ids = torch.randint(0, model.config.vocab_size, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), model(ids, mask=OmniMask.causal(2, 9)))
        torch.testing.assert_close(model(ids)[:, :4], model(ids[:, :4]), rtol=1e-4, atol=1e-4)


def test_embeddings_in_place_of_ids(model: Showo) -> None:
    ids = torch.randint(0, model.config.vocab_size, (2, 5))
    with torch.no_grad():
        torch.testing.assert_close(model(inputs_embeds=model.embed(ids)), model(ids))


def test_cached_equals_uncached(model: Showo) -> None:
    """Two chunks at a common start, then single rows at a slot of each sample's own."""
    ids = torch.randint(0, model.config.vocab_size, (2, 12))
    mask = OmniMask.causal(2, 12)
    cache = KVCache(model.config, 2, 16)
    with torch.no_grad():
        whole = model.hidden_states(ids, mask=mask)
        parts = [
            model.hidden_states(
                ids[:, a:b],
                mask=mask.rows(a, b).columns(0, b),
                positions=torch.arange(a, b),
                cache=cache,
                slots=a,
            )
            for a, b in ((0, 7), (7, 10))
        ]
        for place in (10, 11):
            parts.append(
                model.hidden_states(
                    ids[:, place : place + 1],
                    mask=mask.rows(place, place + 1).columns(0, place + 1),
                    positions=torch.full((2, 1), place),
                    cache=cache,
                    slots=torch.tensor([[place], [place]]),
                )
            )
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("why", ["fp64", "gradient", "autocast"])
def test_cache_without_the_fused_operator(model: Showo, model64: Showo, why: str) -> None:
    """What rope_qkv_into_cache does not take: fp64, gradients, a cache of another dtype than the projection."""
    used = model64 if why == "fp64" else model
    ids = torch.randint(0, model.config.vocab_size, (2, 9))
    mask = OmniMask.causal(2, 9)
    dtype = torch.bfloat16 if why == "autocast" else torch.float32
    cache = KVCache(model.config, 2, 12, dtype=used.dtype)
    with torch.set_grad_enabled(why == "gradient"), torch.autocast("cpu", dtype, enabled=why == "autocast"):
        whole = used.hidden_states(ids, mask=mask)
        parts = [
            used.hidden_states(
                ids[:, first:end],
                mask=mask.rows(first, end).columns(0, end),
                positions=torch.arange(first, end),
                cache=cache,
                slots=slots,
            )
            for first, end, slots in ((0, 8, 0), (8, 9, torch.tensor([[8], [8]])))
        ]
    tolerance = {"fp64": 1e-9, "gradient": 1e-4, "autocast": 0.1}[why]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=tolerance, atol=tolerance)


def test_gradient_through_a_cache(model: Showo) -> None:
    ids, mask = torch.randint(0, model.config.vocab_size, (2, 9)), OmniMask.causal(2, 9)
    weight = model.showo.model.layers[0].self_attn.k_proj.weight
    cached = model.hidden_states(ids, mask=mask, positions=torch.arange(9), cache=KVCache(model.config, 2, 9), slots=0)
    gradients = [torch.autograd.grad(h.square().sum(), weight)[0] for h in (cached, model.hidden_states(ids))]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_cache_refuses_rows_that_do_not_fit(model: Showo) -> None:
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="do not fit 3 slots"):
        model.hidden_states(
            ids, mask=OmniMask.causal(1, 4), positions=torch.arange(4), cache=KVCache(model.config, 1, 3)
        )


@pytest.mark.parametrize("rows", [slice(2, 6), slice(1, -1), torch.tensor([[0, 3], [7, 7]])])
def test_wanted_rows_only(model: Showo, rows: slice | Tensor) -> None:
    ids = torch.randint(0, model.config.vocab_size, (2, 8))
    with torch.no_grad():
        whole = model.hidden_states(ids)
        with CountOperators() as counter:
            some = model.hidden_states(ids, rows=rows)
    assert counter.calls["rope_qkv_forward"] == model.config.num_layers + 1  # the last layer: q alone, k and v alone
    expected = whole[:, rows] if isinstance(rows, slice) else torch.stack([h[r] for h, r in zip(whole, rows)])
    torch.testing.assert_close(some, expected, rtol=1e-4, atol=1e-4)


def test_a_compiled_model_makes_one_plan(model: Showo) -> None:
    tables: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        tables.append(sum("omni_block_table" in str(node.target) for node in graph.graph.nodes))
        return make_boxed_func(graph.forward)

    ids, mask = torch.randint(0, model.config.vocab_size, (1, 8)), OmniMask.causal(1, 8)
    compiled = torch.compile(model.hidden_states, fullgraph=True, backend=aot_autograd(fw_compiler=count))
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, mask=mask), model.hidden_states(ids, mask=mask))
    assert tables == [1]


def test_wanted_ids_only(model: Showo) -> None:
    hidden = torch.randn(2, 3, model.config.hidden_size)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(hidden, (50, 70)), model.logits(hidden)[..., 50:70])
    with pytest.raises(ValueError, match="not a range"):
        model.logits(hidden, (5, 5))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    config = ShowoConfig(**{**small_kwargs(), "initializer_range": 0.05})
    model = Showo(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.005, name
        else:
            assert torch.all(parameter == (1 if name.endswith("norm.weight") else 0)), name


def small_kwargs() -> dict[str, int]:
    return {
        "hidden_size": 64,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 96,
        "text_vocab_size": 40,
        "codebook_size": 64,
        "num_vq_tokens": 16,
        "max_text_len": 8,
        "max_positions": 64,
    }


def test_gradients_reach_every_parameter(model: Showo) -> None:
    model(torch.randint(0, model.config.vocab_size, (2, 9))).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_bf16_autocast_runs_and_is_close(model: Showo) -> None:
    ids = torch.randint(0, model.config.vocab_size, (2, 9))
    with torch.no_grad():
        exact = model.hidden_states(ids)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.hidden_states(ids)
    assert (rough.float() - exact).pow(2).mean().sqrt() < 0.15  # unit-variance rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either input_ids or inputs_embeds"),
        ({"input_ids": torch.zeros(3, dtype=torch.int64)}, r"input_ids must be \[B, S\]"),
        ({"inputs_embeds": torch.zeros(1, 2, 3)}, r"inputs_embeds must be \[B, S, 64\]"),
        (
            {"input_ids": torch.zeros(1, 4, dtype=torch.int64), "positions": torch.arange(3)},
            r"positions must be \[4\] or \[1, 4\], got \[1, 3\]",
        ),
    ],
)
def test_bad_arguments(model: Showo, arguments: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**arguments)


def test_clip_projector(model: Showo) -> None:
    with pytest.raises(ValueError, match="no CLIP-ViT projector"):
        model.project_clip(torch.zeros(1, 2, 1024))
    clip = Showo(ShowoConfig(**{**small_kwargs(), "w_clip_vit": True, "clip_width": 24}))
    features = torch.randn(2, 5, 24)
    w0, b0, w2, b2 = (clip.state_dict()[f"mm_projector.{n}"] for n in ("0.weight", "0.bias", "2.weight", "2.bias"))
    z = features @ w0.T + b0
    expected = (0.5 * z * (1 + torch.erf(z / math.sqrt(2)))) @ w2.T + b2  # exact GELU here
    torch.testing.assert_close(clip.project_clip(features), expected)


def test_features_take_the_place_of_embeddings() -> None:
    clip = Showo(ShowoConfig(**{**small_kwargs(), "w_clip_vit": True, "clip_width": 24}))
    ids = torch.randint(0, clip.config.vocab_size, (3, 6))
    values = torch.randn(2, 2, 24)
    places = torch.tensor([1, 2, 14, 15])  # columns 1 and 2 of row 0, 2 and 3 of row 2
    embeddings = clip.embed(ids)
    with torch.no_grad():
        embeddings[0, 1:3], embeddings[2, 2:4] = clip.project_clip(values)
        expected = clip.hidden_states(inputs_embeds=embeddings)
    hidden = clip.hidden_states(ids, features=FeatureSpans(values, places))
    torch.testing.assert_close(hidden, expected)
    hidden.sum().backward()
    assert clip.mm_projector[0].weight.grad.abs().sum() > 0
    for wrong in (values[:1], torch.zeros(2, 2, 23), torch.zeros(2, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"features: expected \[n, P, 24\] with n \* P = 4 places"):
            clip.hidden_states(ids, features=FeatureSpans(wrong, places))
