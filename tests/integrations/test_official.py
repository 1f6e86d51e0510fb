"""The published model object before and after `official.patch`; a stand-in for the published sources takes its place.

The masks are those of the published code: dense, additive, the lowest int64 where a column is hidden.
"""

from __future__ import annotations

import copy
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PhiConfig

from showo_ext import OmniMask
from showo_ext.integrations import official
from showo_ext.testing import CountOperators, assert_within_budget, randint, randn

VOCAB, TEXT, PICTURE = 160, 9, 12
LENGTH = TEXT + PICTURE


@pytest.fixture
def seed() -> int:
    number = random.SystemRandom().randrange(1 << 20)
    print(f"seed {number}")
    return number


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> nn.Module:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "official_sources"))
    monkeypatch.delitem(sys.modules, "models", raising=False)
    from models import Showo  # type: ignore[attr-defined]

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    PhiConfig(vocab_size=VOCAB, **sizes).save_pretrained(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = Showo(w_clip_vit=False, vocab_size=VOCAB, llm_vocab_size=100, llm_model_path=str(tmp_path))
        for name, weight in built.named_parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.2)
            elif name.endswith("bias"):
                nn.init.normal_(weight, std=0.1)
    return built.eval()


def additive(mask: OmniMask, dtype: torch.dtype = torch.float32) -> Tensor:
    hidden = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask.to_dense(), torch.iinfo(torch.int64).min)
    return hidden.unsqueeze(1)


def masks() -> dict[str, OmniMask]:
    """A batch of training: pictures with padding, text, and a question behind a picture."""
    drawn = OmniMask.t2i_padded([4, 0], text_length=TEXT, image_length=PICTURE)
    return {
        "mixed": OmniMask.cat([drawn, OmniMask.causal(1, LENGTH), OmniMask.prefix(torch.tensor([PICTURE]), LENGTH)]),
        "clip": OmniMask.mmu_vit(4, LENGTH, image_start=6, image_tokens=8),
    }


def results(model: nn.Module, ids: Tensor, mask: Tensor | None, dtype: torch.dtype) -> dict[str, Tensor]:
    model.zero_grad()
    logits = model(ids, attention_mask=None if mask is None else mask.to(dtype))
    logits.backward(randn(*logits.shape, seed=1).to(dtype))
    return {"logits": logits.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("name", ["mixed", "clip", "none", "none, eager"])
def test_forward_and_gradients(model: nn.Module, name: str, seed: int) -> None:
    """Without a mask the published layer for SDPA is causal, and its eager layer sees everything."""
    ids = randint(0, VOCAB, (4, LENGTH), seed=seed)
    mask = additive(masks()[name]) if name in masks() else None
    if name == "none, eager":
        model.showo.config._attn_implementation = "eager"
    oracle = results(copy.deepcopy(model).double(), ids, mask, torch.float64)
    peer = results(model, ids, mask, torch.float32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert official.patch(model) == 2
    with CountOperators() as counted:
        ours = results(model, ids, mask, torch.float32)
    assert counted.calls["omni_attention_forward"] == counted.calls["omni_attention_backward"] == 2
    for key, value in oracle.items():  # see tests.integrations.models about the factor
        assert_within_budget(ours[key], value, peer[key], what=key, factor=4.0, rms=True)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_bfloat16(model: nn.Module, seed: int) -> None:
    ids, mask = randint(0, VOCAB, (4, LENGTH), seed=seed), additive(masks()["mixed"])
    model = model.to(torch.bfloat16)
    with torch.no_grad():
        oracle = copy.deepcopy(model).double()(ids, attention_mask=mask.double())
        peer = model(ids, attention_mask=mask.to(torch.bfloat16))
        official.patch(model)
        ours = model(ids, attention_mask=mask.to(torch.bfloat16))
    assert_within_budget(ours, oracle, peer, what="logits", rms=True)


def test_a_training_step(model: nn.Module, seed: int) -> None:
    """Three steps of SGD lead to the same weights."""
    ids, mask = randint(0, VOCAB, (4, LENGTH), seed=seed), additive(masks()["mixed"])
    peer = copy.deepcopy(model)
    official.patch(model)
    for each in (model, peer):
        each.train()
        optimizer = torch.optim.SGD(each.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(each(ids, attention_mask=mask).flatten(0, 1), ids.flatten()).backward()
            optimizer.step()
    for (name, ours), theirs in zip(model.named_parameters(), peer.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_understanding(model: nn.Module, seed: int) -> None:
    """The mask of mmu_generate is [1, 1, S, S] in the first step and [S + n, S + n] in those that follow."""
    ids = randint(0, VOCAB, (1, LENGTH), seed=seed)
    mask = additive(OmniMask.prefix(torch.tensor([PICTURE]), LENGTH))
    expected = model.mmu_generate(ids, attention_mask=mask, max_new_tokens=5, top_k=1)
    official.patch(model)
    assert model.mmu_generate(ids, attention_mask=mask, max_new_tokens=5, top_k=1) == expected


def test_drawing(model: nn.Module, seed: int) -> None:
    """Guided logits over a canvas that fills up, the most likely codes first."""
    canvases = []
    for _ in range(2):
        ids = randint(0, 100, (2, LENGTH), seed=seed)
        ids[:, -PICTURE:] = VOCAB - 1
        for step in range(1, PICTURE + 1):
            with torch.no_grad():
                cond, uncond = model(ids, attention_mask=additive(masks()["mixed"])[:2])[:, -PICTURE:, :-1]
            chances, codes = (2.5 * cond - 1.5 * uncond).softmax(-1).max(-1)
            known = ids[0, -PICTURE:] != VOCAB - 1
            place = chances.masked_fill(known, -1).argmax()
            ids[:, TEXT + place] = codes[place]
            assert int((ids[0, -PICTURE:] != VOCAB - 1).sum()) == step
        canvases.append(ids)
        official.patch(model)
    assert torch.equal(*canvases)


def test_a_copy_is_patched_itself_and_the_old_forward_comes_back(model: nn.Module, seed: int) -> None:
    ids = randint(0, VOCAB, (1, LENGTH), seed=seed)
    expected = model(ids)
    official.patch(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    with CountOperators() as counted:
        torch.testing.assert_close(twin(ids), expected, rtol=1e-4, atol=1e-4)
    assert counted.calls["omni_attention_forward"] == 2
    for layer in twin.showo.model.layers:
        del layer.self_attn.forward
    assert torch.equal(twin(ids), expected)


def test_refusals(model: nn.Module, seed: int) -> None:
    with pytest.raises(ValueError, match=r"model is Linear, expected one with attention layers as in models/phi.py"):
        official.patch(nn.Linear(1, 1))
    official.patch(model)
    ids = randint(0, VOCAB, (1, LENGTH), seed=seed)
    layer: Any = model.showo.model.layers[0].self_attn
    x = randn(1, LENGTH, 64, seed=seed)
    for keywords in ({"past_key_value": object()}, {"use_cache": True}):
        with pytest.raises(NotImplementedError, match="takes no cache"):
            layer(x, **keywords)
    with pytest.raises(NotImplementedError, match="output_attentions"):
        layer(x, output_attentions=True)
    with pytest.raises(ValueError, match=r"attention_mask has shape \[1, 21\]"):
        model(ids, attention_mask=torch.ones(1, LENGTH))
    layer.attention_dropout = 0.1
    model(ids)
    with pytest.raises(NotImplementedError, match=r"attention_dropout is 0\.1"):
        model.train()(ids)
