"""`showo train --dry-run` plans the training that there would be, trains nothing, and says what is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from showo.errors import ConfigError, DataError
from showo.train.config import ShowoTraining, load_config
from showo.train.dry_run import DryRun
from showo.train.dry_run_report import report
from showo.train.plan.flops import Rows
from showo.train.showo import showo_loop
from tests.showo.command import failure, run
from tests.train.conftest import small_training
from tests.train.test_inspect import write_sequences, yaml_of
from tests.train.test_showo_data import write_codes

Folders = dict[str, Path]
ALONE = ("mmu.batch=0", "lm.batch=0")  # beside t2i


def rows(plan: DryRun) -> Rows:
    return sum(plan.rows, Rows())


def text(plan: DryRun) -> str:
    return "\n\n".join(report(plan))


def test_what_is_printed_and_what_is_not_done(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = write_sequences(tmp_path)
    config = small_training(folders, "lvg.batch=2", f"lvg.data={steps}", "steps=40", "encode_first=0")
    arguments = ["--dry-run", "--config", yaml_of(config, tmp_path), "--run", tmp_path / "run"]
    assert run("train", *arguments) == 0
    assert not (tmp_path / "run").exists()
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    (drawn,) = (line for line in lines if line[:2] == ["t2i", "webdataset"])
    assert drawn[3:] == ["16", "100.0%", "160", "10.00"]  # 4 rows in each of 40 steps, of 16 pictures
    (sequences,) = (line for line in lines if line[:2] == ["lvg", "sequences"])
    assert sequences[3:] == ["8", "100.0%", "80", "10.00"]
    model = showo_loop(config, tmp_path / "run", Console(quiet=True)).model
    count = f"{sum(parameter.numel() for parameter in model.parameters()):,}"
    assert f"parameters: {count}, of which {count} learn" in printed
    assert "image tokenizer, 11 pictures" in printed  # 4 of t2i, 3 of mmu, 2 times 2 of lvg
    for name in config.streams:
        assert f"{name}: the first row, of " in printed
    assert "not here" not in printed
    assert "together with recompute=none, which this training has" in printed


def test_tokens_are_those_of_the_steps(folders: Folders, tmp_path: Path) -> None:
    """A mean over the rows of an epoch is what its steps have."""
    config = small_training(folders, *ALONE, "t2i.batch=4", "steps=4")
    planned = rows(DryRun(config))
    done = list(showo_loop(config, tmp_path, Console(quiet=True)).data.between(0, 4))
    assert planned.places == sum(batch.tally.tokens for batch in done) / 4
    assert planned.padding == sum(batch.tally.padding for batch in done) / 4
    assert planned.targets == sum(len(batch.batch.labelled) for batch in done) / 4
    assert planned.pairs == sum(int(batch.batch.mask.columns_per_row().sum()) for batch in done) / 4


def test_pictures_that_have_codes_are_not_encoded(folders: Folders, tmp_path: Path) -> None:
    assert rows(DryRun(small_training(folders, *ALONE, "encode_first=0"))).encoded == 4
    assert rows(DryRun(small_training(folders, *ALONE, "encode_first=15"))).encoded == 4
    assert rows(DryRun(small_training(folders, *ALONE, "encode_first=16"))).encoded == 0
    codes = write_codes(tmp_path / "codes", f"{folders['pictures']}/train-*.tar", folders["image_tokenizer"])
    more = ("encode_first=0", f"t2i.data={codes}", "t2i.held_out=[]")
    assert rows(DryRun(small_training(folders, *ALONE, *more))).encoded == 0
    with pytest.raises(DataError, match="its codes are of"):
        DryRun(
            small_training(
                folders,
                *ALONE,
                *more,
                "image_tokenizer=bundled:tiny/image_tokenizer",
                "resolution=32",
                "model.codebook_size=8192",
            )
        )


def test_absent_data_are_named_and_planned_for(folders: Folders) -> None:
    """Of a stream with a source that is not there, rows are taken to be full; others are what they are."""
    there = f"{{layout: webdataset, files: [{folders['pictures']}/train-*.tar]}}"
    gone = "{layout: webdataset, files: [/none/{0..9}.tar], weight: 3}"
    plan = DryRun(small_training(folders, f"t2i.data=[{there}, {gone}]", "encode_first=0"))
    printed = text(plan)
    assert "t2i: data: no file matches '/none/0.tar', which '/none/{0..9}.tar' stands for" in printed
    t2i, lm, mmu = plan.streams
    assert [source.samples for source in t2i.data] == [16, None]
    assert (t2i.looked_at, t2i.drawn) == (0, "")
    places = t2i.row.text, t2i.row.image, t2i.row.padding, t2i.row.encoded
    assert places == (21 + 2, 16, 0, 1)  # a task mark and 20 places of text, soi, eoi
    assert 0.5 < (t2i.row.targets - 2) / 16 < 0.75  # of the codes, 2 / pi are hidden
    assert lm.looked_at == 64
    assert mmu.looked_at == 16
    assert mmu.drawn


def test_full_rows_are_the_longest_of_each_format(folders: Folders) -> None:
    """Nothing is here but the configuration, of mixed modality and with a vision tower."""
    plan = DryRun(load_config(ShowoTraining, "mixed"))
    assert [line.partition(":")[0] for line in plan.missing] == ["text_tokenizer", "image_tokenizer", "init_from"]
    rows = {stream.name: stream.row for stream in plan.streams}
    assert {name: row.places for name, row in rows.items()} == {
        "t2i": 129 + 258,
        "lm": 129 + 258,
        "mmu": 259 + 381,
        "lvg": 1 + 5 * (128 + 258),
    }
    assert (rows["lvg"].encoded, rows["lvg"].image) == (5, 5 * 256)
    assert rows["lvg"].targets < 5 * (127 + 2) + 256 + 5  # only the last picture is hidden, but for a code of each
    videos = [each for name in ("t2v", "v2v") for each in (f"{name}.batch=1", f"{name}.data=${{lvg.data}}")]
    t2v, v2v = DryRun(load_config(ShowoTraining, "mixed", [*videos, "lvg.batch=0"])).streams[-2:]
    assert (t2v.row.places, t2v.row.encoded) == (129 + 7 * 256 + 2, 7)  # as many frames as 2048 places hold
    assert (v2v.row.places, v2v.row.encoded) == (1 + 258 + 128 + 6 * 256 + 2, 7)
    clip = DryRun(load_config(ShowoTraining, "tuning2-clip-vit"))
    (seen,) = (stream.row for stream in clip.streams if stream.name == "mmu_vit")
    assert (seen.places, seen.features, seen.seen, seen.encoded) == (3 + 28 + 576 + 228, 576, 1, 0)
    printed = text(clip)
    assert "vision tower, 192 pictures, not counted" in printed
    assert "image tokenizer, 144 pictures " in printed  # taken to be the published one
    assert "parameters: 1,454,472,322, of which 1,454,472,322 learn" in printed
    with pytest.raises(ConfigError, match="vision_tower: /none is not here, and says how long rows of mmu_vit are"):
        DryRun(load_config(ShowoTraining, "tuning2-clip-vit", ["vision_tower=/none"]))


def test_a_vision_tower_that_is_here_says_how_long_rows_are(folders: Folders, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(**sizes, image_size=28, patch_size=7)
    transformers.CLIPVisionModel(config).save_pretrained(tmp_path)
    data = f"[{{layout: webdataset, files: [{folders['pictures']}/train-*.tar]}}]"
    rows = ["mmu.batch=0", "mmu_vit.batch=3", f"mmu_vit.data={data}", f"vision_tower={tmp_path}"]
    plan = DryRun(small_training(folders, *rows, "model.w_clip_vit=true", "model.clip_width=24", "encode_first=100"))
    (seen,) = (stream for stream in plan.streams if stream.name == "mmu_vit")
    assert (seen.row.features, seen.row.seen, seen.row.encoded, seen.row.image) == (16, 1, 0, 16)
    assert "16 features" in seen.drawn
    _, flops = plan.picture_flops()
    width, places = 24, 17  # the features and the class
    layer = 4 * width * width + 2 * width * 32 + 2 * places * width  # a place's: projections, MLP, scores and sum
    assert flops == 2 * (2 * places * layer + 16 * 3 * 7 * 7 * width)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run", "t2i.data=[{layout: webdataset, files: [damaged.tar]}]"], "damaged.tar"),
        (["--dry-run", "frozen=[none.*]"], "frozen: no parameter's name matches 'none.*'"),
        (["--dry-run", "model.num_vq_tokens=25"], "model.num_vq_tokens must be 64"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    """What is there and wrong is no plan."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.tar").write_bytes(b"no tar" * 1000)
    assert message in failure(capsys, "train", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.tar"]


def test_adapters_alone_learn(folders: Folders) -> None:
    pytest.importorskip("peft")
    (line,) = (
        line
        for line in text(DryRun(small_training(folders, "lora.rank=2", "init_from=/none"))).splitlines()
        if line.startswith("parameters: ")
    )
    assert line.endswith(f", of which {2 * 2 * (4 * (32 + 32) + 2 * (32 + 64)):,} learn")
