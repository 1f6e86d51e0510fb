"""One clear line for every mistake: exit code 2, nothing written, no traceback."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

import showo_ext
from showo import pictures
from showo.cli import main
from showo.model.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from tests.showo.command import failure, run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out.txt"], "--output out.txt: the name must end in .png"),
        (["-o", "."], "--output .: the name must end in"),
        (["-o", f"{__file__}/new/out.png"], "test_cli_mistakes.py is not a writable folder (Not a directory)"),
        (["-o", "é" * 126 + ".png"], "a name of 256 bytes; 255 fit here"),
        (["-o", "new/" + "a" * 252 + ".png"], "a name of 256 bytes; 255 fit here"),
        (["-o", "a/" * 2100 + "a.png"], "; 4032 fit here"),
        (["-o", "/dev/null/a.png"], "/dev/null is not a writable folder"),
        (["--output-dir", __file__], "test_cli_mistakes.py is a file; expected a folder"),
        (["--output-dir", "d", "-o", "./d/0.png"], "--output d/0.png is the name of a single picture"),
        (["-o", "a.webp", "--columns", "1", *"abcdefgh" * 8], "but .webp ends at 16383; choose .png"),
        (["--threads", "0"], "--threads must be 1 to "),
        (["--threads", "100000"], "--threads must be 1 to "),
        (["\udcff"], "holds bytes that are not valid in its encoding"),
        (["--steps-gif", "a.png"], "--steps-gif a.png: the name must end in .gif"),
        (["--size", "64"], "--size must be WIDTHxHEIGHT"),
        (["--size", "100000x8"], "--size must be WIDTHxHEIGHT with sides of 1 to 4096"),
        (["--size", "18x16"], "size 18x16: both sides must be positive multiples of 4"),
        (["--size", "64x64"], "needs 279 positions; this model has 128"),
        (["--schedule", "cubic"], "schedule must be cosine"),
        (
            ["--sampler", "gibbs"],
            "sampler must be confidence, linear-temperature, halton, entropy-bound[:NATS] or remask",
        ),
        (["--sampler", "remask:2"], "sampler remask: after the colon comes a probability, 0 to 1, got '2'"),
        (["--guidance-schedule", "on"], "guidance schedule must be constant, linear or off<share>"),
        (["--guidance", "-1"], "guidance must be 0 or more"),
        (["--guidance", "nan"], "guidance must be 0 or more"),
        (["--temperature", "inf"], "temperature must be 0 or more"),
        (["--device", "tpu"], "device must be cpu, cuda or cuda:N, got 'tpu'"),
        (["--device", "cuda:99"], "device cuda:99: this machine has"),
        (["--cuda-graphs"], "cuda_graphs: the device is cpu; CUDA graphs need a GPU"),
        (["--dtype", "int8"], "--dtype must be one of float32"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--revision", "v1"], "is a folder here; only the hub's have revisions"),
        (["x" * 19], "prompt 2 is too long: 19 tokens, at most 18 fit ('xxx"),
        (["--also", "x" * 19 + "=1"], "--also 1 is too long: 19 tokens, at most 18 fit ('xxx"),
        ([], "/model.safetensors is damaged"),
    ],
)
def test_generate_mistakes(
    unreadable: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = [] if "--model" in arguments else ["--model", unreadable]
    assert message in failure(capsys, "generate", "a", *model, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_describe_mistakes(
    unreadable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(*arguments: object) -> str:
        return failure(capsys, "describe", *arguments, "-m", unreadable)

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
    assert "top_p must lie in (0, 1], got 0.0" in message(whole, "--top-p", 0)
    assert "temperature must be 0 or more, got -1.0" in message(whole, "--temperature", -1)
    assert "temperature must be 0 or more, got nan" in message(whole, "--temperature", "nan")
    assert "threads must be 1 to" in message(whole, "--threads", -1)
    assert "quantization must be one of int8, got 'int3'" in message(whole, "--quantization", "int3")
    monkeypatch.delattr(ImageTokenizer, "encode")  # which may take all memory before the size is refused
    assert "positions; this model has 128" in message(whole, "--question", "x" * 200)
    assert "take 65540 positions; this model has 128" in message(whole, "--size", "1024x1024")


def test_checkpoints_that_do_not_fit(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lone = checkpoint / "showo"
    output = ["-o", tmp_path / "o.png"]
    assert "does not say which image tokenizer" in failure(capsys, "generate", "a", "-m", lone, *output)
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


def test_links_that_lead_in_a_circle(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert "lead in a circle" in failure(capsys, "generate", "a", "-m", checkpoint, "-o", tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "is no regular file" in failure(capsys, "generate", "a", "-m", checkpoint, "-o", tmp_path / "pipe.png")


def test_a_full_standard_output_is_an_error(
    checkpoint: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:  # closing it writes again
        monkeypatch.setattr(sys, "stdout", full)
        code = run("describe", picture, "-m", checkpoint, "--max-tokens", 1)
    assert code == 2
    assert capsys.readouterr().err == "showo: cannot write to standard output: No space left on device\n"


def test_a_bug_keeps_its_traceback(
    picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is not a UserError was not foreseen: also a ValueError, an OSError or an ImportError."""
    for unforeseen in (KeyError("x"), ValueError("y"), FileNotFoundError("z"), ImportError("w")):

        def fail(source: object, unforeseen: Exception = unforeseen) -> None:
            raise unforeseen

        monkeypatch.setattr(pictures, "open_image", fail)
        assert run("describe", picture) == 1
        error = capsys.readouterr().err
        assert error.startswith("Traceback")
        assert repr(unforeseen).partition("(")[0] in error
        assert error.endswith("showo: this is a bug in showo; please report it with the lines above\n")


def test_a_missing_native_module_is_said(
    picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = {**showo_ext.build_info(), "native": False, "native_error": "libstdc++ is too old"}
    monkeypatch.setattr(showo_ext, "build_info", lambda: info)
    assert "no working native module (libstdc++ is too old)" in failure(capsys, "describe", picture)


def test_traceback_on_request(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such picture"):
        main(["--traceback", "describe", str(tmp_path / "absent.png")])
