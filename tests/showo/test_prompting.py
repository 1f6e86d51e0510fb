"""Sequences against rows written by hand, and packing against padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from showo.batch import IGNORE, Part
from showo.prompting import Prompting, condition_dropout
from showo.tokens import Vocabulary
from showo_ext import OmniMask

# 40 text ids (39 begins and ends a text), 8 codes, text part of 8: short names for rows written by hand.
VOCAB = Vocabulary(40, 8)
PAD, SOI, EOI, T2I, MMU, EOT, MASK = VOCAB.pad, VOCAB.soi, VOCAB.eoi, VOCAB.t2i, VOCAB.mmu, 39, VOCAB.mask_id
C = VOCAB.image_offset
_ = IGNORE


@pytest.fixture
def prompting() -> Prompting:
    return Prompting(VOCAB, eot=EOT, max_text_len=8)


def images(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def test_t2i(prompting: Prompting) -> None:
    codes = images([C + 1, MASK, C + 3], [MASK, C + 5, C + 6], [C, C, MASK], [C, MASK, C])
    answers = images([_, C + 2, _], [C + 4, _, _], [_, _, C + 7], [_, C, _])
    texts = [[1, 2], [], [EOT, 3], list(range(1, 10))]
    batch = prompting.t2i(texts, codes, answers)
    assert batch.input_ids.tolist() == [
        [PAD, PAD, PAD, PAD, T2I, EOT, 1, 2, EOT, SOI, C + 1, MASK, C + 3, EOI],
        [PAD, PAD, PAD, PAD, PAD, PAD, T2I, EOT, EOT, SOI, MASK, C + 5, C + 6, EOI],
        [PAD, PAD, PAD, PAD, PAD, T2I, EOT, 3, EOT, SOI, C, C, MASK, EOI],
        [T2I, EOT, 1, 2, 3, 4, 5, 6, EOT, SOI, C, MASK, C, EOI],  # the first 8 places, then the end
    ]
    assert batch.targets.tolist() == [
        [_] * 9 + [SOI, _, C + 2, _, EOI],
        [_] * 9 + [SOI, C + 4, _, _, EOI],
        [_] * 9 + [SOI, _, _, C + 7, EOI],
        [_] * 9 + [SOI, _, C, _, EOI],
    ]
    assert batch.positions.tolist() == [list(range(14))] * 4
    assert batch.parts == {"t2i": Part(0, 56, targets=12, weight=12)}
    assert batch.labelled.tolist() == [9, 11, 13, 23, 24, 27, 37, 40, 41, 51, 53, 55]
    expected = OmniMask.t2i(batch.input_ids, pad_id=PAD, soi_id=SOI, eoi_id=EOI)
    assert torch.equal(batch.mask.to_dense(), expected.to_dense())


def test_t2i_of_the_longest_text_that_fits(prompting: Prompting) -> None:
    text = [1, 2, 3, 4, 5, 6]
    row = prompting.t2i([text], images([MASK])).input_ids[0].tolist()
    assert row == [T2I, EOT, *text, EOT, SOI, MASK, EOI]
    assert not prompting.is_cut(text)
    assert prompting.is_cut([*text, 7])


def test_t2i_condition_dropout(prompting: Prompting) -> None:
    drop = torch.tensor([True, False])
    batch = prompting.t2i([[1, 2], [3]], images([MASK], [MASK]), drop=drop)
    assert batch.input_ids[:, :9].tolist() == [[PAD] * 6 + [T2I, EOT, EOT], [PAD] * 5 + [T2I, EOT, 3, EOT]]
    assert (batch.targets == IGNORE).all()


def test_condition_dropout_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    assert condition_dropout(20000, 0.1, generator).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert not condition_dropout(100, 0.0).any()


def test_lm(prompting: Prompting) -> None:
    batch = prompting.lm([[1, 2], [], [EOT, 3, 4, 5, 6, 7]], 6)
    assert batch.input_ids.tolist() == [
        [EOT, 1, 2, EOT, PAD, PAD],
        [EOT, EOT, PAD, PAD, PAD, PAD],
        [EOT, 3, 4, 5, 6, 7],  # cut without an end
    ]
    assert batch.targets.tolist() == [
        [1, 2, EOT, _, _, _],
        [EOT, _, _, _, _, _],
        [3, 4, 5, 6, 7, _],
    ]
    assert torch.equal(batch.mask.to_dense(), torch.ones(6, 6).tril().bool().expand(3, 6, 6))


def test_mmu(prompting: Prompting) -> None:
    codes = images([C, C + 1], [C + 2, C + 3], [C + 4, C + 5])
    batch = prompting.mmu(codes, [[1, 2], [], list(range(1, 9))])
    assert batch.input_ids.tolist() == [
        [MMU, SOI, C, C + 1, EOI, EOT, 1, 2, EOT, PAD, PAD, PAD, PAD],
        [MMU, SOI, C + 2, C + 3, EOI, EOT, EOT, PAD, PAD, PAD, PAD, PAD, PAD],
        [MMU, SOI, C + 4, C + 5, EOI, EOT, 1, 2, 3, 4, 5, 6, EOT],
    ]
    assert batch.targets.tolist() == [
        [_, _, _, _, EOT, 1, 2, EOT, _, _, _, _, _],  # eoi predicts the beginning
        [_, _, _, _, EOT, EOT, _, _, _, _, _, _, _],
        [_, _, _, _, EOT, 1, 2, 3, 4, 5, 6, EOT, _],
    ]
    column, row = torch.arange(13), torch.arange(13)[:, None]
    assert torch.equal(batch.mask.to_dense(), ((column <= row) | (column <= 4)).expand(3, 13, 13))


def test_mmu_learns_answers_only(prompting: Prompting) -> None:
    batch = prompting.mmu(images([C]), [[1, 2, 3]], unlabelled=[3])
    assert batch.input_ids.tolist() == [[MMU, SOI, C, EOI, EOT, 1, 2, 3, EOT, PAD, PAD, PAD]]
    assert batch.targets.tolist() == [[_, _, _, _, _, _, 3, EOT, _, _, _, _]]


def test_mmu_vit(prompting: Prompting) -> None:
    features = torch.randn(2, 3, 5)
    batch = prompting.mmu_vit([[1, 2], list(range(1, 10))], [7, 8], features, image_tokens=3)
    assert batch.input_ids.tolist() == [
        [MMU, 7, 8, SOI, MASK, MASK, MASK, EOI, 1, 2, EOT, PAD, PAD, PAD, PAD, PAD],
        [MMU, 7, 8, SOI, MASK, MASK, MASK, EOI, 1, 2, 3, 4, 5, 6, 7, EOT],
    ]
    assert batch.targets[0].tolist() == [_] * 7 + [1, 2, EOT] + [_] * 6
    assert batch.features is not None
    assert batch.features.values is features
    assert batch.features.places.tolist() == [4, 5, 6, 20, 21, 22]
    column, row = torch.arange(16), torch.arange(16)[:, None]
    allowed = (column <= row) | ((column >= 4) & (column < 7))
    assert torch.equal(batch.mask.to_dense(), allowed.expand(2, 16, 16))


def test_lvg(prompting: Prompting) -> None:
    codes = torch.tensor([[[C, MASK], [MASK, C + 1]]])
    answers = torch.tensor([[[_, C + 2], [C + 3, _]]])
    batch = prompting.lvg([[[1], [2, 3]]], codes, answers, length=16)
    row = [T2I, EOT, 1, EOT, SOI, C, MASK, EOI, EOT, 2, 3, EOT, SOI, MASK, C + 1, EOI]
    assert batch.input_ids.tolist() == [row]
    assert batch.targets.tolist() == [
        # eoi, a place between image and text, predicts the next text's beginning
        [EOT, 1, EOT, _, SOI, _, C + 2, EOT, 2, 3, EOT, _, SOI, C + 3, _, EOI]
    ]
    padded = prompting.lvg([[[1], [2, 3]]], codes, answers, length=18, learn_text=False)
    assert padded.input_ids.tolist() == [[PAD, PAD, *row]]
    assert padded.targets.tolist() == [[_] * 6 + [SOI, _, C + 2, EOI, _, _, _, _, SOI, C + 3, _, EOI]]
    for see, build in ((True, OmniMask.lvg), (False, OmniMask.lvg_v2)):
        mask = prompting.lvg([[[1], [2, 3]]], codes, see_images=see).mask
        expected = build(batch.input_ids, pad_id=PAD, soi_id=SOI, eoi_id=EOI)
        assert torch.equal(mask.to_dense(), expected.to_dense())


def test_bad_arguments(prompting: Prompting) -> None:
    with pytest.raises(ValueError, match="eot 40 is not one of the 40 text ids"):
        Prompting(VOCAB, eot=40, max_text_len=8)
    with pytest.raises(ValueError, match=r"image_ids must lie in 50\.\.58 .*got 3\.\.3"):
        prompting.t2i([[1]], images([3]))
    with pytest.raises(TypeError, match="image_ids must be int64"):
        prompting.t2i([[1]], images([C]).int())
    with pytest.raises(ValueError, match=r"image_ids must be \[2, N\]"):
        prompting.mmu(images([C]), [[1], [2]])
    with pytest.raises(ValueError, match="image_targets"):
        prompting.t2i([[1]], images([C]), images([C, C]))
    with pytest.raises(ValueError, match="drop must be"):
        prompting.t2i([[1]], images([C]), drop=torch.tensor([True, False]))
    with pytest.raises(ValueError, match="unlabelled must have 1"):
        prompting.mmu(images([C]), [[1]], unlabelled=[1, 2])
