"""Training of Show-o: streams, exact resume, learning, and the command line around it."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from showo import ShowoPipeline
from showo.batch import IGNORE, Batch
from showo.data.make_text_tokenizer import train_text_tokenizer
from showo.data.streams import PictureStream, Question, TextStream, cosine_mask_ratio
from showo.errors import CheckpointError
from showo.model.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from showo.prompting import Prompting
from showo.seeds import seeded_generator
from showo.tokens import TextTokenizer
from showo.train.checkpoint import checkpoints
from showo.train.config import ShowoTraining, load_config
from showo.train.loop import TrainLoop
from showo.train.showo import TrainingStreams, train_showo
from showo.train.stop import StopRequest

WORDS = [f"{colour} {shape}" for colour in ("red", "green", "blue", "orange") for shape in ("circle", "square")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> dict[str, Path]:
    """An untrained image tokenizer (32x32 -> 4x4 codes of 6 bits) and a small text tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizers")
    torch.manual_seed(0)
    config = ImageTokenizerConfig(6, 8, (1, 1, 1, 2), (1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 1, 1), 4)
    ImageTokenizer(config).save_pretrained(folder / "image_tokenizer")
    train_text_tokenizer(WORDS, ["some text to read"] * 20, vocab_size=300).save(folder / "text")
    return {"pictures": pictures, "image_tokenizer": folder / "image_tokenizer", "text": folder / "text"}


def small_training(folders: dict[str, Path], *overrides: str) -> ShowoTraining:
    words = TextTokenizer.from_file(folders["text"]).text_vocab_size
    sizes = (
        "hidden_size=32 num_layers=2 num_heads=1 intermediate_size=64 codebook_size=64 num_vq_tokens=16 max_text_len=20"
    )
    paths = [
        f"data.train=[{folders['pictures']}/train-*.tar]",
        f"data.val=[{folders['pictures']}/val-*.tar]",
        "data.size=32",
        f"image_tokenizer={folders['image_tokenizer']}",
        f"text_tokenizer={folders['text']}",
    ]
    batches = ["t2i.batch=4", "lm.batch=1", "mmu.batch=3", "validation_prompts=[red circle]"]
    common = ["steps=6", "checkpoint_every=3", "validate_every=6", "optimizer.warmup_steps=2"]
    model = [f"model.{size}" for size in sizes.split()] + [f"model.text_vocab_size={words}"]
    return load_config(ShowoTraining, "tiny", [*paths, *batches, *common, *model, *overrides])


def train(config: ShowoTraining, run: Path, resume: bool = False) -> TrainLoop:
    return train_showo(config, run, resume=resume, console=Console(quiet=True))


@pytest.fixture
def prompting(folders: dict[str, Path]) -> tuple[Prompting, TextTokenizer]:
    text = TextTokenizer.from_file(folders["text"])
    return Prompting(text.vocabulary(64), eot=text.eos, max_text_len=40), text


def test_t2i_stream_masks_the_drawn_share(prompting: tuple[Prompting, TextTokenizer]) -> None:
    prompts, text = prompting
    codes = torch.randint(64, (8, 16))
    stream = PictureStream(prompts, codes, text.encode_batch(WORDS), seed=3)
    generator = torch.Generator().manual_seed(5)
    batch = stream.t2i(0, 8, 0.0, generator)
    ratio = cosine_mask_ratio(8, torch.Generator().manual_seed(5))
    image = batch.input_ids[:, -17:-1]
    masked = image == prompts.vocabulary.mask_id
    assert torch.equal(masked.sum(1), (16 * ratio).round().clamp_min(1).long())
    truth = (codes + prompts.vocabulary.image_offset)[stream.order.indices(0, 8)]
    assert torch.equal(torch.where(masked, truth, image), truth)
    assert torch.equal(batch.targets[:, -17:-1], torch.where(masked, truth, IGNORE))


def test_questions_are_given_and_answers_learned(prompting: tuple[Prompting, TextTokenizer]) -> None:
    prompts, text = prompting
    question = Question("Which?", WORDS, text)
    stream = PictureStream(prompts, torch.randint(64, (8, 16)), text.encode_batch(WORDS), seed=3)
    batch = stream.mmu(0, 8, [question], 1.0, torch.Generator())
    for row, i in zip(range(8), stream.order.indices(0, 8)):
        learned = batch.targets[row][batch.targets[row] != IGNORE].tolist()
        assert text.decode(learned) == " " + WORDS[i]
        assert learned[-1] == text.eos
        assert "USER: \nWhich? ASSISTANT: " + WORDS[i] == text.decode(batch.input_ids[row].tolist())


def open_streams(config: ShowoTraining) -> TrainingStreams:
    text = TextTokenizer.from_file(config.text_tokenizer)
    prompts = Prompting(config.model.vocabulary, eot=text.eos, max_text_len=config.model.max_text_len)
    return TrainingStreams(config, prompts, ImageTokenizer.from_pretrained(config.image_tokenizer), text)


def part(batch: Batch, name: str) -> torch.Tensor:
    """Input ids of a part, a row for each sample."""
    first, end, *_ = batch.parts[name]
    length = batch.input_ids.shape[1]
    return batch.input_ids.flatten()[first:end].view(-1, length)


def test_steps_and_micro_batches_go_through_all_samples(folders: dict[str, Path]) -> None:
    """16 pictures: 2 steps of 2 micro-batches of 4 t2i rows and of 4 mmu rows are an epoch of each."""
    config = small_training(folders, "accumulate=2", "t2i.batch=4", "mmu.batch=4", "lm.batch=2", "condition_dropout=0")
    streams = open_streams(config)
    batches = [streams.batch(s, m, seeded_generator(1, s, m)) for s in (0, 1) for m in (0, 1)]
    prefix = config.model.max_text_len + 1  # an image of a t2i row begins after its text part
    captions = {tuple(row[:prefix].tolist()) for batch in batches for row in part(batch, "t2i")}
    asked = {tuple(row[18:].tolist()) for batch in batches for row in part(batch, "mmu")}
    assert len(captions) == len(asked) == 16
    windows = streams.texts.windows
    read = [tuple(row[1 : row.tolist().index(streams.texts.prompting.eot, 1)].tolist())
            for batch in batches for row in part(batch, "lm")]  # fmt: skip
    assert read == [tuple(windows[i]) for i in streams.texts.order.indices(0, 8)]
    assert torch.equal(batches[0].input_ids, streams.batch(0, 0, seeded_generator(1, 0, 0)).input_ids)
    masks = [part(batch, "t2i")[:, prefix:] == config.model.vocabulary.mask_id for batch in batches]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(masks, 2))


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0, 0), (1.0, 400, 400), (0.25, 65, 135)])
def test_a_share_of_the_conditions_is_dropped(folders: dict[str, Path], dropout: float, low: int, high: int) -> None:
    """Of 400 rows 100 with a standard deviation of 8.7: four of them are allowed. mmu rows keep their captions."""
    streams = open_streams(small_training(folders, f"condition_dropout={dropout}", "t2i.batch=400", "mmu.batch=16"))
    batch = streams.batch(0, 0, seeded_generator(1))
    vocabulary, eot = streams.config.model.vocabulary, streams.texts.prompting.eot
    empty = [vocabulary.t2i, eot, eot]
    length = streams.config.model.max_text_len + 1
    assert low <= sum(row[length - 3 : length].tolist() == empty for row in part(batch, "t2i")) <= high
    assert not any(row[20:22].tolist() == [eot, eot] for row in part(batch, "mmu"))


def test_the_loss_is_the_sum_of_the_streams_with_their_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    config = small_training(folders, "t2i.weight=0.5", "lm.weight=0.25", "mmu.weight=2", "steps=1")
    config.validation_prompts = []
    total, means = train(config, tmp_path).loss(0, 0, seeded_generator(1))
    assert means.keys() == {"t2i", "lm", "mmu"}
    assert float(total.detach()) == pytest.approx(0.5 * means["t2i"] + 0.25 * means["lm"] + 2 * means["mmu"], rel=1e-5)


def test_training_neither_uses_nor_needs_the_global_random_state(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is why a checkpoint holds no random state."""
    config = small_training(folders, "validate_every=2", "question_share=0.5", "precision=fp32", "steps=4")
    whole = train(config, tmp_path / "a")
    step, seeds = torch.optim.AdamW.step, itertools.count()

    def disturbed(self: torch.optim.AdamW, *arguments: object) -> object:
        seed = next(seeds)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global state is what this is about
        random.seed(seed)
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", disturbed)
    assert train(config, tmp_path / "b").history == whole.history
    assert next(seeds) == 4
    sheets = [(tmp_path / run / "pictures" / "generated-000004.png").read_bytes() for run in "ab"]
    assert sheets[0] == sheets[1]


def test_text_stream_reads_all_of_a_document(prompting: tuple[Prompting, TextTokenizer]) -> None:
    prompts, _ = prompting
    document = list(range(100))
    stream = TextStream(prompts, [document], length=12, seed=0)
    batch = stream.lm(0, len(stream.windows))
    seen = sorted(i for row in batch.input_ids.tolist() for i in row if i < 100)
    assert seen == document


def test_resumed_training_equals_an_uninterrupted_one(folders: dict[str, Path], tmp_path: Path) -> None:
    config = small_training(folders, "steps=9", "keep_checkpoints=3")
    whole = train(config, tmp_path / "a")
    train(config, tmp_path / "b")
    shutil.rmtree(checkpoints(tmp_path / "b")[-1])  # as if it had died after step 6
    again = train(config, tmp_path / "b", resume=True)
    assert again.history == whole.history[6:]
    for (name, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(a, b), name


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """Python's usual handlers, whatever started this process: jobs in the background ignore SIGINT."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_within_a_step_ends_training_after_it(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raised: type[BaseException]
) -> None:
    config = small_training(folders)
    whole = train(config, tmp_path / "a")
    step = torch.optim.AdamW.step
    calls = itertools.count(1)

    def signalled(self: torch.optim.AdamW, *arguments: object) -> object:
        if next(calls) == 2:
            signal.raise_signal(number)
        return step(self, *arguments)

    before = signal.getsignal(number)
    monkeypatch.setattr(torch.optim.AdamW, "step", signalled)
    with pytest.raises(raised) as info:
        train(config, tmp_path / "b")
    assert not isinstance(info.value, SystemExit) or info.value.code == 143
    assert signal.getsignal(number) is before
    assert [path.name for path in checkpoints(tmp_path / "b")] == ["step-000002"]
    again = train(config, tmp_path / "b", resume=True)
    assert again.history == whole.history[2:]
    for (name, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(a, b), name


@pytest.mark.usefixtures("own_handlers")
def test_a_second_signal_does_not_wait() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("own_handlers")
def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop


def test_training_learns_and_its_checkpoint_generates(folders: dict[str, Path], tmp_path: Path) -> None:
    loop = train(small_training(folders, "steps=60", "optimizer.lr=3e-3"), tmp_path)
    assert sum(loop.history[-5:]) < 0.7 * sum(loop.history[:5])
    assert (tmp_path / "pictures" / "generated-000060.png").is_file()
    pipe = ShowoPipeline.from_pretrained(checkpoints(tmp_path)[-1])
    (picture,) = pipe.generate(["red circle"], steps=4)
    assert picture.size == (32, 32)


def test_a_checkpoint_names_the_image_tokenizer_it_was_trained_with(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders["image_tokenizer"].parent)  # named by a relative path, loaded from elsewhere
    train(small_training(folders, "steps=1", "image_tokenizer=image_tokenizer"), tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    checkpoint = checkpoints(tmp_path / "a")[-1]
    assert ShowoPipeline.from_pretrained(checkpoint).image_tokenizer.config.codebook_size == 64
    (checkpoint / "pipeline.json").write_text('{"image_tokenizer": "/gone"}')
    with pytest.raises(CheckpointError, match=r"pipeline\.json: image_tokenizer: no checkpoint folder at /gone; name"):
        ShowoPipeline.from_pretrained(checkpoint)
    (checkpoint / "pipeline.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"pipeline\.json names no image_tokenizer"):
        ShowoPipeline.from_pretrained(checkpoint)


@pytest.mark.parametrize("left_out", [("t2i",), ("lm",), ("mmu",), ("t2i", "mmu")])
def test_a_stream_may_be_left_out(folders: dict[str, Path], tmp_path: Path, left_out: tuple[str, ...]) -> None:
    """What only such a stream would read need not be there."""
    config = small_training(folders, "steps=2", *(f"{stream}.batch=0" for stream in left_out))
    if "lm" in left_out:
        config.texts = []
    if not config.uses_pictures:
        config.data.train = config.data.val = []
    loop = train(config, tmp_path)
    assert loop.step == 2
    _, means = loop.loss(0, 0, seeded_generator(1))
    assert set(means) == {"t2i", "lm", "mmu"} - set(left_out)


def test_init_from_is_refused_before_any_picture_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    config = small_training(folders, "init_from=/no/such/folder")
    config.data.train = ["/no/such/shard.tar"]
    with pytest.raises(CheckpointError, match="/no/such/folder"):
        train(config, tmp_path)


@pytest.mark.parametrize("wrong", ["model.codebook_size=128", "model.num_vq_tokens=64", "model.text_vocab_size=99"])
def test_tokenizers_that_do_not_fit_are_named(folders: dict[str, Path], tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.split("=")[0]):
        train(small_training(folders, wrong), tmp_path)


def test_max_seconds_ends_a_run_with_a_checkpoint(folders: dict[str, Path], tmp_path: Path) -> None:
    loop = train(small_training(folders, "steps=100000", "max_seconds=0.5"), tmp_path)
    assert 0 < loop.step < 100000
    assert checkpoints(tmp_path)[-1].name == f"step-{loop.step:06d}"


def test_init_from_starts_with_those_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    first = train(small_training(folders), tmp_path / "a")
    start = checkpoints(tmp_path / "a")[-1]
    second = train(small_training(folders, f"init_from={start}", "steps=1", "optimizer.lr=0"), tmp_path / "b")
    for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values()):
        assert torch.equal(a, b)
