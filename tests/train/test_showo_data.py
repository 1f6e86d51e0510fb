"""What `showo train` reads: the same rows by any number of workers and from any step on, by pictures and by codes."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

import showo.train.showo as showo_training
from showo.batch import Batch
from showo.data.code_shards import Encoding
from showo.data.make_assets import encode_png
from showo.data.micro_batch import RowBatch
from showo.data.sources.config import SourceConfig
from showo.data.tally import Tally
from showo.data.tar import write_tar
from showo.data.tokenize import Tokenizing, open_captioned
from showo.errors import ConfigError, DataError
from showo.model.image_tokenizer import ImageTokenizer
from showo.prompting import Prompting
from showo.seeds import seeded_generator
from showo.tokens import Vocabulary
from showo.train.checkpoint import checkpoints
from showo.train.clock import StepClock
from showo.train.config import ShowoTraining, TokenizerTraining, load_config
from showo.train.image_tokenizer import tokenizer_loop
from showo.train.showo import showo_loop, train_showo
from showo.train.showo_data import ShowoData
from showo.train.step import train_step
from tests.gpu_copies import copies_to_gpu
from tests.train.conftest import small_training, train, webdataset
from tests.train.test_step import Waits

Folders = dict[str, Path]


def data(config: ShowoTraining, run: Path) -> ShowoData:
    found = showo_loop(config, run, Console(quiet=True)).data
    assert isinstance(found, ShowoData)
    return found


def keys(rows: RowBatch) -> dict[str, list[tuple[int, int]]]:
    """Which sample of which source every row has."""
    return {name: [(drawn.source, drawn.index) for drawn in some] for name, some in rows.drawn.items()}


def same(a: Batch, b: Batch) -> bool:
    tensors = [(getattr(a, n), getattr(b, n)) for n in ("input_ids", "targets", "positions", "labelled")]
    return all(torch.equal(x, y) for x, y in tensors) and torch.equal(a.mask.intervals, b.mask.intervals)


def test_samples_hang_on_the_step_alone(folders: Folders, tmp_path: Path) -> None:
    """Two epochs of pictures, by 0, 1 and 3 workers, and begun at every step: what was recorded from one process."""
    common = ["accumulate=2", "t2i.batch=4", "mmu.batch=4", "lm.batch=2", "question_share=0.5"]
    two = "[{layout: webdataset, files: [%s/train-*.tar]}, {layout: webdataset, files: [%s/val-*.tar], weight: 0.5}]"
    common.append(f"t2i.data={two % (folders['pictures'], folders['pictures'])}")
    common += ["t2i.held_out=[]", "mmu.held_out=[]"]
    recorded = list(data(small_training(folders, *common, "workers=0"), tmp_path).between(0, 16))
    assert {source for rows in recorded for source, _ in keys(rows)["t2i"]} == {0, 1}
    for workers in (1, 3):
        found = data(small_training(folders, *common, f"workers={workers}", "prefetch=1"), tmp_path).between(0, 16)
        for a, b in zip(found, recorded, strict=True):
            assert keys(a) == keys(b)
            assert same(a.batch, b.batch)
    again = data(small_training(folders, *common, "encode_first=0"), tmp_path)
    copied = pickle.loads(pickle.dumps(again._loader.make))  # as a worker has it that is no fork
    assert keys(copied(5)) == keys(recorded[5])
    for start in range(16):
        first = next(again.between(start, 16))
        assert keys(first) == keys(recorded[start])
        assert same(first.batch, recorded[start].batch)


def test_every_stream_and_every_seed_has_an_order_and_draws_of_its_own(folders: Folders, tmp_path: Path) -> None:
    orders, hidden = set(), set()
    for seed in (1, 2):
        config = small_training(folders, f"seed={seed}", "t2i.batch=16", "mmu.batch=16")
        rows = next(data(config, tmp_path).between(0, 1))
        orders |= {tuple(some) for name, some in keys(rows).items() if name != "lm"}
        hidden.add(rows.tally.masked)
    assert len(orders) == 4
    assert len(hidden) == 2


def write_codes(folder: Path, pictures: str, tokenizer: Path, resolution: int = 32) -> str:
    """A list of one source: shards of the codes of the pictures that a pattern names."""
    source, origin = open_captioned(SourceConfig(layout="webdataset", files=[pictures]), shard_size=10)
    images = ImageTokenizer.from_pretrained(tokenizer)
    encoding = Encoding.of(images, str(tokenizer), resolution)
    codes = (resolution // images.config.downsampling) ** 2
    Tokenizing(source, origin, folder, encoding, images.encode_pixels, codes, 64, workers=0).run(Console(quiet=True))
    return f"[{{layout: codes, files: [{folder}/*.parquet]}}]"


def test_pictures_codes_and_pictures_that_were_encoded_first_are_the_same(folders: Folders, tmp_path: Path) -> None:
    codes = write_codes(tmp_path / "codes", f"{folders['pictures']}/train-*.tar", folders["image_tokenizer"])
    ways = {
        "pictures": ["encode_first=0"],
        "by a worker": ["encode_first=0", "workers=1"],
        "encoded first": ["encode_first=16", "workers=1"],  # at most so many, and there are 16
        "codes": [f"t2i.data={codes}", f"mmu.data={codes}"],
    }
    found = {
        name: list(data(small_training(folders, "mmu.held_out=[]", *overrides), tmp_path).between(0, 6))
        for name, overrides in ways.items()
    }
    encoded = data(small_training(folders, "encode_first=16"), tmp_path)
    assert next(encoded._loader.between(0, 1)).pixels is None
    for batches in found.values():
        assert all(same(a.batch, b.batch) for a, b in zip(batches, found["pictures"], strict=True))
        assert all(a.tally == b.tally for a, b in zip(batches, found["pictures"], strict=True))


def test_codes_of_another_tokenizer_or_resolution_are_refused(folders: Folders, tmp_path: Path) -> None:
    """Also where they are as many and in range; not where the decoder alone is another one."""
    pictures, tokenizer = f"{folders['pictures']}/train-*.tar", folders["image_tokenizer"]
    images = ImageTokenizer.from_pretrained(tokenizer)
    images.decoder.conv_in.weight.data.add_(1)
    images.save_pretrained(tmp_path / "decoder")
    images.encoder.conv_in.weight.data.add_(1)
    images.save_pretrained(tmp_path / "encoder")

    def opened(codes: str) -> ShowoData:
        return data(small_training(folders, "mmu.batch=0", "workers=0", f"t2i.data={codes}"), tmp_path)

    assert next(opened(write_codes(tmp_path / "a", pictures, tmp_path / "decoder")).between(0, 1)).pixels is None
    refusal = rf"b/0000[01]-of-00002.parquet: its codes are of {tmp_path}/encoder \(encoder \w{{12}}\) at 32 pixels, .*"
    with pytest.raises(DataError, match=refusal + rf"but this training has {tokenizer} \(encoder \w{{12}}\) at 32 pix"):
        opened(write_codes(tmp_path / "b", pictures, tmp_path / "encoder"))
    with pytest.raises(DataError, match=r"at 64 pixels.* but this training has .* at 32 pixels"):
        opened(write_codes(tmp_path / "c", pictures, tokenizer, resolution=64))


def test_codes_that_say_nothing_of_their_tokenizer_are_taken(folders: Folders, tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "b"], "codes": [[3] * 16, [5] * 16], "caption": ["a", "b"]})
    pq.write_table(table, tmp_path / "train.parquet")
    codes = f"[{{layout: codes, files: [{tmp_path}/train.parquet]}}]"
    found = data(small_training(folders, "mmu.batch=0", "workers=0", f"t2i.data={codes}"), tmp_path)
    assert next(found.between(0, 1)).pixels is None


def test_workers_change_nothing_that_is_trained(folders: Folders, tmp_path: Path) -> None:
    alone = train(small_training(folders, "workers=0", "encode_first=0"), tmp_path / "a")
    helped = train(small_training(folders, "workers=2", "encode_first=0"), tmp_path / "b")
    assert helped.history == alone.history
    assert len(helped.history) == 6


def test_a_step_waits_for_no_device_however_its_pictures_come(folders: Folders, tmp_path: Path) -> None:
    for way in ("encode_first=0", "encode_first=100"):
        config = small_training(folders, "t2i.batch=2", "mmu.batch=2", "optimizer.max_grad_norm=1", way)
        loop = showo_loop(config, tmp_path, Console(quiet=True))
        clock = StepClock(loop.model.device)
        ready = list(loop.data._loader.between(0, 2))  # type: ignore[attr-defined]
        with Waits() as waits:
            for step, rows in enumerate(ready):
                micro_batch = loop.data._complete(rows)  # type: ignore[attr-defined]
                counts = micro_batch.counts
                train_step(loop.parallel, loop.optimizer, loop.loss, [micro_batch], counts, step, config, clock)
        assert waits.seen == []


def test_what_waits_for_codes_goes_to_a_gpu_without_waiting() -> None:
    vocabulary = Vocabulary(40, 8)
    later = torch.arange(vocabulary.size, vocabulary.size + 2)[None]
    batch = Prompting(vocabulary, eot=39, max_text_len=8).t2i([[1]], later, later)
    rows = RowBatch.of(batch, Tally(), {}, [np.zeros((3, 4, 4), np.uint8)], vocabulary)
    with copies_to_gpu() as copies:
        done = rows.completed(lambda pixels: torch.tensor([[5, 6]]), None, vocabulary, torch.device("cuda"))
    assert copies == [True] * 6  # ids, targets, positions, intervals, labelled places, pixels
    assert done.batch.input_ids[0, -3:-1].tolist() == [vocabulary.image_offset + 5, vocabulary.image_offset + 6]


def write_sequences(folder: Path) -> Path:
    """Steps of two and three pictures."""
    folder.mkdir()
    lines = []
    for number in range(8):
        frames = []
        for frame in range(2 + number % 2):
            name = f"{number}-{frame}.png"
            Image.new("RGB", (32, 32), (40 * frame, 30 * number, 200)).save(folder / name)
            frames.append({"image": name, "caption": f"step {frame}"})
        lines.append(json.dumps({"id": str(number), "frames": frames}))
    (folder / "steps.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "steps.jsonl"


def write_questions(folder: Path) -> Path:
    """Conversations about no, one and two pictures."""
    folder.mkdir()
    entries: list[Any] = []
    for number in range(9):
        names = [f"{number}-{i}.png" for i in range(number % 3)]
        for name in names:
            Image.new("RGB", (32, 32), (20 * number, 0, 100)).save(folder / name)
        turns = [("human", "What is it?"), ("gpt", f"number {number}"), ("human", "Sure?"), ("gpt", "yes")]
        said = [{"from": who, "value": text} for who, text in turns]
        entries.append({"id": str(number), **({"image": names} if names else {}), "conversations": said})
    (folder / "questions.json").write_text(json.dumps(entries))
    return folder / "questions.json"


def test_steps_mix_rows_of_sequences_and_conversations(folders: Folders, tmp_path: Path) -> None:
    steps, questions = write_sequences(tmp_path / "steps"), write_questions(tmp_path / "questions")
    config = small_training(
        folders,
        "model.max_positions=400",
        *(f"{name}.batch=2" for name in ("lvg", "t2v", "v2v")),
        *(f"{name}.data=[{{layout: sequences, files: [{steps}]}}]" for name in ("lvg", "t2v", "v2v")),
        f"mmu.data=[{{layout: llava, files: [{questions}]}}, {webdataset(folders['pictures'] / 'train-*.tar')[1:]}",
        "steps=4",
    )
    loop = train(config, tmp_path / "run")
    rows = next(loop.data.between(0, 1))
    assert set(rows.batch.parts) == {"t2i", "lm", "mmu", "lvg", "t2v", "v2v"}
    _, means = loop.loss(rows, rows.counts, seeded_generator(0))
    assert all(bool(mean.isfinite()) for mean in means.values())
    for stream, wrong in (("lm", f"[{{layout: llava, files: [{questions}]}}]"), ("lvg", webdataset("x.tar"))):
        source = wrong.replace("x.tar", f"{folders['pictures']}/train-0000.tar")
        config = small_training(folders, "lvg.batch=1", f"lvg.data=[{{layout: sequences, files: [{steps}]}}]")
        config = load_config(ShowoTraining, write_yaml(tmp_path, config), [f"{stream}.data={source}"])
        with pytest.raises(
            ConfigError, match=rf"^{stream}\.data\[0\] must be a source of \w+, got .*, a source of \w+"
        ):
            train(config, tmp_path / "wrong")


def write_yaml(folder: Path, config: ShowoTraining) -> str:
    from showo.train.config import to_yaml

    (folder / "config.yaml").write_text(to_yaml(config))
    return str(folder / "config.yaml")


def test_rows_of_features_are_trained(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tower that gives the mean colour of a picture."""

    class Tower(torch.nn.Module):
        side, image_tokens, width = 28, 4, 8

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            assert pixels.dtype == torch.uint8
            return pixels.float().mean((1, 2, 3))[:, None, None].expand(-1, 4, 8) / 255

    monkeypatch.setattr(showo_training.ClipTower, "from_pretrained", lambda source: Tower())
    pictures = webdataset(folders["pictures"] / "train-*.tar")
    common = ["mmu.batch=0", "mmu_vit.batch=3", f"mmu_vit.data={pictures}", "vision_tower=folder", "steps=4"]
    fits = ["model.w_clip_vit=true", "model.clip_width=8", "model.max_positions=400"]
    loop = train(small_training(folders, *common, *fits), tmp_path / "run")
    first, last = loop.history[0], loop.history[-1]
    assert last < first
    with pytest.raises(ConfigError, match=r"model\.w_clip_vit must be true, and model\.clip_width 8, .* got False"):
        train(small_training(folders, *common, "model.max_positions=400"), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"model\.max_positions must be at least \d+ for mmu_vit, got 60"):
        train(small_training(folders, *common, *fits, "model.max_positions=60"), tmp_path / "b")
    with pytest.raises(ConfigError, match="vision_tower must be a folder or hub id"):
        small_training(folders, *common, *fits, "vision_tower=''")


def test_codes_alone_are_no_pictures() -> None:
    codes = "[{layout: codes, files: [a.parquet]}]"
    with pytest.raises(ConfigError, match=r"^held_out\[0\]\.layout must be one of pictures, got codes"):
        load_config(TokenizerTraining, "tiny-image-tokenizer", [f"held_out={codes}"])
    with pytest.raises(ConfigError, match=r"^mmu_vit\.data\[0\]\.layout must be one of pictures, got codes"):
        load_config(ShowoTraining, "tiny", ["mmu_vit.batch=1", f"mmu_vit.data={codes}", "vision_tower=x"])


def test_broken_samples_are_skipped_and_told(folders: Folders, tmp_path: Path) -> None:
    whole = Image.new("RGB", (32, 32), "red")
    files = [("good.png", encode_png(whole)), ("good.txt", b"red"), ("bad.png", b"no picture"), ("bad.txt", b"bad")]
    write_tar(tmp_path / "pictures.tar", files)
    out = io.StringIO()
    pictures = webdataset(tmp_path / "pictures.tar")
    config = small_training(folders, f"t2i.data={pictures}", "mmu.batch=0", "lm.batch=0", "validation_prompts=[]")
    loop = train_showo(config, tmp_path / "run", console=Console(file=out, width=200))
    assert loop.step == 6
    assert "t2i: samples that were skipped" in out.getvalue()
    assert "unreadable picture" in out.getvalue()
    write_tar(tmp_path / "pictures.tar", files[2:])
    with pytest.raises(DataError, match=r"samples in a row cannot be used.*; there is no checkpoint of this run yet"):
        train(config, tmp_path / "none")


def test_too_many_broken_samples_end_a_run_with_a_table(folders: Folders, tmp_path: Path) -> None:
    whole = encode_png(Image.new("RGB", (32, 32), "red"))
    files = [(f"{n}.{kind}", data) for n in range(8) for kind, data in (("png", whole if n else b""), ("txt", b"red"))]
    write_tar(tmp_path / "pictures.tar", files)
    common = [f"t2i.data={webdataset(tmp_path / 'pictures.tar')}", "t2i.batch=300", "mmu.batch=0", "lm.batch=0"]
    common += ["validation_prompts=[]", "validation_samples=1"]
    with pytest.raises(DataError, match=r"samples cannot be used, more than 5\.0%\n.*unreadable picture +\d+"):
        train(small_training(folders, *common, "broken_share=0.05"), tmp_path / "a")
    assert train(small_training(folders, *common, "broken_share=0.5", "steps=4"), tmp_path / "b").step == 4


def test_without_held_out_data_there_is_nothing_to_validate(folders: Folders, tmp_path: Path) -> None:
    out = io.StringIO()
    config = small_training(folders, "t2i.held_out=[]", "mmu.held_out=[]", "validation_prompts=[]")
    train_showo(config, tmp_path, console=Console(file=out))
    assert "validation" not in out.getvalue()


@pytest.mark.parametrize("pattern", ["{folder}/t*n-0000.tar", "{folder}/../{name}/val-0000.tar", "{folder}/link.tar"])
def test_a_file_is_not_learned_and_held_out(folders: Folders, tmp_path: Path, pattern: str) -> None:
    """Also where it has another name, or a pattern stands for it; in all trainings."""
    folder = tmp_path / "pictures"
    shutil.copytree(folders["pictures"], folder)
    (folder / "link.tar").symlink_to("train-0000.tar")
    named = webdataset(folder / "train-*.tar", folder / "val-*.tar")
    held_out = webdataset(pattern.format(folder=folder, name=folder.name))
    files = r"held_out\[0\]\.files must be other files than those of {}data, got .*\.tar"
    with pytest.raises(ConfigError, match=r"^t2i\." + files.format(r"t2i\.")):
        data(small_training(folders, f"t2i.data={named}", f"t2i.held_out={held_out}"), tmp_path)
    shutil.copy(folder / "val-0000.tar", tmp_path / "other.tar")
    apart = [f"t2i.data={named}", "t2i.held_out=[]", f"mmu.data={webdataset(tmp_path / 'other.tar')}"]
    with pytest.raises(ConfigError, match=r"^mmu\." + files.format(r"t2i\.")):
        data(small_training(folders, *apart, f"mmu.held_out={held_out}"), tmp_path)
    tokenizer = load_config(TokenizerTraining, "tiny-image-tokenizer", [f"data={named}", f"held_out={held_out}"])
    with pytest.raises(ConfigError, match="^" + files.format("")):
        tokenizer_loop(tokenizer, tmp_path, Console(quiet=True))


def test_validation_asks_the_same_of_held_out_rows_every_time(folders: Folders, tmp_path: Path) -> None:
    ratios = "objective.eval_mask_ratios=[0.25,1.0]"
    found = data(small_training(folders, ratios, "validation_samples=3", "question_share=1"), tmp_path)
    first, again = list(found.held_out()), list(found.held_out())
    assert all(same(a.batch, b.batch) for a, b in zip(first, again, strict=True))
    assert {name: sum(len(rows.drawn.get(name, ())) for rows in first) for name in ("t2i", "mmu")} == {
        "t2i": 3,
        "mmu": 3,
    }
    hidden = sum(rows.tally.masked for rows in first)
    assert hidden == 4 + 16 + 4  # of 16 codes a quarter, all, a quarter


def test_code_bits_resume_bit_for_bit_and_keep_a_trained_model(folders: Folders, tmp_path: Path) -> None:
    config = small_training(folders, "code_bits=true", "steps=6", "keep_checkpoints=3")
    whole = train(config, tmp_path / "a")
    train(config, tmp_path / "b")
    newest = checkpoints(tmp_path / "b")[-1]
    newest.rename(newest.with_name("gone"))
    again = train(config, tmp_path / "b", resume=True)
    assert again.history == whole.history[3:]
    weights = whole.model.state_dict()
    assert any("parametrizations" in name for name in weights)
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())

    start = checkpoints(tmp_path / "a")[-1]
    next_stage = ["code_bits=true", f"init_from={start}", "steps=1", "optimizer.lr=0"]
    kept = train(small_training(folders, *next_stage), tmp_path / "c")
    rows = next(kept.data.between(0, 1))
    expected, _ = whole.loss(rows, rows.counts, seeded_generator(0))
    found, _ = kept.loss(rows, rows.counts, seeded_generator(0))
    torch.testing.assert_close(found, expected)


def test_masks_are_those_of_the_objective(folders: Folders, tmp_path: Path) -> None:
    config = small_training(folders, "objective.min_masking_rate=1.0", "t2i.batch=8", "mmu.batch=0", "lm.batch=0")
    rows = next(data(config, tmp_path).between(0, 1))
    assert rows.tally.masked == rows.tally.codes == 8 * 16
    smooth = small_training(folders, "objective.label_smoothing=0.5", "mmu.batch=0", "lm.batch=0")
    plain = small_training(folders, "mmu.batch=0", "lm.batch=0")
    losses = []
    for settings in (plain, smooth):
        loop = showo_loop(settings, tmp_path, Console(quiet=True))
        rows = next(loop.data.between(0, 1))
        losses.append(float(loop.loss(rows, rows.counts, seeded_generator(0))[0].detach()))
    assert not np.isclose(*losses, rtol=1e-6)
