"""Sequences against rows written by hand, and packing against padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from showo.batch import IGNORE, Part
from showo.config import ShowoConfig
from showo.dialogue import Dialogue
from showo.prompting import Prompting
from showo.tokens import Vocabulary
from showo_ext import OmniMask

# 40 text ids (39 begins and ends a text), 8 codes, text part of 8: short names for rows written by hand.
VOCAB = Vocabulary(40, 8)
PAD, SOI, EOI, T2I, MMU, EOT, MASK = VOCAB.pad, VOCAB.soi, VOCAB.eoi, VOCAB.t2i, VOCAB.mmu, 39, VOCAB.mask_id
SOV, EOV, T2V, V2V = VOCAB.sov, VOCAB.eov, VOCAB.t2v, VOCAB.v2v
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


def test_t2i_without_a_condition(prompting: Prompting) -> None:
    batch = prompting.t2i([[], [3]], images([MASK], [MASK]))
    assert batch.input_ids[:, :9].tolist() == [[PAD] * 6 + [T2I, EOT, EOT], [PAD] * 5 + [T2I, EOT, 3, EOT]]
    assert (batch.targets == IGNORE).all()


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


def test_mmu_learns_the_answers_of_a_dialogue(prompting: Prompting) -> None:
    wide = Prompting(VOCAB, eot=EOT, max_text_len=8, mmu_text_len=12, mmu_vit_text_len=11)
    dialogue = Dialogue([([1, 2], [3]), ([4], [5, 6])])
    batch = wide.mmu(images([C]), [dialogue])
    assert batch.input_ids.tolist() == [[MMU, SOI, C, EOI, EOT, 1, 2, 3, EOT, 4, 5, 6, EOT, PAD, PAD, PAD]]
    assert batch.targets.tolist() == [[_, _, _, _, _, _, 3, EOT, _, 5, 6, EOT, _, _, _, _]]
    # too long: cut where it is, so that no answer is taught to end there
    batch = prompting.mmu(images([C]), [Dialogue([([1, 2], [3]), ([4], [5, 6, 7, 8])])])
    assert batch.input_ids.tolist() == [[MMU, SOI, C, EOI, EOT, 1, 2, 3, EOT, 4, 5, 6]]
    assert batch.targets.tolist() == [[_, _, _, _, _, _, 3, EOT, _, 5, 6, _]]
    texts = [dialogue, [7], list(range(20))]
    batch = wide.mmu_vit(texts, [], torch.zeros(3, 1, 5), image_tokens=1)
    assert batch.input_ids.tolist() == [
        [MMU, SOI, MASK, EOI, 1, 2, 3, EOT, 4, 5, 6, EOT, PAD, PAD, PAD],
        [MMU, SOI, MASK, EOI, 7, EOT, *[PAD] * 9],
        [MMU, SOI, MASK, EOI, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, EOT],
    ]
    assert batch.targets[:2].tolist() == [[_] * 5 + [3, EOT, _, 5, 6, EOT] + [_] * 4, [_] * 3 + [7, EOT] + [_] * 10]


def test_mmu_rows_may_have_no_picture_or_several(prompting: Prompting) -> None:
    codes = [images([C, C + 1], [C + 2, C + 3]), images([C + 4, C + 5]), torch.empty(0, 2, dtype=torch.int64)]
    batch = prompting.mmu(codes, [[1], Dialogue([([2], [3])]), Dialogue([([4], [5])])])
    assert batch.input_ids.tolist() == [
        [MMU, SOI, C, C + 1, EOI, SOI, C + 2, C + 3, EOI, EOT, 1, EOT, *[PAD] * 5],
        [MMU, SOI, C + 4, C + 5, EOI, EOT, 2, 3, EOT, *[PAD] * 8],
        [MMU, EOT, 4, 5, EOT, *[PAD] * 12],
    ]
    assert batch.targets.tolist() == [
        [_] * 8 + [EOT, 1, EOT] + [_] * 6,
        [_] * 6 + [3, EOT] + [_] * 9,
        [_, _, 5, EOT] + [_] * 13,
    ]
    column, row = torch.arange(17), torch.arange(17)[:, None]
    causal, second = column <= row, ((row >= 5) & (row <= 8) & (column <= 8))
    assert torch.equal(
        batch.mask.to_dense(), torch.stack((causal | (column <= 4) | second, causal | (column <= 4), causal))
    )


def test_mmu_vit(prompting: Prompting) -> None:
    """The system prompt belongs to dialogues: captions are learned without it."""
    features = torch.randn(2, 3, 5)
    texts = [Dialogue([([1], [2])]), list(range(1, 10))]
    batch = prompting.mmu_vit(texts, [7, 8], features, image_tokens=3)
    assert batch.input_ids.tolist() == [
        [MMU, 7, 8, SOI, MASK, MASK, MASK, EOI, 1, 2, EOT, PAD, PAD, PAD, PAD, PAD],
        [MMU, SOI, MASK, MASK, MASK, EOI, 1, 2, 3, 4, 5, 6, 7, EOT, PAD, PAD],
    ]
    assert batch.targets[0].tolist() == [_] * 8 + [2, EOT] + [_] * 6
    assert batch.features is not None
    assert torch.equal(batch.features.values, features)
    assert batch.features.places.tolist() == [4, 5, 6, 18, 19, 20]
    column, row = torch.arange(16), torch.arange(16)[:, None]
    seen = [(column <= row) | ((column >= first) & (column < first + 3)) for first in (4, 2)]
    assert torch.equal(batch.mask.to_dense(), torch.stack(seen))


def test_mmu_vit_row_without_picture(prompting: Prompting) -> None:
    features = [torch.empty(0, 2, 5), torch.ones(1, 2, 5)]
    batch = prompting.mmu_vit([Dialogue([([1], [])]), Dialogue([([], [2])])], [7], features, image_tokens=2)
    assert batch.input_ids[:, :8].tolist() == [
        [MMU, 7, 1, EOT, PAD, PAD, PAD, PAD],
        [MMU, 7, SOI, MASK, MASK, EOI, 2, EOT],
    ]
    assert batch.features is not None
    assert batch.features.values.shape == (1, 2, 5)
    assert batch.features.places.tolist() == [17, 18]
    assert torch.equal(batch.mask.to_dense()[0], torch.ones(14, 14).tril().bool())
    assert prompting.mmu_vit([[1]], [7], features[:1]).features is None
    with pytest.raises(ValueError, match="mmu_vit: row 0 has 2 pictures, expected one or none"):
        prompting.mmu_vit([[1]], [7], [torch.ones(2, 2, 5)])


def test_lvg(prompting: Prompting) -> None:
    """The first picture is where t2i has it; of the rows the longest decides how long all are."""
    codes = [images([C, MASK], [MASK, C + 1]), images([C + 4, MASK])]
    answers = [images([_, C + 2], [C + 3, _]), images([_, C + 5])]
    texts = [[[1], [2, 3]], [[]]]
    batch = prompting.lvg(texts, codes, answers)
    first = [*[PAD] * 5, T2I, EOT, 1, EOT, SOI, C, MASK, EOI]
    other = [*[PAD] * 6, T2I, EOT, EOT, SOI, C + 4, MASK, EOI]
    assert batch.input_ids.tolist() == [
        [*first, EOT, 2, 3, EOT, SOI, MASK, C + 1, EOI],
        [*other, *[PAD] * 8],
    ]
    assert batch.targets.tolist() == [
        # eoi, a place between image and text, predicts the next text's beginning
        [_] * 5 + [EOT, 1, EOT, _, SOI, _, C + 2, EOT, 2, 3, EOT, _, SOI, C + 3, _, EOI],
        [_] * 6 + [EOT, EOT, _, SOI, _, C + 5, EOI] + [_] * 8,
    ]
    alone = prompting.t2i([[]], codes[1], answers[1])
    assert alone.input_ids.tolist() == [other]
    silent = prompting.lvg(texts, codes, answers, learn_text=False)
    assert silent.targets.tolist() == [
        [_] * 9 + [SOI, _, C + 2, EOI, _, _, _, _, SOI, C + 3, _, EOI],
        [_] * 9 + [SOI, _, C + 5, EOI] + [_] * 8,
    ]
    for see, build in ((True, OmniMask.lvg), (False, OmniMask.lvg_v2)):
        mask = prompting.lvg(texts, codes, see_images=see).mask
        expected = build(batch.input_ids, pad_id=PAD, soi_id=SOI, eoi_id=EOI)
        assert torch.equal(mask.to_dense(), expected.to_dense())


def test_videos(prompting: Prompting) -> None:
    frames = [images([C, MASK], [MASK, C + 1]), images([MASK, MASK])]
    answers = [images([_, C + 2], [C + 3, _]), images([C + 4, C + 5])]
    batch = prompting.t2v([[1], [2, 3]], frames, answers)
    assert batch.input_ids.tolist() == [
        [*[PAD] * 5, T2V, EOT, 1, EOT, SOV, C, MASK, MASK, C + 1, EOV],
        [*[PAD] * 4, T2V, EOT, 2, 3, EOT, SOV, MASK, MASK, EOV, PAD, PAD],
    ]
    assert batch.targets.tolist() == [
        [_] * 9 + [SOV, _, C + 2, C + 3, _, EOV],
        [_] * 9 + [SOV, C + 4, C + 5, EOV, _, _],
    ]
    row, column = torch.arange(15)[:, None], torch.arange(15)
    seen = (column >= 5) & ((column <= row) | (row >= 9))
    assert torch.equal(batch.mask.to_dense()[0, 5:], seen[5:])

    given = [images([C + 6, C + 7]), images([C + 6, C + 7], [C, C])]
    batch = prompting.v2v(given, [[1], []], frames, answers)
    assert batch.input_ids.tolist() == [
        [V2V, SOV, C + 6, C + 7, EOV, EOT, 1, EOT, SOV, C, MASK, MASK, C + 1, EOV],
        [V2V, SOV, C + 6, C + 7, C, C, EOV, EOT, EOT, SOV, MASK, MASK, EOV, PAD],
    ]
    assert batch.targets.tolist() == [
        [_] * 8 + [SOV, _, C + 2, C + 3, _, EOV],
        [_] * 9 + [SOV, C + 4, C + 5, EOV, _],
    ]
    row, column = torch.arange(14)[:, None], torch.arange(14)
    seen = (column <= row) | ((row >= 1) & (row <= 4) & (column <= 4)) | (row >= 8)
    assert torch.equal(batch.mask.to_dense()[0], seen)


def test_weights_stay_with_their_targets(prompting: Prompting) -> None:
    codes, answers = images([C, MASK]), images([C + 1, C + 2])
    weights = torch.tensor([[0.25, 0.5]])
    batch = prompting.t2i([[1]], codes, answers, image_weights=weights)
    assert batch.weights is not None
    assert batch.weights.tolist() == [1, 0.25, 0.5, 1]
    assert batch.parts["t2i"].weight == 2.75
    rows = prompting.lvg([[[1], [2]]], [torch.cat((codes, codes))], [torch.cat((answers, answers))],
                         image_weights=[torch.cat((weights, weights))])  # fmt: skip
    assert rows.weights is not None
    assert rows.weights.tolist() == [*[1] * 4, 0.25, 0.5, *[1] * 4, 0.25, 0.5, 1]  # the text's too
    frames = prompting.t2v(
        [[1]], [codes.repeat(2, 1)], [answers.repeat(2, 1)], frame_weights=[weights * images([1], [2])]
    )
    assert frames.weights is not None
    assert frames.weights.tolist() == [1, 0.25, 0.5, 0.5, 1, 1]
    assert prompting.t2i([[1]], codes, answers).weights is None


def test_rows_have_no_more_places_than_the_model_has_positions() -> None:
    short = Prompting(VOCAB, eot=EOT, max_text_len=8, max_positions=20)
    two = [images([C, C], [C, C])]
    short.lvg([[[], []]], two)
    with pytest.raises(ValueError, match="lvg: row 0 takes 21 positions; the model has 20"):
        short.lvg([[[], [1, 2]]], two)


def test_a_models_lengths() -> None:
    sizes = {"text_vocab_size": 40, "codebook_size": 8, "num_vq_tokens": 1, "max_text_len": 8, "max_positions": 24}
    plain = Prompting.for_model(ShowoConfig(**sizes), eot=EOT)
    assert (plain.max_text_len, plain.mmu_text_len, plain.mmu_vit_text_len) == (8, 8, 8)
    own = Prompting.for_model(ShowoConfig(**sizes, mmu_text_len=12, mmu_vit_text_len=20), eot=EOT)
    assert (own.max_text_len, own.mmu_text_len, own.mmu_vit_text_len, own.max_positions) == (8, 12, 20, 24)
    assert own.vocabulary == VOCAB


def test_bad_arguments(prompting: Prompting) -> None:
    with pytest.raises(ValueError, match="eot 40 is not one of the 40 text ids"):
        Prompting(VOCAB, eot=40, max_text_len=8)
    with pytest.raises(ValueError, match=r"Prompting: mmu_text_len must be at least 3, got 2"):
        Prompting(VOCAB, eot=EOT, max_text_len=8, mmu_text_len=2)
    with pytest.raises(ValueError, match=r"t2i: row 1: image ids must be at least 50 .*got 3"):
        prompting.t2i([[1], [1]], images([C], [3]))
    with pytest.raises(TypeError, match="image ids must be int64"):
        prompting.t2i([[1]], images([C]).int())
    with pytest.raises(ValueError, match=r"mmu: 2 texts need as many rows of image ids, got 1"):
        prompting.mmu(images([C]), [[1], [2]])
    with pytest.raises(
        ValueError, match=r"image targets must have the shapes of the ids, \[\[1, 1\]\], got \[\[1, 2\]\]"
    ):
        prompting.t2i([[1]], images([C]), images([C, C]))
    with pytest.raises(ValueError, match=r"text ids must lie in 0\.\.39, got 1\.\.40"):
        prompting.lm([[1, PAD]], 5)
    with pytest.raises(ValueError, match=r"lvg: row 1 has 1 texts for 2 images"):
        prompting.lvg([[[1]], [[2]]], [images([C]), images([C], [C])])
