"""Losses against the formula written with full logits and the official slices and shifts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import showo.model.losses as losses_module
from showo.model.losses import multimodal_loss, token_loss
from showo.model.transformer import Showo
from showo.prompting import IGNORE, Batch, Prompting


def make_parts(prompting: Prompting, model: Showo) -> tuple[Batch, Batch, Batch]:
    vocab, length = model.config.vocabulary, model.config.sequence_length
    torch.manual_seed(1)
    codes = torch.randint(vocab.image_offset, vocab.mask_id, (3, 16))
    masked = torch.rand(3, 16) < 0.6
    texts = [[1, 2, 3], [], list(range(20))]
    t2i = prompting.t2i(texts, codes.masked_fill(masked, vocab.mask_id), codes.masked_fill(~masked, IGNORE))
    return t2i, prompting.lm([*texts, [5]], length), prompting.mmu(codes[:2], texts[:2])


def official_losses(model: Showo, prompting: Prompting, parts: tuple[Batch, Batch, Batch]) -> list[Tensor]:
    """Unshifted from soi on for t2i; shifted by one with labels = ids for lm and mmu, pads and image ignored."""
    t2i, lm, mmu = parts
    vocab = model.config.vocabulary

    def logits(batch: Batch) -> Tensor:
        return model(batch.input_ids, mask=batch.mask)

    def mean(scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores.reshape(-1, scores.shape[-1]), labels.reshape(-1), ignore_index=-100)

    start = prompting.max_text_len + 1
    image = t2i.input_ids[:, start + 1 : -1]
    soi, eoi = t2i.input_ids[:, start : start + 1], t2i.input_ids[:, -1:]
    truth = torch.where(image == vocab.mask_id, t2i.targets[:, start + 1 : -1], -100)
    first = mean(logits(t2i)[:, start:], torch.cat((soi, truth, eoi), 1))
    lm_labels = torch.where(lm.input_ids == vocab.pad, -100, lm.input_ids)
    second = mean(logits(lm)[:, :-1], lm_labels[:, 1:])
    mmu_labels = torch.where(mmu.input_ids == vocab.pad, -100, mmu.input_ids)
    mmu_labels[:, : 16 + 3] = -100
    third = mean(logits(mmu)[:, :-1], mmu_labels[:, 1:])
    return [first, second, third]


@pytest.mark.parametrize("packed", [False, True])
def test_losses_and_gradients_equal_the_official_formula(model: Showo, prompting: Prompting, packed: bool) -> None:
    parts = make_parts(prompting, model)
    expected = official_losses(model, prompting, parts)
    total = 1.0 * expected[0] + 0.1 * expected[1] + 1.0 * expected[2]
    total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    batch = Batch.cat(parts)
    losses = multimodal_loss(model, batch.packed(model.config.vocabulary.pad) if packed else batch)
    losses.total.backward()
    for name, value in zip(("t2i", "lm", "mmu"), expected):
        torch.testing.assert_close(losses.parts[name], value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses.total, total, rtol=1e-4, atol=1e-4)
    assert losses.targets == {
        name: int((part.targets != IGNORE).sum()) for name, part in zip(("t2i", "lm", "mmu"), parts)
    }
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=2e-4, msg=name)


def test_weights(model: Showo, prompting: Prompting) -> None:
    batch = Batch.cat(make_parts(prompting, model))
    losses = multimodal_loss(model, batch, weights={"t2i": 2.0, "lm": 0.0, "mmu": 0.5})
    torch.testing.assert_close(losses.total, 2 * losses.parts["t2i"] + 0.5 * losses.parts["mmu"])
    with pytest.raises(ValueError, match="no weight for lm"):
        multimodal_loss(model, batch, weights={"t2i": 1.0, "mmu": 1.0})


def test_a_part_without_targets_is_zero(model: Showo, prompting: Prompting) -> None:
    t2i, lm, _ = make_parts(prompting, model)
    lm = Batch(lm.input_ids, torch.full_like(lm.targets, IGNORE), lm.positions, lm.mask, lm.parts)
    losses = multimodal_loss(model, Batch.cat([t2i, lm]))
    assert losses.parts["lm"].item() == 0
    assert losses.targets["lm"] == 0
    torch.testing.assert_close(losses.total, losses.parts["t2i"])
    losses.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("chunked", [False, True])
def test_only_labelled_places_reach_the_head(
    model: Showo, prompting: Prompting, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    seen: list[int] = []
    name = "_linear_cross_entropy" if chunked else "_cross_entropy"
    original = getattr(losses_module, name)

    def spy(rows: Tensor, *args: Tensor) -> Tensor:
        seen.append(rows.shape[0])
        return original(rows, *args)

    monkeypatch.setattr(losses_module, name, spy)
    if chunked:
        monkeypatch.setattr(losses_module, "_SMALL_LOGITS", 0)
    batch = Batch.cat(make_parts(prompting, model))
    losses = multimodal_loss(model, batch)
    assert seen == list(losses.targets.values())


@pytest.mark.parametrize("chunked", [False, True])
def test_many_rows(model: Showo, monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    monkeypatch.setattr(losses_module, "_SMALL_LOGITS", 0 if chunked else 1 << 40)
    torch.manual_seed(0)
    hidden = torch.randn(1300, model.config.hidden_size, requires_grad=True)
    targets = torch.randint(0, model.config.vocab_size, (1300,))
    loss, count = token_loss(model, hidden, targets, label_smoothing=0.1)
    loss.backward()
    gradient = hidden.grad.clone() if hidden.grad is not None else None
    hidden.grad = None
    expected = F.cross_entropy(model.logits(hidden), targets, label_smoothing=0.1)
    expected.backward()
    assert count == 1300
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-4, atol=1e-6)


def test_autocast_keeps_the_loss_in_fp32(model: Showo, prompting: Prompting) -> None:
    batch = Batch.cat(make_parts(prompting, model))
    exact = multimodal_loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = multimodal_loss(model, batch)
    rough.total.backward()
    assert rough.total.dtype == torch.float32
    for name, value in exact.parts.items():
        assert rough.parts[name].item() == pytest.approx(value.item(), rel=0.05)


def test_old_torch_is_named(model: Showo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses_module, "_SMALL_LOGITS", 0)
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions")
    with pytest.raises(RuntimeError, match=r"needs torch >= 2\.13"):
        token_loss(model, torch.zeros(1, model.config.hidden_size), torch.zeros(1, dtype=torch.int64))
