"""Answers from the key-value cache against the loop that computes everything again for each token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from showo.dialogue import question_text
from showo.engine.session import Session
from showo.engine.understand import answer, stream
from showo.model.transformer import Showo
from showo.prompting import Prompting
from showo_ext import OmniMask, omni_attention

QUESTIONS = [[], [4, 5, 6], [7] * 9]


def pictures(model: Showo, count: int = 3) -> torch.Tensor:
    torch.manual_seed(3)
    vocab = model.config.vocabulary
    return torch.randint(vocab.image_offset, vocab.mask_id, (count, 16))


def recomputed(model: Showo, prompting: Prompting, image: list[int], question: list[int], limit: int) -> list[int]:
    vocab = model.config.vocabulary
    ids = [vocab.mmu, vocab.soi, *image, vocab.eoi, *prompting.frame(question)]
    start = len(ids)
    while len(ids) < start + limit:
        row = torch.tensor([ids])
        with torch.no_grad():
            logits = model(row, mask=OmniMask.mmu(row, soi_id=vocab.soi, eoi_id=vocab.eoi))
        token = int(logits[0, -1, : vocab.text_vocab_size].argmax())
        if token == prompting.eot:
            break
        ids.append(token)
    return ids[start:]


def test_cached_equals_recomputed(model: Showo, prompting: Prompting) -> None:
    images = pictures(model)
    answers = answer(model, prompting, images, QUESTIONS, max_new_tokens=12)
    for image, question, got in zip(images.tolist(), QUESTIONS, answers):
        assert got == recomputed(model, prompting, image, question, 12)


def test_codes_stay_on_their_device(model: Showo, prompting: Prompting) -> None:
    """A tensor on the meta device has no values that could be looked at."""
    session = Session(model.to("meta"), len(QUESTIONS))
    session.append(prompting.asked(QUESTIONS, 16), pictures(model).to("meta"))
    assert session.lengths == [3 + 16 + len(prompting.frame(question)) for question in QUESTIONS]


def test_a_row_does_not_depend_on_its_neighbours(model: Showo, prompting: Prompting) -> None:
    images = pictures(model)
    options = {"max_new_tokens": 10, "temperature": 0.9, "top_k": 20, "top_p": 0.95}
    together = answer(model, prompting, images, QUESTIONS, seed=5, **options)  # type: ignore[arg-type]
    for i, question in enumerate(QUESTIONS):
        alone = answer(model, prompting, images[i : i + 1], [question], seed=5 + i, **options)  # type: ignore[arg-type]
        assert alone == [together[i]]
    assert answer(model, prompting, images, QUESTIONS, seed=6, **options) != together  # type: ignore[arg-type]


def test_the_end_stops_a_row_and_then_the_loop(model: Showo, prompting: Prompting) -> None:
    images = pictures(model)
    free = answer(model, prompting, images, QUESTIONS, max_new_tokens=10)
    # Whatever row 1 says third is now the end of text.
    ending = Prompting(model.config.vocabulary, eot=free[1][2], max_text_len=8)
    ending.frame = prompting.frame  # type: ignore[method-assign]
    answers = answer(model, ending, images, QUESTIONS, max_new_tokens=10)
    for before, after in zip(free, answers):
        cut = before.index(ending.eot) if ending.eot in before else 10
        assert after == before[:cut]
    assert len(answers[1]) <= 2
    shapes = list(stream(model, ending, images[1:2], QUESTIONS[1:2], max_new_tokens=10))
    assert shapes == [[token] for token in answers[1]]


def test_limits(model: Showo, prompting: Prompting) -> None:
    images = pictures(model)
    assert [len(row) <= 1 for row in answer(model, prompting, images, QUESTIONS, max_new_tokens=1)] == [True] * 3
    # 64 positions: 16 + 3 + 1 + 9 taken, 35 left
    assert max(len(row) for row in answer(model, prompting, images, QUESTIONS, max_new_tokens=1000)) <= 35
    assert answer(model, prompting, images[:0], []) == []
    with pytest.raises(ValueError, match="take 68 positions; this model has 64"):
        answer(model, prompting, images[:1], [[1] * 48])
    with pytest.raises(ValueError, match="max_new_tokens"):
        answer(model, prompting, images[:1], [[1]], max_new_tokens=0)
    with pytest.raises(ValueError, match=r"image_ids must be \[2, N\]"):
        answer(model, prompting, images, [[1], [2]])


def test_tokens_after_the_first_take_the_decode_kernels(model: Showo, prompting: Prompting, emulated: Any) -> None:
    """One launch a layer, and no block table; the answers are those of the plain formula."""
    images = pictures(model)
    expected = answer(model, prompting, images, QUESTIONS, max_new_tokens=3)
    model.attend = omni_attention
    steps = stream(model, prompting, images, QUESTIONS, max_new_tokens=3)
    got = [next(steps)]
    before = len(emulated.records())
    got += list(steps)
    launches = [record.kernel for record in emulated.records()[before:]]
    attention = [name for name in launches if "omni_" in name]
    layers = model.config.num_layers
    assert len(attention) == layers * (len(got) - 1)
    assert all("omni_decode_f32" in name for name in attention)
    assert [[row[i] for row in got if row[i] is not None] for i in range(3)] == expected


def test_question_text() -> None:
    assert question_text(None) == ""
    assert question_text("What is this?") == "USER: \nWhat is this? ASSISTANT:"
