"""Rows of every format: what they take from samples and from chance, whoever makes them and when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from showo.batch import IGNORE, Batch
from showo.data.corruption import ObjectiveConfig
from showo.data.faults import Pool
from showo.data.make_assets import encode_png
from showo.data.make_text_tokenizer import train_text_tokenizer
from showo.data.micro_batch import RowBatch
from showo.data.rows import (
    FeatureUnderstanding,
    Format,
    Making,
    PictureIds,
    PictureReader,
    PicturesAndTexts,
    Texts,
    TextToImage,
    Understanding,
)
from showo.data.sample import CaptionedPicture, Conversation, Document, Frame, Picture, PictureSequence, Sample, Turn
from showo.data.sources.config import SourceConfig
from showo.data.streams import MicroBatches, RowStream
from showo.data.video_rows import TextToVideo, VideoToVideo
from showo.errors import DataError, SampleError
from showo.prompting import Prompting
from showo.tokens import TextTokenizer

WORDS = [f"{colour} {shape}" for colour in ("red", "green", "blue", "orange") for shape in ("circle", "square")]
SIDE, CODES = 4, 64  # of the grid; how many different codes there are
DEVICE = torch.device("cpu")


class Listed:
    """A source of the samples of a list."""

    name = "list"

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples, self.kind = samples, type(samples[0])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


@pytest.fixture(scope="module")
def text() -> TextTokenizer:
    return train_text_tokenizer(WORDS, ["some text to read"] * 20, vocab_size=300)


@pytest.fixture
def making(text: TextTokenizer) -> Making:
    prompting = Prompting(text.vocabulary(CODES), eot=text.eos, max_text_len=40, max_positions=200)
    return Making(prompting, text, PictureReader(32, SIDE, CODES), ObjectiveConfig())


def drawn_picture(number: int) -> Image.Image:
    generator = np.random.default_rng(number)
    return Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))


def codes_of(pixels: np.ndarray) -> np.ndarray:
    """What stands for an image tokenizer: int64 [N] of uint8 [3, 32, 32]."""
    return pixels[0, ::8, ::8].astype(np.int64).flatten() % CODES


def encode(pixels: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.stack([codes_of(picture) for picture in pixels.numpy()]))


def picture(number: int, *, encoded: bool) -> Picture:
    image = drawn_picture(number)
    if encoded:
        return Picture(str(number), codes=codes_of(np.asarray(image).transpose(2, 0, 1)))
    return Picture(str(number), data=encode_png(image))


def samples(*, encoded: bool) -> dict[str, list[Any]]:
    """Eight samples for each format."""
    pictures = [picture(number, encoded=encoded) for number in range(16)]
    pairs = [CaptionedPicture(word, p, (word, f"a {word}")) for word, p in zip(WORDS, pictures)]
    turns = (Turn("What is it?", "circle"), Turn("Which colour?", "red"))
    talks = [Conversation(str(i), tuple(pictures[i : i + i % 3]), turns) for i in range(8)]
    frames = [Frame(p, word) for p, word in zip(pictures, WORDS * 2)]
    sequences = [PictureSequence(str(i), tuple(frames[i : i + 2 + i % 2])) for i in range(8)]
    documents = [Document(word, f"{word} and more") for word in WORDS]
    videos = {"lvg": sequences, "t2v": sequences, "v2v": sequences}
    return {"t2i": pairs, "lm": documents, "mmu": talks, **videos}


def formats(making: Making) -> dict[str, Format]:
    return {
        "t2i": TextToImage(making, 0.25),
        "lm": Texts(making, 20),
        "mmu": Understanding(making, ("Which?",), 0.5),
        "lvg": PicturesAndTexts(making),
        "t2v": TextToVideo(making, 0.25),
        "v2v": VideoToVideo(making),
    }


def micro_batches(
    making: Making, accumulate: int = 1, *, encoded: bool = True, rows: int = 4, **pools: Sequence[Sample]
) -> MicroBatches:
    """Of all formats, `rows` rows of each in a step."""
    streams = [
        RowStream(name, formats(making)[name], pool(pools.get(name, found)), rows, 5)
        for name, found in samples(encoded=encoded).items()
    ]
    return MicroBatches(streams, making.prompting.vocabulary, SIDE**2, accumulate)


def pool(listed: Sequence[Sample]) -> Pool:
    return Pool([Listed(listed)], [SourceConfig(layout="list", files=["list"])], seed=3)


def completed(rows: RowBatch, making: Making) -> Batch:
    return rows.completed(encode, None, making.prompting.vocabulary, DEVICE).batch


def rows_of(batch: Batch, name: str) -> list[tuple[list[int], list[int], list[int]]]:
    """Ids, targets and positions of a part's rows, in order. A row of these formats begins with a position before."""
    first, end, *_ = batch.parts[name]
    tensors = [tensor.flatten()[first:end].tolist() for tensor in (batch.input_ids, batch.targets, batch.positions)]
    starts = [i for i, position in enumerate(tensors[2]) if i == 0 or position < tensors[2][i - 1]]
    return [
        (tensors[0][a:b], tensors[1][a:b], tensors[2][a:b])
        for a, b in zip(starts, [*starts[1:], len(tensors[2])], strict=True)
    ]


def same(a: Batch, b: Batch) -> bool:
    tensors = [(getattr(a, n), getattr(b, n)) for n in ("input_ids", "targets", "positions", "labelled")]
    tensors.append((a.mask.intervals, b.mask.intervals))
    return all(torch.equal(x, y) for x, y in tensors) and a.parts == b.parts


@pytest.mark.parametrize("objective", [{}, {"noise_type": "random_replace"}, {"mask_contiguous_region_prob": 0.5}])
def test_pictures_and_their_codes_give_the_same_batch(text: TextTokenizer, objective: dict[str, Any]) -> None:
    prompting = Prompting(text.vocabulary(CODES), eot=text.eos, max_text_len=40)
    making = Making(prompting, text, PictureReader(32, SIDE, CODES), ObjectiveConfig(**objective))
    for position in range(5):
        ready = micro_batches(making, 2, encoded=True)(position)
        later = micro_batches(making, 2, encoded=False)(position)
        assert ready.pixels is None
        assert later.pixels is not None
        assert ready.tally == later.tally
        assert same(completed(ready, making), completed(later, making))
        assert int(completed(later, making).input_ids.max()) < making.prompting.vocabulary.size


def test_a_step_has_the_same_rows_whatever_its_micro_batches(making: Making) -> None:
    """Which is what a rank will rely on that takes a part of them."""
    whole, *parts = (
        [completed(micro_batches(making, accumulate)(position), making) for position in range(3 * accumulate)]
        for accumulate in (1, 2, 4)
    )
    for split in parts:
        at_once = len(split) // len(whole)
        for step, batch in enumerate(whole):
            for name in batch.parts:
                found = [row for b in split[step * at_once : (step + 1) * at_once] for row in rows_of(b, name)]
                assert found == rows_of(batch, name)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_rows_are_dealt_to_ranks_in_turn(making: Making, ranks: int) -> None:
    """Each row once; and after every micro-batch no rank has had more than one row more than another."""
    alone = micro_batches(making, 2)
    streams, vocabulary = alone.streams, making.prompting.vocabulary
    dealt = [MicroBatches(streams, vocabulary, SIDE**2, 2, rank=rank, ranks=ranks) for rank in range(ranks)]
    had = [0] * ranks
    for position in range(8):
        numbers = [each.numbers(position) for each in dealt]
        for name, whole in alone.numbers(position).items():
            assert sorted(number for some in numbers for number in some[name]) == list(whole)
        had = [count + sum(map(len, some.values())) for count, some in zip(had, numbers, strict=True)]
        assert max(had) - min(had) <= 1


def test_rows_go_through_all_samples_and_differ_each_time(making: Making) -> None:
    make = micro_batches(making, rows=8)
    epochs = [make(0), make(1)]
    for name in formats(making):
        for rows in epochs:
            assert sorted(drawn.index for drawn in rows.drawn[name]) == list(range(8))
    assert [d.index for d in epochs[0].drawn["t2i"]] != [d.index for d in epochs[1].drawn["t2i"]]
    masks = [[[i == making.prompting.vocabulary.mask_id for i in row[0]] for row in rows_of(rows.batch, "t2i")]
             for rows in epochs]  # fmt: skip
    assert not any(mask in masks[1] for mask in masks[0])


def test_t2i_rows_hide_the_drawn_share_and_ask_for_the_truth(making: Making) -> None:
    make, vocabulary = micro_batches(making, rows=8), making.prompting.vocabulary
    rows = make(0)
    pairs, hidden = samples(encoded=True)["t2i"], 0
    for (ids, targets, _), drawn in zip(rows_of(rows.batch, "t2i"), rows.drawn["t2i"], strict=True):
        image, wanted = torch.tensor(ids[-17:-1]), torch.tensor(targets[-17:-1])
        truth = torch.from_numpy(pairs[drawn.index].picture.codes) + vocabulary.image_offset
        masked = image == vocabulary.mask_id
        assert masked.any()
        assert torch.equal(torch.where(masked, truth, image), truth)
        assert torch.equal(wanted, torch.where(masked, truth, IGNORE))
        hidden += int(masked.sum())
    several = [ids for name in ("lvg", "t2v", "v2v") for ids, *_ in rows_of(rows.batch, name)]
    frames = sum(len(sequence.frames) for sequence in samples(encoded=True)["lvg"])
    hidden += sum(ids.count(vocabulary.mask_id) for ids in several)
    last = [ids[::-1].index(vocabulary.sov) - 1 for ids, *_ in rows_of(rows.batch, "v2v")]
    assert (rows.tally.masked, rows.tally.codes) == (hidden, 16 * (8 + 2 * frames) + sum(last))
    talked = sum(len(talk.pictures) for talk in samples(encoded=True)["mmu"])
    assert rows.tally.images == 8 + 3 * frames + talked
    assert rows.tally.tokens == rows.batch.input_ids.numel()
    alone = MicroBatches(make.streams[:1], vocabulary, SIDE**2, 1)(0).tally
    assert alone.tokens + alone.padding == 8 * (41 + 18)  # places of padded rows of t2i


def test_lvg_rows_end_with_the_picture_that_is_hidden_where_earlier_ones_are_kept(making: Making) -> None:
    kept = replace(making, objective=ObjectiveConfig(keep_earlier=True, min_masking_rate=0.5))
    stories = [*samples(encoded=True)["lvg"], PictureSequence("alone", (Frame(picture(3, encoded=True), "cat"),))]
    ends = set()
    for number, story in enumerate(stories * 8):
        row = PicturesAndTexts(kept).parts(story, number, Random(number))
        for shown, frame in zip(row.pictures, story.frames, strict=False):
            assert shown.tolist() == frame.picture.codes.tolist()
        assert len(row.texts) == len(row.pictures) == len(row.corruptions)
        *earlier, last = row.corruptions
        assert last.ratio >= 0.5
        assert all(corruption.ratio == 0 for corruption in earlier)
        assert len({corruption.seed for corruption in row.corruptions}) == len(row.corruptions)
        ends.add((len(story.frames), len(row.pictures)))
    assert ends == {(1, 1), (2, 2), (3, 2), (3, 3)}


def test_a_video_hides_one_share_of_all_its_frames(making: Making, text: TextTokenizer) -> None:
    """Those that are given are whole and nothing of them is learned; the captions of what is drawn say what happens."""
    rows, vocabulary = micro_batches(making, rows=8)(0), making.prompting.vocabulary
    stories = samples(encoded=True)["v2v"]
    for name, begin in (("t2v", vocabulary.t2v), ("v2v", vocabulary.v2v)):
        splits, empty = set(), 0
        for (ids, targets, _), drawn in zip(rows_of(rows.batch, name), rows.drawn[name], strict=True):
            frames = stories[drawn.index].frames
            truth = [frame.picture.codes + vocabulary.image_offset for frame in frames]
            assert ids[0] == begin
            *before, wanted = [place for place, id_ in enumerate(ids) if id_ == vocabulary.sov]
            given = (ids.index(vocabulary.eov) - before[0] - 1) // 16 if before else 0
            if before:
                assert ids[before[0] + 1 : before[0] + 1 + 16 * given] == np.concatenate(truth[:given]).tolist()
                assert {*targets[:wanted]} == {IGNORE}
            shown = np.array(ids[wanted + 1 : -1]).reshape(-1, 16)
            asked = np.array(targets[wanted + 1 : -1]).reshape(-1, 16)
            hidden = shown == vocabulary.mask_id
            assert len(shown) == len(frames) - given
            assert len({*hidden.sum(axis=1).tolist()}) == 1
            assert len(shown) == 1 or (hidden[0] != hidden[1]).any() or hidden.all()
            assert (np.where(hidden, truth[given:], shown) == truth[given:]).all()
            assert (asked == np.where(hidden, truth[given:], IGNORE)).all()
            said = text.decode(id_ for id_ in ids if id_ < vocabulary.text_vocab_size)
            empty += not said
            assert said in ("", "; ".join(frame.caption for frame in frames[given:]))
            splits.add((len(frames), given))
        assert splits == {"t2v": {(2, 0), (3, 0)}, "v2v": {(2, 1), (3, 1), (3, 2)}}[name]
        assert (empty > 0) == (name == "t2v")
    alone = PictureSequence("alone", stories[0].frames[:1])
    with pytest.raises(SampleError, match="alone: one picture, and rows of v2v need two"):
        VideoToVideo(making).parts(alone, 0, Random(0))


def test_questions_are_given_and_answers_learned(making: Making, text: TextTokenizer) -> None:
    asked = Understanding(making, ("Which?",), 1.0)
    stream = RowStream("mmu", asked, pool(samples(encoded=True)["t2i"]), 8, 5)
    rows = MicroBatches([stream], making.prompting.vocabulary, SIDE**2, 1)(0)
    for (ids, targets, _), drawn in zip(rows_of(rows.batch, "mmu"), rows.drawn["mmu"], strict=True):
        learned = [target for target in targets if target != IGNORE]
        answer = text.decode(learned)
        assert answer.removeprefix(" ").removeprefix("a ") == WORDS[drawn.index]
        assert learned[-1] == text.eos
        assert f"USER: \nWhich? ASSISTANT:{answer}" == text.decode(ids)


def test_a_row_asks_any_of_the_questions(making: Making, text: TextTokenizer) -> None:
    asked = Understanding(making, ("Which?", "What?"), 1.0)
    pair = samples(encoded=True)["t2i"][0]
    answers = [asked.parts(pair, number, Random(number)).answer for number in range(30)]
    questions = {text.decode(answer.turns[0][0]) for answer in answers}  # type: ignore[union-attr]
    assert questions == {"USER: \nWhich? ASSISTANT:", "USER: \nWhat? ASSISTANT:"}


def test_codes_that_are_not_hidden_weigh_less_in_every_format(making: Making) -> None:
    """With a weight that is the hidden share of their picture."""
    weighing = replace(making, objective=ObjectiveConfig(predict_all_tokens=True, min_loss_weight=0.0))
    rows = micro_batches(weighing)(0)
    batch, seen = rows.batch, 0
    assert batch.weights is not None
    for (name, part), weights in zip(
        batch.parts.items(), batch.weights.split([part.targets for part in batch.parts.values()]), strict=True
    ):
        assert rows.counts[name] == pytest.approx(float(weights.sum()), rel=1e-6)
        assert (weights.min() < 1) == (name not in ("lm", "mmu")), name
        assert (rows.counts[name] < part.targets) == (name not in ("lm", "mmu"))
        seen += int((weights < 1).sum())
    assert seen == rows.tally.codes - rows.tally.masked


def test_held_out_pictures_take_the_shares_in_turn(making: Making) -> None:
    objective = ObjectiveConfig(eval_mask_ratios=(0.25, 0.75))
    pair = samples(encoded=True)["t2i"][0]
    for held_out in (True, False):
        form = TextToImage(replace(making, objective=objective, held_out=held_out), 0.0)
        ratios = [form.parts(pair, number, Random(number)).corruptions[0].ratio for number in range(6)]
        assert (ratios == [0.25, 0.75] * 3) == held_out


def test_a_row_of_a_picture_takes_any_of_its_captions(making: Making) -> None:
    plain, drawn = Understanding(making), TextToImage(making, 0.0)
    pair = samples(encoded=True)["t2i"][0]
    texts = {making.tokenizer.decode(plain.parts(pair, n, Random(n)).answer) for n in range(30)}  # type: ignore[arg-type]
    assert texts == set(pair.captions)
    assert {making.tokenizer.decode(drawn.parts(pair, n, Random(n)).texts[0]) for n in range(30)} == texts


def test_documents_are_read_window_by_window(making: Making) -> None:
    words = " ".join(str(number) for number in range(60))
    ids = making.tokenizer.encode(words)
    form, window = Texts(making, 20), 18
    found = {tuple(form.parts(Document("d", words), n, Random(n)).texts[0]) for n in range(400)}  # type: ignore[arg-type]
    assert found == {tuple(ids[start : start + window]) for start in range(0, len(ids), window)}
    assert len(found) == math.ceil(len(ids) / window) > 3


def test_rows_that_do_not_fit_are_the_sample_s_fault(making: Making) -> None:
    frames = tuple(Frame(picture(n, encoded=True), "a") for n in range(20))
    for form in (PicturesAndTexts(making), TextToVideo(making, 0.0), VideoToVideo(making)):
        with pytest.raises(SampleError, match=r"long: 20 pictures may take \d+ positions, more than 200"):
            form.parts(PictureSequence("long", frames), 0, Random(0))
    talk = Conversation("many", tuple(frame.picture for frame in frames), (Turn("What?", "red"),))
    with pytest.raises(SampleError, match="many: 20 pictures may take"):
        Understanding(making).parts(talk, 0, Random(0))
    with pytest.raises(SampleError, match="many: 20 pictures; a row of mmu_vit has at most one"):
        FeatureUnderstanding(making).parts(talk, 0, Random(0))


def test_rows_as_long_as_the_model_has_positions_are_made(making: Making) -> None:
    """Two pictures, and texts that fill their room; with a position less the sample is refused, before any batch."""
    caption = " ".join(WORDS * 6)
    frames = tuple(Frame(picture(n, encoded=True), caption) for n in range(2))
    story = PictureSequence("long", frames)
    talk = Conversation("long", tuple(frame.picture for frame in frames), (Turn("What?", caption),))

    def limited(positions: int | None) -> dict[str, Format]:
        text = making.tokenizer
        prompting = Prompting(text.vocabulary(CODES), eot=text.eos, max_text_len=40, max_positions=positions)
        return formats(replace(making, prompting=prompting))

    for name, sample in (("lvg", story), ("t2v", story), ("v2v", story), ("mmu", talk)):

        def length(positions: int | None, name: str = name, sample: Sample = sample) -> int:
            form = limited(positions)[name]
            row = form.parts(sample, 0, Random(1))
            return form.batch([row], PictureIds(making.prompting.vocabulary, SIDE**2))[0].input_ids.shape[1]

        full = length(None)
        assert length(full) == full
        with pytest.raises(SampleError, match=rf"long: 2 pictures may take {full} positions, more than {full - 1}"):
            length(full - 1)


@pytest.mark.parametrize(
    ("codes", "message"),
    [([1] * 9, "9 codes, expected 16"), ([1] * 15 + [64], "must be 0 to 63"), ([1] * 15 + [-1], "must be 0 to 63")],
)
def test_codes_of_another_tokenizer_are_the_sample_s_fault(making: Making, codes: list[int], message: str) -> None:
    with pytest.raises(SampleError, match=f"origin: .*{message}"):
        making.pictures(Picture("origin", codes=np.array(codes)))


def test_rows_beside_a_broken_picture_are_what_they_were(making: Making) -> None:
    """The row itself is another sample's, with the draws that it would have had."""
    pairs = samples(encoded=False)["t2i"]
    broken = [*pairs[:3], CaptionedPicture("bad", Picture("bad.png", data=b"no picture"), ("bad",)), *pairs[4:]]
    whole, holed = (micro_batches(making, encoded=False, rows=8, t2i=listed)(0) for listed in (pairs, broken))
    (place,) = (i for i, drawn in enumerate(holed.drawn["t2i"]) if drawn.faults)
    assert holed.drawn["t2i"][place].faults[0].index == whole.drawn["t2i"][place].index == 3
    found, expected = (rows_of(completed(rows, making), "t2i") for rows in (holed, whole))
    assert [a == b for a, b in zip(found, expected, strict=True)] == [i != place for i in range(8)]
    mask = making.prompting.vocabulary.mask_id
    assert [i == mask for i in found[place][0][-17:]] == [i == mask for i in expected[place][0][-17:]]


def test_a_source_without_a_usable_sample_ends_the_run(making: Making) -> None:
    broken = [CaptionedPicture("bad", Picture("bad.png", data=b""), ("bad",))]
    with pytest.raises(DataError, match=r"list: 100 samples in a row cannot be used; the last: bad\.png"):
        micro_batches(making, t2i=broken)(0)


def test_features_of_pictures_are_made_on_the_device(making: Making) -> None:
    form = FeatureUnderstanding(making, side=28, image_tokens=4)
    talks = [talk for talk in samples(encoded=False)["mmu"] if len(talk.pictures) < 2]
    stream = RowStream("mmu_vit", form, pool(talks), 6, 5)
    rows = MicroBatches([stream], making.prompting.vocabulary, SIDE**2, 1)(0)

    def tower(pixels: torch.Tensor) -> torch.Tensor:
        assert (pixels.dtype, pixels.shape[1:]) == (torch.uint8, (3, 28, 28))
        return pixels.float().mean((1, 2, 3))[:, None, None].expand(-1, 4, 8)

    batch = rows.completed(encode, tower, making.prompting.vocabulary, DEVICE).batch
    expected = [len(talks[drawn.index].pictures) for drawn in rows.drawn["mmu_vit"]]
    assert batch.features is not None
    assert batch.features.values.shape == (sum(expected), 4, 8)
    assert (batch.input_ids.flatten()[batch.features.places] == making.prompting.vocabulary.mask_id).all()
