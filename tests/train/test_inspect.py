"""`showo inspect` shows the rows that training will have, and counts what they hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from showo.data.draw_row import draw_row
from showo.data.make_assets import encode_png
from showo.data.streams import STREAMS
from showo.data.tar import write_tar
from showo.model.image_tokenizer import ImageTokenizer
from showo.tokens import TextTokenizer
from showo.train.config import ShowoTraining, to_yaml
from showo.train.showo import showo_loop
from tests.showo.command import failure, run
from tests.showo.data.layouts import write_table
from tests.train.conftest import COLOURS, small_training
from tests.train.test_showo_data import write_codes

Folders = dict[str, Path]


def write_sequences(folder: Path) -> str:
    """A list of one source: sequences of two pictures."""
    lines = []
    for number, colour in enumerate(COLOURS):
        (folder / f"{colour}.png").write_bytes(encode_png(Image.new("RGB", (32, 32), colour)))
        frames = [{"image": f"{colour}.png", "caption": f"{colour} {word}"} for word in ("square", "circle")]
        lines.append(json.dumps({"id": str(number), "frames": frames}))
    (folder / "steps.jsonl").write_text("\n".join(lines))
    return f"[{{layout: sequences, files: [{folder}/steps.jsonl]}}]"


def yaml_of(config: ShowoTraining, folder: Path) -> Path:
    path = folder / "training.yaml"
    path.write_text(to_yaml(config))
    return path


def lines_of(printed: str, stream: str) -> list[list[str]]:
    """The cells of the table's lines about a stream."""
    return [line.split() for line in printed.splitlines() if line.startswith(f"{stream} ")]


def test_rows_are_those_of_training(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every format the first row of the first step, with the codes that the image tokenizer draws for pictures."""
    steps = write_sequences(tmp_path)
    videos = [each for name in ("lvg", "t2v", "v2v") for each in (f"{name}.batch=2", f"{name}.data={steps}")]
    config = small_training(folders, *videos, "question_share=0.5")
    path, sheet = yaml_of(config, tmp_path), tmp_path / "sheet.png"
    assert run("inspect", "--config", path, "-o", sheet, "--pictures", 3, "--columns", 4) == 0
    printed = capsys.readouterr().out
    texts = TextTokenizer.from_file(folders["text"])
    with torch.no_grad():
        rows = next(showo_loop(config, tmp_path / "run", Console(quiet=True)).data.between(0, 1))
    first_rows = [section for section in printed.split("\n\n") if "the first row" in section]
    sections = dict(section.split(": the first row, of ", 1) for section in first_rows)
    assert sections.keys() == {"t2i", "lm", "mmu", "lvg", "t2v", "v2v"}
    step = draw_row(rows.batch, texts, config.model.vocabulary)
    for name, section in sections.items():
        heading, _, *table = section.splitlines()
        assert heading.endswith(f" in {config.streams[name].data[0].describe()}")
        for place in table:
            assert place.split() in [line.split() for line in step.splitlines()], (name, place)
    assert f"{sheet}: 24 pictures" in printed  # 3 of t2i and of mmu each, in three formats 2 of each of 3 sequences
    with Image.open(sheet) as drawn:
        assert drawn.width > 4 * 32


def test_lengths_and_what_is_too_long(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted by hand: all captions are looked at, and some do not fit."""
    texts = TextTokenizer.from_file(folders["text"])
    captions = [f"{colour} {shape}" for shape in ("circle", "square") for colour in COLOURS]
    places = sorted(len(texts.encode(caption)) + 3 for caption in captions)  # task mark, begin, end
    room = places[len(places) // 2]
    more = f"model.max_text_len={room - 1}"
    path = yaml_of(small_training(folders, more, "lm.batch=0", "question_share=0"), tmp_path)
    assert run("inspect", "--config", path, "-o", tmp_path / "sheet.png") == 0
    printed = capsys.readouterr().out
    longer = sum(count > room for count in places)
    assert longer > 0
    share = f"({longer / 16:.1%})"
    ends = [str(places[0]), str(places[7]), str(places[-1]), str(places[-1]), str(room), str(longer), share]
    drawn, held_out = lines_of(printed, "t2i")
    assert drawn[3:] == ["16", "100.0%", "16", *ends]
    assert held_out[1:3] + held_out[5:] == ["held", "out", "4", "100.0%"]
    answers = sorted(count - 1 for count in places)  # no task mark
    longer = sum(count > room - 1 for count in answers)
    assert lines_of(printed, "mmu")[0][-3:] == [str(room - 1), str(longer), f"({longer / 16:.1%})"]


def test_data_by_themselves(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In all formats that they fit, in the sizes of a configuration; its own data are left out."""
    write_sequences(tmp_path)
    data = [f"{folders['pictures']}/train-*.tar", tmp_path / "steps.jsonl"]
    assert run("inspect", *data, "-o", tmp_path / "sheet.png", "--pictures", 2) == 0
    printed = capsys.readouterr().out
    assert [line[0] for name in STREAMS for line in lines_of(printed, name)] == [
        *("t2i", "mmu", "lvg", "t2v", "v2v"),
    ]
    path = yaml_of(small_training(folders), tmp_path)
    assert run("inspect", data[0], "--config", path, "model.max_text_len=21", "-o", tmp_path / "sheet.png") == 0
    assert lines_of(capsys.readouterr().out, "t2i")[0][-3:-2] == ["22"]


def test_codes_are_drawn_by_the_image_tokenizer(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, tokenizer = f"{folders['pictures']}/train-*.tar", folders["image_tokenizer"]
    codes = write_codes(tmp_path / "codes", pictures, tokenizer)
    path = yaml_of(small_training(folders, f"t2i.data={codes}", "t2i.held_out=[]", "mmu.batch=0"), tmp_path)
    assert run("inspect", "--config", path, "-o", tmp_path / "sheet.png") == 0
    assert "sheet.png: 16 pictures" in capsys.readouterr().out
    images = ImageTokenizer.from_pretrained(tokenizer)
    images.encoder.conv_in.weight.data.add_(1)
    images.save_pretrained(tmp_path / "other")
    wrong = ["--config", path, f"image_tokenizer={tmp_path / 'other'}", "-o", tmp_path / "sheet.png"]
    assert run("inspect", *wrong) == 2
    assert "its codes are of" in capsys.readouterr().err


def test_broken_samples_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = encode_png(Image.new("RGB", (8, 8), "red"))
    pairs = [(f"{n}.png", good if n % 4 else b"no picture") for n in range(8)]
    write_tar(tmp_path / "a.tar", [each for n, pair in enumerate(pairs) for each in (pair, (f"{n}.txt", b"red"))])
    assert run("inspect", tmp_path / "a.tar", "-o", tmp_path / "sheet.png") == 0
    assert "unreadable picture" in capsys.readouterr().out.partition("samples that were skipped:")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to inspect: give files or folders of data, or a training by --config"),
        (["--layout", "llava", "--config", "tiny"], "describe DATA, and none is given"),
        (["none.tar"], "data: no file matches 'none.tar'"),
        (["--config", "none"], "'none' is neither a YAML file nor one of"),
        (["--config", "stage1"], "no folder 'microsoft/phi-1_5' here; as a hub id it is not in the cache"),
        (["--config", "tiny", "t2i.bach=3"], "t2i.bach"),
        (
            ["--config", "tiny-stage1", "data_root=nowhere", "text_tokenizer=bundled:tiny/showo"],
            "no file matches 'nowhere/",
        ),
        (["folder"], "folder: a folder of classes; --class-names FILE, of lines such as"),
        (["text.parquet", "--layout", "webdatset"], "data.layout must be one of webdataset, "),
        (["text.parquet", "--layout", "codes"], "text.parquet: no shard of codes"),
        (["text.parquet", "--class-names", "a"], "--class-names is for imagenet, and DATA are parquet_text"),
        (
            ["text.parquet", "--images", "a"],
            "--images is for llava or llava_captions or sequences, and DATA are parquet_text",
        ),
        (["text.parquet", "-o", "sheet.txt"], "--output sheet.txt: the name must end in .png"),
        (["text.parquet", "model.num_vq_tokens=63"], "model.num_vq_tokens must be a square, got 63"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "text.parquet", {"text": ["a text"]})
    (tmp_path / "folder" / "n1").mkdir(parents=True)
    (tmp_path / "folder" / "n1" / "a.png").write_bytes(b"")
    assert message in failure(capsys, "inspect", *arguments)
    assert not list(tmp_path.glob("*.png"))
