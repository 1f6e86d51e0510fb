"""Sessions: what is appended piece by piece is what a whole row is; rows are independent; no loop waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from showo.engine import growing, open_canvas
from showo.engine.generate import generate_codes
from showo.engine.growing import GrowingText, OpenImage
from showo.engine.samplers import Filling
from showo.engine.session import Session
from showo.errors import UserError
from showo.model.transformer import Showo
from showo.prompting import Prompting
from showo_ext import OmniMask
from showo_ext.testing import CountOperators

CODES = 16


def pictures(model: Showo, count: int) -> Tensor:
    vocab = model.config.vocabulary
    return torch.randint(vocab.image_offset, vocab.mask_id, (count, CODES))


def last_of_row(model: Showo, ids: list[int], offset: int = 0) -> Tensor:
    """Hidden state of the last place of a row that is computed whole."""
    vocab, row = model.config.vocabulary, torch.tensor([ids])
    mask = OmniMask.lvg(row, pad_id=vocab.pad, soi_id=vocab.soi, eoi_id=vocab.eoi)
    positions = torch.arange(offset, offset + len(ids))
    return model.hidden_states(row, mask=mask, positions=positions)[0, -1]


def test_pieces_are_the_row_that_they_make(model64: Showo, prompting: Prompting) -> None:
    """Rows of other lengths, each with or without padding before its first text, pictures in some of them."""
    model, vocab = model64, model64.config.vocabulary
    texts, images = [[1, 2, 3], [4], []], pictures(model, 5)
    none = [torch.empty(0, CODES, dtype=torch.int64)] * 3
    session = Session(model, 3)
    session.append(prompting.lvg([[text] for text in texts], none))
    session.append_image(images[:3])
    session.append_text([[5, 6, 7, 8], [], [9]])
    session.append_image(images[3:], rows=[0, 2])
    session.append_text([[10], [11, 12], [13]])
    rows = [prompting.t2i_text(text) for text in texts]
    offsets = [prompting.max_text_len + 1 - len(row) for row in rows]
    marked = [[vocab.soi, *image, vocab.eoi] for image in images.tolist()]
    rows[0] += [*marked[0], 5, 6, 7, 8, *marked[3], 10]
    rows[1] += [*marked[1], 11, 12]
    rows[2] += [*marked[2], 9, *marked[4], 13]
    assert session.lengths == [len(row) for row in rows]
    for row, offset, last in zip(rows, offsets, session._last, strict=True):
        torch.testing.assert_close(last[0], last_of_row(model, row, offset), rtol=1e-9, atol=1e-9)


def test_a_question_is_read_as_officially(model64: Showo, prompting: Prompting) -> None:
    """The mask of mmu rows: also what stands before the picture sees all of it. Rows may have several pictures."""
    vocab, images = model64.config.vocabulary, pictures(model64, 3)
    questions = [[1, 2], [3, 4, 5, 6]]
    session = Session(model64, 2)
    session.append(prompting.asked(questions, CODES, [1, 2]), images)
    for b, (own, question) in enumerate(zip((images[:1], images[1:]), questions)):
        marked = [id_ for image in own.tolist() for id_ in (vocab.soi, *image, vocab.eoi)]
        ids = torch.tensor([[vocab.mmu, *marked, *prompting.frame(question)]])
        mask = OmniMask.mmu(ids, soi_id=vocab.soi, eoi_id=vocab.eoi)
        expected = model64.hidden_states(ids, mask=mask)[0, -1]
        torch.testing.assert_close(session._last[b, 0], expected, rtol=1e-9, atol=1e-9)


def answers(session: Session, eot: int, **options: Any) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(session.rows)]
    for ids in session.generate_text(eot=eot, **options):
        for row, id_ in zip(rows, ids):
            row += [] if id_ is None else [id_]
    return rows


def continued(model: Showo, ids: list[int], eot: int, count: int) -> list[int]:
    """The greedy text after a row, everything computed again for each id."""
    found: list[int] = []
    while len(found) < count:
        logits = model.logits(last_of_row(model, [*ids, *found]), (0, model.config.vocabulary.text_vocab_size))
        if (id_ := int(logits.argmax())) == eot:
            break
        found.append(id_)
    return found


@pytest.mark.parametrize("unseen", [1, 3, 8])
def test_a_chat(model: Showo, unseen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of text and pictures, some answers cut: each is what a row that is computed again and again gives.

    Whatever ids a step leaves unseen, as on a GPU, the rows hold what was taken from them.
    """
    monkeypatch.setattr("showo.engine.session._unseen_at_most", lambda device: unseen)
    vocab, images = model.config.vocabulary, pictures(model, 2)
    model.config = replace(model.config, max_positions=128)
    rows = [[1, 2, 3], [4]]
    free = continued(model, rows[0], -1, 6)
    eot = free[2]  # so the first row ends, and is not cut
    session = Session(model, 2)
    session.append_text(rows)
    for turn in range(3):
        got = answers(session, eot, max_new_tokens=6)
        for row, found in zip(rows, got, strict=True):
            assert found == continued(model, row, eot, 6), turn
            row += found if len(found) == 6 else [*found, eot]
        if turn == 1:
            session.append_image(images)
            for row, image in zip(rows, images.tolist()):
                row += [vocab.soi, *image, vocab.eoi]
        session.append_text([[7 + turn], [8, 9]])
        rows[0] += [7 + turn]
        rows[1] += [8, 9]
    assert session.lengths == [len(row) for row in rows]


def test_a_text_that_nobody_wants_to_its_end(model: Showo) -> None:
    session = Session(model, 1)
    session.append_text([[1, 2, 3]])
    text = session.generate_text(eot=-1, max_new_tokens=9)
    taken = [ids[0] for ids in (next(text), next(text))]
    text.close()
    session.append_text([[5]])
    whole = [1, 2, 3, *(id_ for id_ in taken if id_ is not None), 5]
    assert session.lengths == [len(whole)]
    torch.testing.assert_close(session._last[0, 0], last_of_row(model, whole), rtol=1e-4, atol=1e-4)


def test_rows_that_begin_alike_are_read_once(model: Showo, prompting: Prompting) -> None:
    seen: list[int] = []
    hidden_states = model.hidden_states
    model.hidden_states = lambda ids, **rest: seen.append(len(ids)) or hidden_states(ids, **rest)  # type: ignore[method-assign,assignment]
    none = [torch.empty(0, CODES, dtype=torch.int64)] * 5
    session = Session(model, 5)
    session.append(prompting.lvg([[text] for text in ([1], [2], [1], [], [])], none))
    assert seen == [3]
    assert torch.equal(session._last[0], session._last[2])
    assert not torch.equal(session._last[0], session._last[1])
    session.append_text([[3]] * 5)  # what is before may differ by now
    assert seen == [3, 5]


def test_rows_taken_go_their_own_way(model64: Showo) -> None:
    session = Session(model64, 2)
    session.append_text([[1, 2], [3]])
    both = session.taken([1, 1, 0])
    both.append_text([[4], [5], []])
    session.append_text([[6], [6]])
    for ids, last in (([3, 4], both._last[0]), ([3, 5], both._last[1]), ([1, 2], both._last[2])):
        torch.testing.assert_close(last[0], last_of_row(model64, ids), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(session._last[1, 0], last_of_row(model64, [3, 6]), rtol=1e-9, atol=1e-9)


def test_only_some_places_of_an_open_picture(model: Showo) -> None:
    """Of the first rows, or of some places: the same numbers, and the rows stay as they are."""
    session = Session(model, 4)
    session.append_text([[1, 2], [3], [4, 5, 6], []])
    image = session.open_image(CODES)
    canvas = pictures(model, 2)
    whole = image.logits(canvas)
    assert whole.shape == (4, CODES, model.config.codebook_size)
    torch.testing.assert_close(image.logits(canvas, rows=2), whole[:2])
    places = torch.tensor([[0, 15], [3, 4], [7, 7], [2, 1]])
    torch.testing.assert_close(
        image.logits(canvas, places=places), whole.gather(1, places[..., None].expand(-1, -1, whole.shape[2]))
    )
    torch.testing.assert_close(image.logits(canvas), whole)
    assert session.lengths == [2, 1, 3, 0]


def test_no_loop_waits_for_the_device(model: Showo, prompting: Prompting, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device there is nothing to look at: whatever looked would raise."""
    model = model.to("meta")
    monkeypatch.setattr(open_canvas, "check_finite", lambda finite: None)

    # Before the loop the canvas is asked how many codes are wanted.
    monkeypatch.setattr(Filling, "unknown", lambda filling: [CODES, CODES])
    for sampler in ("confidence", "linear-temperature", "halton", "entropy-bound", "remask"):
        codes = generate_codes(model, prompting, [[1, 2], [3]], steps=5, guidance=1.0, sampler=sampler)
        assert codes.shape == (2, CODES)
    looks: list[int] = []

    def look(text: GrowingText) -> list[list[int]]:
        looks.append(text.unseen)
        text._unseen = []
        return [[1, 2]] * looks[-1]

    monkeypatch.setattr(growing.GrowingText, "look", look)
    session = Session(model, 2)
    session.append(prompting.asked([[1], [2, 3]], CODES), pictures(model, 2).to("meta"))
    assert len(list(session.generate_text(eot=0, max_new_tokens=20))) == 20
    assert looks == [8, 8, 4]


def test_steps_without_guidance_have_no_second_half(
    model: Showo, prompting: Prompting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And draw what a second half of no weight gives."""
    seen: list[int] = []
    logits = OpenImage.logits
    monkeypatch.setattr(
        OpenImage, "logits", lambda self, ids, rows, *to: seen.append(rows) or logits(self, ids, rows, *to)
    )
    options: dict[str, Any] = {"steps": 4, "guidance": 2.0, "guidance_schedule": "off0.5", "seed": 3}
    fast = generate_codes(model, prompting, [[1, 2], [3]], **options)
    assert seen[0] == 4
    assert seen[-1] == 2
    assert torch.equal(fast, generate_codes(model, prompting, [[1, 2], [3]], **options, official=True))


def test_an_open_picture_is_planned_once(model: Showo) -> None:
    session = Session(model, 2)
    session.append_text([[1, 2], [3]])
    image = session.open_image(CODES)
    for calls in (2, 0):  # all places for all layers but the last, whose eoi is not wanted
        with CountOperators() as counter:
            image.logits(pictures(model, 2))
        assert counter.calls["omni_block_table"] == calls


def test_rows_have_room_in_the_model(model: Showo, prompting: Prompting) -> None:
    session = Session(model, 2)
    with pytest.raises(UserError, match="row 1 takes 65 positions; the model has 64"):
        session.append_text([[1], [2] * 65])
    with pytest.raises(ValueError, match="a session of 2 rows was given 1"):
        session.append(prompting.asked([[1]], CODES), pictures(model, 1))
    session.append_text([[1], [2] * 60])
    with pytest.raises(UserError, match="row 1 takes 78 positions; the model has 64"):
        session.open_image(CODES)
    assert len(list(session.generate_text(eot=-1, max_new_tokens=50))) == 4  # where the longest row ends
