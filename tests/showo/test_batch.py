"""Batches joined and packed, against the padded rows one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from showo.batch import IGNORE, Batch, Part
from showo.dialogue import Dialogue
from showo.prompting import Prompting
from showo.tokens import Vocabulary
from tests.gpu_copies import copies_to_gpu

VOCAB = Vocabulary(40, 8)
PAD, MASK, C, WIDTH = VOCAB.pad, VOCAB.mask_id, VOCAB.image_offset, 5


def make_prompting() -> Prompting:
    return Prompting(VOCAB, eot=39, max_text_len=8)


@pytest.fixture
def prompting() -> Prompting:
    return make_prompting()


def formats(prompting: Prompting, texts: list[list[int]]) -> list[Batch]:
    """A batch of every format, with rows of many lengths."""
    count = len(texts)
    codes = torch.randint(C, MASK, (count, 3))
    masked = torch.rand(count, 3) < 0.5
    labels = codes.masked_fill(~masked, IGNORE)
    features = torch.randn(count, 2, WIDTH)
    return [
        prompting.t2i(texts, codes.masked_fill(masked, MASK), labels),
        prompting.lm(texts, 11),
        prompting.mmu(codes, texts),
        prompting.mmu_vit([Dialogue([(text, text)]) for text in texts], [7, 8], features, image_tokens=2),
        prompting.lvg(
            [[text, text] for text in texts], torch.stack((codes, codes), 1), torch.stack((labels, codes), 1)
        ),
    ]


def test_cat_keeps_parts_together(prompting: Prompting) -> None:
    texts = [[1], [2, 3]]
    batch = Batch.cat([prompting.lm(texts, 12), prompting.mmu(torch.full((2, 1), C), texts)])
    assert batch.parts == {"lm": Part(0, 24, targets=5, weight=5), "mmu": Part(24, 48, targets=7, weight=7)}
    assert batch.mask.shape == (4, 12, 12)
    assert torch.equal(batch.labelled, (batch.targets.flatten() != IGNORE).nonzero()[:, 0])
    twice = Batch.cat([prompting.lm([[1]], 5), prompting.lm([[2], [3]], 5)])
    assert twice.parts == {"lm": Part(0, 15, targets=6, weight=6)}
    assert Batch.cat([prompting.lm([], 7), twice]).parts == twice.parts


def padded_samples(batches: list[Batch]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Ids, targets, positions and dense mask of every row without its padding."""
    samples = []
    for batch in batches:
        for ids, targets, positions, dense in zip(
            batch.input_ids, batch.targets, batch.positions, batch.mask.to_dense(), strict=True
        ):
            keep = ids != PAD
            samples.append((ids[keep], targets[keep], positions[keep], dense[keep][:, keep]))
    return samples


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.integers(0, 38), max_size=12), min_size=1, max_size=4))
def test_a_pack_of_all_formats_holds_their_samples(texts: list[list[int]]) -> None:
    batches = formats(make_prompting(), texts)
    pack = Batch.pack(batches, PAD)
    ids, targets, positions, masks = zip(*padded_samples(batches), strict=True)
    assert pack.input_ids.tolist() == [torch.cat(ids).tolist()]
    assert pack.targets.tolist() == [torch.cat(targets).tolist()]
    assert pack.positions.tolist() == [torch.cat(positions).tolist()]
    assert torch.equal(pack.mask.to_dense()[0], torch.block_diag(*(mask.int() for mask in masks)).bool())
    assert torch.equal(pack.labelled, (pack.targets[0] != IGNORE).nonzero()[:, 0])
    assert list(pack.parts) == ["t2i", "lm", "mmu", "mmu_vit", "lvg"]
    count, end = len(texts), 0
    for i, part in enumerate(pack.parts.values()):
        assert part.first == end
        end += sum(len(sample) for sample in ids[i * count : (i + 1) * count])
        assert part.end == end
        assert part.targets == part.weight == int((pack.targets[0, part.first : part.end] != IGNORE).sum())


def test_features_follow_their_places(prompting: Prompting) -> None:
    first, second = torch.randn(2, 3, WIDTH), torch.randn(1, 3, WIDTH)
    rows = [prompting.mmu_vit([[1], [2, 3]], [7], first, image_tokens=3)]
    rows += [prompting.mmu_vit([list(range(9))], [7], second, image_tokens=3)]
    for batch in (Batch.cat(rows), Batch.pack(rows, PAD)):
        assert batch.features is not None
        assert torch.equal(batch.features.values, torch.cat((first, second)))
        assert (batch.input_ids.flatten()[batch.features.places] == MASK).all()
        assert batch.features.places.numel() == int((batch.input_ids == MASK).sum())
        assert batch.positions.flatten()[batch.features.places].tolist() == [2, 3, 4] * 3
    lm = prompting.lm([[1]], 5)
    assert Batch.pack([lm, *rows], PAD).features.places[0] == 3 + 2  # type: ignore[union-attr]
    assert lm.features is None
    pixels = prompting.mmu_vit([[1]], [7], torch.ones(1, 3, 8, 8), image_tokens=3)
    with pytest.raises(ValueError, match=r"features must have one shape, got \[\[2, 3, 5\], \[1, 3, 8, 8\]\]"):
        Batch.pack([rows[0], pixels], PAD)
    seen = pixels.with_features(lambda values: values.flatten(2)[:, :, :WIDTH])
    assert Batch.pack([rows[0], seen], PAD).features.values.shape == (3, 3, WIDTH)  # type: ignore[union-attr]
    assert lm.with_features(torch.negative) is lm


def test_a_batch_goes_to_a_gpu_without_waiting(prompting: Prompting) -> None:
    codes = torch.full((1, 2), C)
    batch = Batch.pack(
        [
            prompting.t2i([[1]], codes, codes, image_weights=torch.ones(1, 2)),
            prompting.mmu_vit([[1]], [], torch.ones(1, 2, 5), image_tokens=2),
        ],
        PAD,
    )
    with copies_to_gpu() as copies:
        moved = batch.to("cuda")
    assert copies == [True] * 8  # ids, targets, positions, intervals, places, weights, features and their places
    assert torch.equal(moved.mask.intervals, batch.mask.intervals)
    assert batch.to("cpu").mask is batch.mask


def test_targets_may_have_weights(prompting: Prompting) -> None:
    lm = prompting.lm([[1], [2, 3]], 5)
    each = torch.rand(2, 5)
    weighed = Batch.of_rows("lm", lm.input_ids, lm.targets, lm.mask, weights=each)
    expected = each[lm.targets != IGNORE]
    assert torch.equal(weighed.weights, expected)
    assert weighed.parts["lm"].weight == pytest.approx(float(expected.sum()))
    for joined in (Batch.cat([lm, weighed]), Batch.pack([lm, weighed], PAD)):
        assert torch.equal(joined.weights, torch.cat((torch.ones(5), expected)))
        assert joined.parts["lm"].targets == 10
        assert joined.parts["lm"].weight == pytest.approx(5 + float(expected.sum()))
    assert Batch.cat([lm, lm]).weights is None


def test_bad_arguments(prompting: Prompting) -> None:
    lm, mmu = prompting.lm([[1]], 12), prompting.mmu(torch.full((1, 1), C), [[1]])
    with pytest.raises(ValueError, match=r"Batch\.cat: rows must be equally long, got \[5, 12\]"):
        Batch.cat([prompting.lm([[1]], 5), lm])
    with pytest.raises(ValueError, match=r"Batch\.cat: the rows of part 'lm' are not together"):
        Batch.cat([lm, mmu, lm])
    with pytest.raises(ValueError, match=r"Batch\.pack: the rows of part 'lm' are not together"):
        Batch.pack([lm, mmu, lm], PAD)
    with pytest.raises(ValueError, match=r"Batch\.pack: all batches are empty"):
        Batch.pack([replace(lm, input_ids=lm.input_ids[:0])], PAD)
