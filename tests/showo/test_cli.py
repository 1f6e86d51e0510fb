"""The command line: pictures and texts from a small random checkpoint, and one clear line for every mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from showo.cli import main
from showo.config import ShowoConfig
from showo.engine.pipeline import ShowoPipeline
from showo.model.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from showo.model.transformer import Showo
from showo.tokens import END_OF_TEXT, TextTokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: 16x16 pictures of 4x4 codes, bytes as text."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    text = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text.decoder = decoders.ByteLevel()
    text.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    TextTokenizer(text).save(folder / "showo")
    config = ShowoConfig(
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        text_vocab_size=257,
        codebook_size=64,
        num_vq_tokens=16,
        max_text_len=20,
        max_positions=128,
    )
    model = Showo(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
    model.save_pretrained(folder / "showo", dtype=torch.float16)
    sizes = ImageTokenizerConfig(
        bits=6,
        channels=8,
        encoder_multipliers=(1, 1, 1),
        encoder_blocks=(1, 1, 1),
        decoder_multipliers=(1, 1, 1),
        decoder_blocks=(1, 1, 1),
        norm_groups=4,
    )
    ImageTokenizer(sizes).save_pretrained(folder / "image_tokenizer")
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.effect_noise((40, 30), 80).convert("RGB").save(path)
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of an error."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("showo: ")
    return captured.err


def test_generate_writes_a_sheet_and_an_animation(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, film = tmp_path / "new" / "out.png", tmp_path / "film.gif"
    options = ["-m", checkpoint, "--steps", 4, "--batch", 2, "--columns", 2]
    assert run("generate", "red", "blue", "", *options, "-o", sheet, "--steps-gif", film) == 0
    assert capsys.readouterr().out.split() == [str(sheet), str(film)]
    with Image.open(sheet) as image:
        assert image.mode == "RGB"
        assert image.width >= 2 * 16 * 16  # enlarged
    with Image.open(film) as image:
        assert image.n_frames >= 3  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["film.gif", "out.png"]
    first = sheet.read_bytes()
    assert run("generate", "red", "blue", "", *options, "--batch", 3, "-o", sheet) == 0
    assert sheet.read_bytes() == first  # whatever the batch
    assert run("generate", "red", "blue", "", *options, "--seed", 1, "-o", sheet) == 0
    assert sheet.read_bytes() != first


def test_other_sizes(checkpoint: Path, tmp_path: Path) -> None:
    pipe = ShowoPipeline.from_pretrained(checkpoint)
    assert pipe.generate(["a"], size=(24, 16), steps=2)[0].size == (24, 16)
    assert run("generate", "a", "-m", checkpoint, "--steps", 2, "--size", "24x16", "-o", tmp_path / "o.png") == 0


def test_describe(checkpoint: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("describe", picture, "-m", checkpoint, "--max-tokens", 5) == 0
    caption = capsys.readouterr().out
    assert run("describe", picture, picture, "-m", checkpoint, "--max-tokens", 5) == 0
    both = capsys.readouterr().out
    assert both == f"{picture}: {caption}" * 2
    question = ["--question", "What?", "--temperature", 0.7, "--top-k", 9, "--top-p", 0.9]
    assert run("describe", picture, "-m", checkpoint, "--max-tokens", 5, *question) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_long_prompts_are_cut_with_a_warning_in_python(checkpoint: Path) -> None:
    pipe = ShowoPipeline.from_pretrained(checkpoint)
    with pytest.warns(UserWarning, match="prompt cut after 18 of 30 tokens: 'aaa"):
        pictures = pipe.generate(["a" * 30], steps=2)
    with pytest.warns(UserWarning, match="prompt cut"):
        assert pipe.generate(["a" * 31], steps=2)[0].tobytes() == pictures[0].tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out.txt"], "--output out.txt: the name must end in .png"),
        (["-o", "."], "--output .: the name must end in"),
        (["-o", f"{__file__}/new/out.png"], "test_cli.py is not a writable folder"),
        (["--steps-gif", "a.png"], "--steps-gif a.png: the name must end in .gif"),
        (["--size", "64"], "--size must be WIDTHxHEIGHT"),
        (["--size", "100000x8"], "--size must be WIDTHxHEIGHT with sides of 1 to 4096"),
        (["--size", "18x16"], "size 18x16: both sides must be positive multiples of 4"),
        (["--size", "64x64"], "needs 279 positions; this model has 128"),
        (["--schedule", "cubic"], "schedule must be cosine"),
        (["--guidance", "-1"], "guidance must be 0 or more"),
        (["--guidance", "nan"], "guidance must be 0 or more"),
        (["--temperature", "inf"], "temperature must be 0 or more"),
        (["--device", "tpu"], "--device must be cpu"),
        (["--device", "cuda:99"], "--device cuda:99: this machine has"),
        (["--dtype", "int8"], "--dtype must be one of float32"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["x" * 19], "prompt 2 is too long: 19 tokens, at most 18 fit ('xxx"),
    ],
)
def test_generate_mistakes(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = [] if "--model" in arguments else ["--model", checkpoint]
    assert message in failure(capsys, "generate", "a", *model, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_describe_mistakes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(*arguments: object) -> str:
        return failure(capsys, "describe", *arguments, "-m", checkpoint)

    assert "absent.png: no such picture" in message(tmp_path / "absent.png")
    assert "no such picture" in message(tmp_path)
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    assert "text.png: not a readable picture" in message(text)
    bomb = tmp_path / "bomb.png"
    Image.new("1", (12000, 12000)).save(bomb)
    assert "12000x12000 pixels, more than" in message(bomb)
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 80).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:300])
    assert "cut.png: not a readable picture" in message(cut)
    assert "--top-p must lie in" in message(whole, "--top-p", 0)
    assert "positions; this model has 128" in message(whole, "--question", "x" * 200)


def test_thin_pictures_are_no_bombs(checkpoint: Path, tmp_path: Path) -> None:
    thin = tmp_path / "thin.png"
    Image.new("RGB", (60000, 1), "red").save(thin)
    assert run("describe", thin, "-m", checkpoint, "--max-tokens", 1) == 0


def test_checkpoints_that_do_not_fit(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lone = checkpoint / "showo"
    assert "does not say which image tokenizer" in failure(capsys, "generate", "a", "-m", lone, "-o", tmp_path / "o.png")
    options = ["--image-tokenizer", checkpoint / "image_tokenizer", "-o", tmp_path / "o.png", "--steps", 1]
    assert run("generate", "a", "-m", lone, *options) == 0
    capsys.readouterr()
    assert "no tokenizer at" in failure(capsys, "generate", "a", "-m", lone, *options, "--text-tokenizer", "/none")
    other = ImageTokenizerConfig(
        bits=7,
        channels=4,
        encoder_multipliers=(1,),
        encoder_blocks=(1,),
        decoder_multipliers=(1,),
        decoder_blocks=(1,),
        norm_groups=4,
    )
    ImageTokenizer(other).save_pretrained(tmp_path / "other")
    options[1] = tmp_path / "other"
    assert "has 128 codes, the model 64" in failure(capsys, "generate", "a", "-m", lone, *options)


@pytest.mark.parametrize(
    "arguments", [["generate"], ["paint"], ["generate", "a", "--steps", "0"], ["generate", "a", "--seed", "x"]]
)
def test_usage_mistakes(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_traceback_on_request(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such picture"):
        main(["--traceback", "describe", str(tmp_path / "absent.png")])


def test_interrupted_generation_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    assert run("generate", "a", "-m", checkpoint, "--steps", 1, "-o", tmp_path / "o.png") == 130
    assert list(tmp_path.iterdir()) == []


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    out = capsys.readouterr().out
    for word in ("torch", "CUDA kernels", "omni_attention", "resample", "native"):
        assert word in out


def fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter that finds the package where this one does."""
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=paths)


def test_help_is_quick_and_loads_no_torch() -> None:
    code = """
import sys, showo.cli
try:
    showo.cli.main(["generate", "--help"])
except SystemExit:
    assert "torch" not in sys.modules
"""
    result = fresh("-c", code)
    assert result.returncode == 0, result.stderr
    assert "--steps-gif" in result.stdout


def test_loading_does_not_import_the_compiler(checkpoint: Path) -> None:
    """It takes longer than a picture does."""
    code = f"""
import sys
from showo.engine.pipeline import ShowoPipeline
ShowoPipeline.from_pretrained({str(checkpoint)!r}).generate(["a"], steps=2)
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules
"""
    result = fresh("-c", code)
    assert result.returncode == 0, result.stderr


def test_module_runs() -> None:
    result = fresh("-m", "showo", "--help")
    assert result.returncode == 0
    assert "describe" in result.stdout
