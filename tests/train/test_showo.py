"""Training of Show-o: streams, exact resume, learning, and the command line around it."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from showo import ShowoPipeline
from showo.batch import Batch
from showo.data.sources.config import SourceConfig
from showo.dialogue import Dialogue
from showo.errors import CheckpointError, ConfigError, OutputError
from showo.model.losses import multimodal_loss
from showo.seeds import seeded_generator
from showo.sheets import sheet
from showo.tokens import TextTokenizer
from showo.train import saving
from showo.train.checkpoint import checkpoints
from showo.train.row_streams import RowStreams, TowerSizes
from showo.train.showo import showo_loop
from showo.train.stop import Stopped, StopRequest
from tests.train.conftest import small_training, train
from tests.train.test_showo_data import write_sequences

Folders = dict[str, Path]


def part(batch: Batch, name: str) -> torch.Tensor:
    """Input ids of a part."""
    first, end, *_ = batch.parts[name]
    return batch.input_ids.flatten()[first:end]


def captions(batch: Batch, name: str, text: TextTokenizer) -> list[str]:
    """The texts of a part's rows, in order, without marks."""
    ids = part(batch, name).tolist()
    words = "".join(text.decode([i]) if i < text.text_vocab_size and i != text.eos else "|" for i in ids)
    return [word for word in words.split("|") if word]


def test_steps_and_micro_batches_go_through_all_samples(folders: dict[str, Path], tmp_path: Path) -> None:
    """16 pictures: 2 steps of 2 micro-batches of 4 t2i rows and of 4 mmu rows are an epoch of each."""
    config = small_training(folders, "accumulate=2", "t2i.batch=8", "mmu.batch=8", "lm.batch=4", "condition_dropout=0")
    text = TextTokenizer.from_file(config.text_tokenizer)
    data = showo_loop(config, tmp_path).data
    batches = [rows.batch for rows in data.between(0, 4)]
    for name in ("t2i", "mmu"):
        seen = [captions(batch, name, text) for batch in batches]
        assert [len(some) for some in seen] == [4, 4, 4, 4]
        assert len({caption for some in seen for caption in some}) == 16
    masks = [part(batch, "t2i") == config.model.vocabulary.mask_id for batch in batches]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(masks, 2))


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0, 0), (1.0, 400, 400), (0.25, 65, 135)])
def test_a_share_of_the_conditions_is_dropped(
    folders: dict[str, Path], tmp_path: Path, dropout: float, low: int, high: int
) -> None:
    """Of 400 rows 100 with a standard deviation of 8.7: four of them are allowed. mmu rows keep their captions."""
    config = small_training(folders, f"condition_dropout={dropout}", "t2i.batch=400", "mmu.batch=16")
    text = TextTokenizer.from_file(config.text_tokenizer)
    loop = showo_loop(config, tmp_path)
    (rows,) = loop.data.between(0, 1)
    assert low <= 400 - len(captions(rows.batch, "t2i", text)) <= high
    assert len(captions(rows.batch, "mmu", text)) == 16
    held_out = [rows.batch for rows in loop.data.held_out()]
    assert sum(len(captions(batch, name, text)) for batch in held_out for name in batch.parts) == 8


def test_the_loss_is_the_sum_of_the_streams_with_their_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    config = small_training(folders, "t2i.weight=0.5", "lm.weight=0.25", "mmu.weight=2", "steps=1")
    config.validation_prompts = []
    loop = train(config, tmp_path)
    (rows,) = loop.data.between(0, 1)
    total, means = loop.loss(rows, rows.counts, seeded_generator(1))
    assert means.keys() == {"t2i", "lm", "mmu"}
    torch.testing.assert_close(total, 0.5 * means["t2i"] + 0.25 * means["lm"] + 2 * means["mmu"])
    of_two = {name: 2 * count for name, count in rows.counts.items()}  # as if there were another such micro-batch
    half, halves = loop.loss(rows, of_two, seeded_generator(1))
    torch.testing.assert_close(half, total / 2)
    torch.testing.assert_close(dict(halves), {name: mean / 2 for name, mean in means.items()})


def test_labels_are_smoothed_in_training_and_not_in_validation(folders: Folders, tmp_path: Path) -> None:
    """What is held out comes in several batches, and its losses are means over all of them."""
    config = small_training(folders, "objective.label_smoothing=0.2", "t2i.batch=3", "validation_prompts=[]")
    config.precision, weights = "fp32", {"t2i": 1.0, "lm": 1.0, "mmu": 1.0}
    loop = showo_loop(config, tmp_path)
    (rows,) = loop.data.between(0, 1)
    _, means = loop.loss(rows, rows.counts, seeded_generator(1))
    smoothed = multimodal_loss(loop.model, rows.batch, weights=weights, label_smoothing=0.2)
    torch.testing.assert_close(dict(means), smoothed.means)
    assert not torch.equal(means["t2i"], multimodal_loss(loop.model, rows.batch, weights=weights).means["t2i"])
    with torch.no_grad():
        found, _ = loop.validate(loop.model, 0)
        parts = [multimodal_loss(loop.model, each.batch, weights=weights) for each in loop.data.held_out()]
    for name in ("t2i", "mmu"):
        sums, counts = zip(*((part.sums[name], part.counts[name]) for part in parts if name in part.sums))
        assert len(counts) == 2
        assert found[name] == pytest.approx(float(sum(sums)) / sum(counts), rel=1e-5)


def test_validation_draws_what_the_checkpoint_draws(folders: Folders, tmp_path: Path) -> None:
    """With the sampling, the texts and the seed of the configuration, whichever step it is."""
    prompts = ["red circle", "blue\u00a0 square "]
    drawn = ["sampling.steps=3", "sampling.guidance=1.5", "seed=12", "precision=fp32"]
    config = small_training(folders, "steps=2", "validate_every=1", *drawn)
    config.validation_prompts = prompts
    train(config, tmp_path)
    pipe = ShowoPipeline.from_pretrained(checkpoints(tmp_path)[-1])
    expected = sheet(pipe.generate(prompts, seed=12), prompts, scale=2)
    with Image.open(tmp_path / "pictures" / "generated-000002.png") as found:
        assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_held_out_rows_are_the_same_whatever_training_rows_draw(folders: Folders, tmp_path: Path) -> None:
    """Captions that are dropped, questions, and how much of a picture is hidden: of every format that has any."""
    steps = write_sequences(tmp_path / "steps")
    sequences = f"[{{layout: sequences, files: [{steps}]}}]"
    options = ["condition_dropout=0.5", "objective.eval_mask_ratios=[0.25, 0.75]", "questions=[Which?]"]
    config = small_training(folders, *options, "question_share=1", "t2v.batch=1", f"t2v.data={sequences}")
    texts = TextTokenizer.from_file(config.text_tokenizer)
    config.t2v.held_out = config.t2v.data
    streams = RowStreams(config, texts, 4, TowerSizes())
    with pytest.raises(ConfigError, match=r"^t2v\.held_out\[0\]\.files must be other files than those of t2v\.data"):
        streams.open("t2v", held_out=True)
    shutil.copytree(tmp_path / "steps", tmp_path / "others")
    config.t2v.held_out = [SourceConfig(layout="sequences", files=[str(tmp_path / "others" / steps.name)])]
    for held_out in (False, True):
        for name in ("t2i", "t2v"):
            rows = [each.value for each in streams.open(name, held_out=held_out).draw(range(60))]
            assert (0 < sum(not row.texts[0] for row in rows) < 60) == (not held_out), name
            shares = [{corruption.ratio for corruption in row.corruptions} for row in rows]
            assert (shares == [{0.25}, {0.75}] * 30) == held_out, name
        answers = [each.value.answer for each in streams.open("mmu", held_out=held_out).draw(range(4))]
        assert {isinstance(answer, Dialogue) for answer in answers} == {not held_out}


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


def test_the_model_is_in_training_mode_but_while_it_is_validated(folders: dict[str, Path], tmp_path: Path) -> None:
    loop = showo_loop(small_training(folders, "steps=2", "validate_every=1", "validation_prompts=[]"), tmp_path)
    modes: list[tuple[str, bool, bool]] = []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            modes.append((name, loop.model.training, torch.is_grad_enabled()))
            return function(*arguments)

        return call

    loop.loss, loop.validate = watched("step", loop.loss), watched("validation", loop.validate)
    loop.run()
    assert modes == [("step", True, True), ("validation", False, False)] * 2


def test_resumed_training_equals_an_uninterrupted_one(folders: dict[str, Path], tmp_path: Path) -> None:
    halves = ["accumulate=2", "t2i.batch=4", "lm.batch=2", "mmu.batch=2"]
    config = small_training(folders, "steps=9", "keep_checkpoints=3", *halves)
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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_a_step_ends_training_after_it(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
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
    with pytest.raises(Stopped) as info:
        train(config, tmp_path / "b")
    assert info.value.code == 0
    assert signal.getsignal(number) is before
    assert [path.name for path in checkpoints(tmp_path / "b")] == ["step-000002"]
    again = train(config, tmp_path / "b", resume=True)
    assert again.history == whole.history[2:]
    for (name, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(a, b), name


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize("stopped", [False, True])
def test_the_last_checkpoint_is_waited_for(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """Nobody would hear afterwards that it could not be written."""

    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    def signalled(self: torch.optim.AdamW, *arguments: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    step = torch.optim.AdamW.step
    if stopped:
        monkeypatch.setattr(torch.optim.AdamW, "step", signalled)
    monkeypatch.setattr(saving, "write_checksums", fail)
    config = small_training(folders, "steps=2", "checkpoint_every=9", "validation_prompts=[]", "workers=0")
    with pytest.raises(OutputError, match=rf"^step {1 if stopped else 2} could not be saved in .*No space left"):
        train(config, tmp_path)


@pytest.mark.usefixtures("own_handlers")
def test_a_second_signal_does_not_wait() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("own_handlers")
def test_torchrun_may_pass_on_what_has_come_already(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")

    def stopped() -> None:
        with StopRequest() as stop:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                signal.raise_signal(number)
            assert stop.signal == signal.SIGTERM
            raise Stopped

    with pytest.raises(Stopped):
        stopped()
    signal.raise_signal(signal.SIGTERM)  # while the process ends


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
    drawn = "sampling.steps=5", "sampling.guidance=0.5", "sampling.top_k=3"
    options = "steps=1", "image_tokenizer=image_tokenizer", *drawn
    train(small_training(folders, *options), tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    checkpoint = checkpoints(tmp_path / "a")[-1]
    pipe = ShowoPipeline.from_pretrained(checkpoint)
    assert pipe.image_tokenizer.config.codebook_size == 64
    steps: list[int] = []
    as_trained = pipe.generate(["red circle"], callback=lambda first, step: steps.append(step.step))
    assert steps == [0, 1, 2, 3, 4]  # the model's own settings, where nobody says otherwise
    assert as_trained == pipe.generate(["red circle"], steps=5, guidance=0.5, top_k=3)
    assert as_trained != pipe.generate(["red circle"], top_k=0)
    assert as_trained != pipe.generate(["red circle"], guidance=5.0)
    for wrong, message in (
        ({"steps": 0}, "steps must be at least 1"),
        ({"step": 3}, "step"),
        ({"guidance": -1}, "0 or"),
        ({"top_k": -1}, "top_k must be 0 or more"),
        ("fast", "sampling must hold steps and guidance, got 'fast'"),
        (None, "sampling must hold steps and guidance, got None"),
    ):
        (checkpoint / "pipeline.json").write_text(json.dumps({"image_tokenizer": "x", "sampling": wrong}))
        with pytest.raises(CheckpointError, match=rf"pipeline\.json: .*{message}"):
            ShowoPipeline.from_pretrained(checkpoint)
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
    for stream in left_out:
        getattr(config, stream).data = getattr(config, stream).held_out = []
    loop = train(config, tmp_path)
    assert loop.step == 2
    (rows,) = loop.data.between(0, 1)
    assert set(rows.batch.parts) == {"t2i", "lm", "mmu"} - set(left_out)


def test_init_from_is_refused_before_any_picture_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    config = small_training(folders, "init_from=/no/such/folder")
    config.t2i.data[0].files = ["/no/such/shard.tar"]
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
