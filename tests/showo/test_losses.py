"""Losses against the formula written with full logits and the official slices and shifts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import showo.model.losses as losses_module
from showo.batch import IGNORE, Batch, FeatureSpans
from showo.dialogue import Dialogue
from showo.model.losses import (
    _chunked_cross_entropy,
    _cross_entropy,
    _linear_cross_entropy,
    _rows_of_product,
    multimodal_loss,
    targets_at_once,
    token_loss,
)
from showo.model.transformer import Showo
from showo.prompting import Prompting


def make_parts(prompting: Prompting, model: Showo) -> tuple[Batch, Batch, Batch]:
    vocab, length = model.config.vocabulary, model.config.sequence_length
    torch.manual_seed(1)
    codes = torch.randint(vocab.image_offset, vocab.mask_id, (3, 16))
    masked = torch.rand(3, 16) < 0.6
    texts = [[1, 2, 3], [], list(range(20))]
    t2i = prompting.t2i(texts, codes.masked_fill(masked, vocab.mask_id), codes.masked_fill(~masked, IGNORE))
    return t2i, prompting.lm([*texts, [5]], length), prompting.mmu(codes[:2], texts[:2])


def official_losses(
    model: Showo, prompting: Prompting, parts: tuple[Batch, Batch, Batch], smoothing: float = 0.0
) -> list[Tensor]:
    """Unshifted from soi on for t2i; shifted by one with labels = ids for lm and mmu, pads and image ignored."""
    t2i, lm, mmu = parts
    vocab = model.config.vocabulary

    def logits(batch: Batch) -> Tensor:
        return model(batch.input_ids, mask=batch.mask)

    def mean(scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores.reshape(-1, scores.shape[-1]), labels.reshape(-1), label_smoothing=smoothing)

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
        torch.testing.assert_close(losses.means[name], value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses.total, total, rtol=1e-4, atol=1e-4)
    assert losses.counts == {
        name: int((part.targets != IGNORE).sum()) for name, part in zip(("t2i", "lm", "mmu"), parts)
    }
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=2e-4, msg=name)


def all_formats(prompting: Prompting, model: Showo) -> list[Batch]:
    """One batch of every format, two rows in each, with rows, texts and pictures of many lengths."""
    vocab = model.config.vocabulary
    codes = torch.randint(*vocab.image_range, (2, 3, 16))
    masked = torch.rand(codes.shape) < 0.6
    inputs, labels, weights = codes.masked_fill(masked, vocab.mask_id), codes, torch.rand(codes.shape)
    texts = [[1, 2, 3], [4]]
    dialogue = Dialogue([([1, 2], [3, 4]), ([5], [6])])
    frames = [inputs[0, :1], inputs[1, :2]], [labels[0, :1], labels[1, :2]]
    return [
        prompting.t2i(texts, inputs[:, 0], labels[:, 0], image_weights=weights[:, 0]),
        prompting.lm(texts, 9),
        prompting.mmu([codes[0, :0], codes[1, :2]], [dialogue, texts[1]]),
        prompting.mmu_vit([texts[0], dialogue], [7, 8], torch.randn(2, 5, 24), image_tokens=5),
        prompting.lvg([[texts[0], []], [texts[1]]], [inputs[0, :2], inputs[1, :1]], [labels[0, :2], labels[1, :1]]),
        prompting.t2v(texts, *frames),
        prompting.v2v(inputs[:, :1], texts, *frames),
    ]


def rows_of(batch: Batch) -> list[Batch]:
    """The rows one by one, padded as they are."""
    (name,) = batch.parts
    weights = torch.ones(batch.targets.shape)
    if batch.weights is not None:
        weights.view(-1)[batch.labelled] = batch.weights
    spans = [None] * len(batch.input_ids)
    if batch.features is not None:
        places = batch.features.places.view(len(spans), -1) % batch.input_ids.shape[1]
        spans = [FeatureSpans(v[None], p) for v, p in zip(batch.features.values, places)]  # type: ignore[misc]
    return [
        Batch.of_rows(
            name,
            batch.input_ids[b : b + 1],
            batch.targets[b : b + 1],
            batch.mask.samples(b, b + 1),
            weights=weights[b : b + 1],
            features=span,
        )
        for b, span in enumerate(spans)
    ]


def test_a_pack_of_all_formats_gives_what_its_padded_rows_give_one_by_one(
    clip_model64: Showo, prompting: Prompting
) -> None:
    """In fp64: every part's loss, and the gradients."""
    model = clip_model64
    batches = all_formats(prompting, model)
    batches = [batch.with_features(Tensor.double) for batch in batches]
    pack = Batch.pack(batches, model.config.vocabulary.pad)
    together = multimodal_loss(model, pack, label_smoothing=0.1)
    together.total.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    assert list(together.counts) == ["t2i", "lm", "mmu", "mmu_vit", "lvg", "t2v", "v2v"]
    for batch in batches:
        ((name, part),) = batch.parts.items()
        rows = [multimodal_loss(model, row, label_smoothing=0.1) for row in rows_of(batch)]
        mean = torch.stack([row.sums[name] for row in rows]).sum() / part.weight
        torch.testing.assert_close(together.means[name], mean, rtol=1e-6, atol=0)
        torch.stack([row.total_over({name: part.weight}) for row in rows]).sum().backward()
    for name, parameter in model.named_parameters():
        error = (parameter.grad - gradients[name]).norm() / gradients[name].norm()
        assert error < 1e-6, name  # the logits are fp32


def test_labels_are_smoothed_in_every_part(model: Showo, prompting: Prompting) -> None:
    parts = make_parts(prompting, model)
    losses = multimodal_loss(model, Batch.cat(parts), label_smoothing=0.2)
    for name, value in zip(("t2i", "lm", "mmu"), official_losses(model, prompting, parts, smoothing=0.2)):
        torch.testing.assert_close(losses.means[name], value, rtol=1e-4, atol=1e-4)


def test_weights(model: Showo, prompting: Prompting) -> None:
    batch = Batch.cat(make_parts(prompting, model))
    losses = multimodal_loss(model, batch, weights={"t2i": 2.0, "lm": 0.0, "mmu": 0.5})
    torch.testing.assert_close(losses.total, 2 * losses.means["t2i"] + 0.5 * losses.means["mmu"])
    with pytest.raises(ValueError, match="no weight for lm"):
        multimodal_loss(model, batch, weights={"t2i": 1.0, "mmu": 1.0})


def test_targets_weigh_what_the_batch_says(model: Showo, prompting: Prompting) -> None:
    t2i, lm, _ = make_parts(prompting, model)
    weights = torch.rand(t2i.targets.shape)
    weighed = Batch.of_rows("t2i", t2i.input_ids, t2i.targets, t2i.mask, weights=weights)
    losses = multimodal_loss(model, Batch.cat([weighed, lm]), label_smoothing=0.1)
    scores = model(t2i.input_ids, mask=t2i.mask).flatten(0, 1)
    each = F.cross_entropy(scores, t2i.targets.flatten(), label_smoothing=0.1, reduction="none", ignore_index=IGNORE)
    labelled = t2i.targets.flatten() != IGNORE
    expected = (each * weights.flatten())[labelled].sum() / weights.flatten()[labelled].sum()
    torch.testing.assert_close(losses.means["t2i"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses.means["lm"], multimodal_loss(model, lm, label_smoothing=0.1).means["lm"])


def test_shares_of_a_larger_batch_add_up(model: Showo, prompting: Prompting) -> None:
    """What micro-batches and ranks have to do for a mean over all targets, instead of a mean of means."""
    t2i, lm, mmu = make_parts(prompting, model)
    few = multimodal_loss(model, prompting.lm([[1], [3, 4]], 7))
    many = multimodal_loss(model, Batch.pack([t2i, lm, mmu], model.config.vocabulary.pad))
    whole = multimodal_loss(
        model, Batch.pack([t2i, lm, prompting.lm([[1], [3, 4]], 7), mmu], model.config.vocabulary.pad)
    )
    counts = {name: many.counts[name] + few.counts.get(name, 0) for name in many.counts}
    assert counts == whole.counts
    torch.testing.assert_close(few.total_over(counts) + many.total_over(counts), whole.total)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_batch_without_targets_is_zero(model: Showo, prompting: Prompting, rows: int) -> None:
    losses = multimodal_loss(
        model, prompting.t2i([[1]] * rows, torch.full((rows, 16), model.config.vocabulary.mask_id))
    )
    losses.total.backward()
    assert losses.total.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_part_without_targets_is_zero(model: Showo, prompting: Prompting) -> None:
    t2i, lm, _ = make_parts(prompting, model)
    empty = Batch.of_rows("lm", lm.input_ids, None, lm.mask)
    losses = multimodal_loss(model, Batch.cat([t2i, empty]))
    assert losses.means["lm"].item() == 0
    assert losses.counts["lm"] == 0
    torch.testing.assert_close(losses.total, losses.means["t2i"])
    losses.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


class DeviceReads(TorchDispatchMode):
    """Fails where a value is read from a tensor, or where a shape depends on one: there a device is waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[-1].split(".")[0]
        assert name not in {"_local_scalar_dense", "nonzero", "masked_select", "item", "equal", "unique"}, name
        if name == "index":
            assert all(index is None or index.dtype == torch.int64 for index in args[1]), "index by a mask"
        return func(*args, **(kwargs or {}))


def test_losses_do_not_wait_for_the_device(model: Showo, prompting: Prompting) -> None:
    """Between the batch and the logged figures no value is looked at (attention by the CPU kernels checks its own)."""
    model.attend = lambda q, k, v, mask: q
    batch = Batch.pack(make_parts(prompting, model), model.config.vocabulary.pad)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), DeviceReads():
        float(batch.targets.sum())
    with DeviceReads():
        losses = multimodal_loss(model, batch)
        losses.total.backward()
        assert all(isinstance(mean, Tensor) for mean in losses.means.values())


def test_only_labelled_places_reach_the_head(
    model: Showo, prompting: Prompting, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = losses_module._cross_entropy

    def spy(hidden: Tensor, *args: Any) -> Tensor:
        seen.append(hidden.shape[0])
        return original(hidden, *args)

    monkeypatch.setattr(losses_module, "_cross_entropy", spy)
    losses = multimodal_loss(model, Batch.cat(make_parts(prompting, model)))
    assert seen == list(losses.counts.values())


@pytest.mark.parametrize(
    ("targets", "vocab_size", "device", "at_once"),
    [
        (1275, 9737, "cpu", 1275),
        (10_000, 9737, "cpu", 2**24 // 9737),
        (10_000, 58_498, "cpu", 512),
        (6_000, 9737, "cuda", 6_000),
        (50_000, 9737, "cuda", 2**26 // 9737),
        (10_000, 58_498, "cuda", 2**26 // 58_498),
    ],
)
def test_how_many_targets_have_their_logits_in_memory(targets: int, vocab_size: int, device: str, at_once: int) -> None:
    assert targets_at_once(targets, vocab_size, device) == at_once


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("has_operator", [False, True])
def test_many_targets_go_through_the_head_in_chunks(
    model: Showo, monkeypatch: pytest.MonkeyPatch, has_operator: bool, smoothing: float, weighed: bool
) -> None:
    """With torch's operator, where torch has one, and without."""
    hidden = torch.randn(1275, model.config.hidden_size, requires_grad=True)
    targets = torch.randint(0, model.config.vocab_size, (1275,))
    weights = torch.rand(1275) if weighed else None
    expected = F.cross_entropy(model.logits(hidden), targets, label_smoothing=smoothing, reduction="none")
    expected = (expected if weights is None else expected * weights).sum()
    (gradient,) = torch.autograd.grad(expected, hidden)

    if not has_operator:
        monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    monkeypatch.setattr(losses_module, "_LOGITS_AT_ONCE", 0)
    products: list[int] = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: (products.append(x.shape[0]), linear(x, *rest))[1])
    loss = token_loss(model, hidden, targets, weights, label_smoothing=smoothing)
    assert all(rows <= 512 for rows in products)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, hidden)[0], gradient, rtol=1e-4, atol=1e-4)


Head = tuple[Tensor, Tensor, Tensor, Tensor]  # hidden, weight, bias, targets


@pytest.fixture
def head() -> Head:
    """4200 targets (eight chunks and a rest) of a head over 100 ids."""
    hidden, weight, bias = torch.randn(4200, 16), torch.randn(100, 16) / 2, torch.randn(100)
    return hidden, weight, bias, torch.randint(100, (4200,))


def with_gradients(function: Callable[..., Tensor], head: Head, dtype: torch.dtype, *options: Any) -> list[Tensor]:
    """The loss for hidden states of that dtype and weights as they are; the gradients of hidden, weight and bias."""
    hidden, weight, bias, targets = head
    inputs = [hidden.to(dtype).requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    loss = function(*inputs, targets, *options)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def exact_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: None, smoothing: float
) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, label_smoothing=smoothing, reduction="sum")


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunked_loss_is_as_exact_as_the_plain_one(head: Head, dtype: torch.dtype, smoothing: float) -> None:
    rounded = tuple(t if t.dtype == torch.int64 else t.to(dtype).double() for t in head)
    exact = with_gradients(exact_cross_entropy, rounded, torch.float64, None, smoothing)  # type: ignore[arg-type]
    plain = with_gradients(_cross_entropy, head, dtype, None, smoothing)
    chunked = with_gradients(_chunked_cross_entropy, head, dtype, None, smoothing, 512)
    for what, value, other, truth in zip(("loss", "hidden", "weight", "bias"), chunked, plain, exact):
        bound = 1.5 * float((other - truth).norm() / truth.norm()) + 4 * torch.finfo(torch.float32).eps
        assert float((value - truth).norm() / truth.norm()) <= bound, what
        assert value.dtype == other.dtype


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_own_chunked_loss_gives_the_same(head: Head, dtype: torch.dtype) -> None:
    ours = with_gradients(_chunked_cross_entropy, head, dtype, None, 0.0, 512)
    torchs = with_gradients(_linear_cross_entropy, head, dtype, 512)
    for what, value, other in zip(("loss", "hidden", "weight", "bias"), torchs, ours):
        assert float((value - other).norm() / other.norm()) < 8 * torch.finfo(dtype).eps, what


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forward_pass_keeps_no_gradient_of_the_head(head: Head, dtype: torch.dtype) -> None:
    """It would be there twice in the backward pass, and a head is large."""
    hidden, weight, bias, targets = head
    weight = weight.to(dtype).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        _linear_cross_entropy(hidden.to(dtype), weight, bias.to(dtype), targets, 512)
    assert [tensor.data_ptr() for tensor in kept if tensor.shape == weight.shape] == [weight.data_ptr()]


@pytest.mark.parametrize(("weighed", "smoothing"), [(False, 0.0), (True, 0.0), (False, 0.1), (True, 0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_added_to_the_head_change_nothing(
    head: Head, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, weighed: bool, smoothing: float
) -> None:
    weights = torch.rand(len(head[0])) if weighed else None
    calls: list[tuple[Any, ...]] = [
        (_cross_entropy, weights, smoothing),
        (_chunked_cross_entropy, weights, smoothing, 512),
    ]
    if hasattr(F, "linear_cross_entropy") and not weighed and not smoothing:
        calls.append((_linear_cross_entropy, 512))
    widths: list[int] = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, weight, bias: (widths.append(len(weight)), linear(x, weight, bias))[1])
    for function, *options in calls:
        plain = with_gradients(function, head, dtype, *options)
        with monkeypatch.context() as patch:
            patch.setattr(losses_module, "_rows_of_product", lambda vocab_size, hidden: 128)
            padded = with_gradients(function, head, dtype, *options)
        for what, value, other in zip(("loss", "hidden", "weight", "bias"), padded, plain):
            assert (value.shape, value.dtype) == (other.shape, other.dtype)
            assert float((value - other).norm() / other.norm()) < 4 * torch.finfo(dtype).eps, what
    assert set(widths) == {100, 128}


def test_the_head_gets_rows_where_tensor_cores_want_them() -> None:
    with FakeTensorMode():
        for dtype, device, rows in (("bfloat16", "cuda", 9792), ("float32", "cuda", 9737), ("bfloat16", "cpu", 9737)):
            assert _rows_of_product(9737, torch.empty(1, dtype=getattr(torch, dtype), device=device)) == rows


def test_chunked_loss_compiles_whole_and_runs_in_autocast(head: Head) -> None:
    compiled = torch.compile(_chunked_cross_entropy, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        eager = with_gradients(_chunked_cross_entropy, head, torch.bfloat16, None, 0.1, 512)
        for value, other in zip(with_gradients(compiled, head, torch.bfloat16, None, 0.1, 512), eager):
            torch.testing.assert_close(value, other)


def test_autocast_keeps_the_loss_in_fp32(model: Showo, prompting: Prompting) -> None:
    batch = Batch.cat(make_parts(prompting, model))
    exact = multimodal_loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = multimodal_loss(model, batch)
    rough.total.backward()
    assert rough.total.dtype == torch.float32
    for name, value in exact.means.items():
        assert rough.means[name].item() == pytest.approx(value.item(), rel=0.05)
