"""The command line: pictures and texts from a small random checkpoint."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from showo.engine.pipeline import ShowoPipeline
from showo.model.image_tokenizer import ImageTokenizer
from showo.model.transformer import Showo
from tests.showo.command import failure, run


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
    for other in (["--sampler", "halton"], ["--guidance-schedule", "linear"]):
        assert run("generate", "red", "blue", "", *options, *other, "-o", sheet) == 0
        assert sheet.read_bytes() != first
    assert run("generate", "red", "blue", "", *options, "--seed", 1, "-o", sheet) == 0
    assert sheet.read_bytes() != first


def test_single_pictures_are_what_the_pipeline_gives(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = ShowoPipeline.from_pretrained(checkpoint).generate(["red", "blue"], steps=3)
    options = ["-m", checkpoint, "--steps", 3, "--output-dir", "single"]
    assert run("generate", "red", "blue", *options) == 0
    files = [Path("single") / f"{number}.png" for number in (0, 1)]
    assert capsys.readouterr().out.split() == [str(file) for file in files]  # no sheet, unless one is asked for
    assert run("generate", "red", "blue", *options, "-o", "sheet.png") == 0
    assert capsys.readouterr().out.split() == [*map(str, files), "sheet.png"]
    for file, picture in zip(files, expected):
        with Image.open(file) as found:
            assert found.size == (16, 16)
            assert found.tobytes() == picture.tobytes()
    assert run("describe", *files, "-m", checkpoint, "--max-tokens", 3) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [str(file) for file in files]


@pytest.mark.parametrize("there", [True, False])
def test_output_follows_a_symbolic_link(checkpoint: Path, tmp_path: Path, there: bool) -> None:
    target, link = tmp_path / "pictures" / "target.png", tmp_path / "link.png"
    target.parent.mkdir()
    link.symlink_to("pictures/target.png")
    if there:
        target.write_bytes(b"old")
    assert run("generate", "a", "-m", checkpoint, "--steps", 1, "-o", link) == 0
    assert link.is_symlink()
    with Image.open(target) as image:
        assert image.size[0] > 16
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link.png", "pictures", "target.png"]


def test_the_longest_name_is_written(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / ("é" * 125 + "a.png")  # 255 bytes
    assert run("generate", "a", "-m", checkpoint, "--steps", 1, "-o", path) == 0
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_characters_that_standard_output_lacks_are_spelled(
    checkpoint: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accented = picture.with_name("é\udcff.png")  # and a byte that is no UTF-8
    picture.rename(accented)
    plain = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", plain)
    assert run("describe", accented, accented, "-m", checkpoint, "--max-tokens", 1) == 0
    assert plain.buffer.getvalue().count(rb"\xe9\udcff.png: ") == 2  # type: ignore[attr-defined]


def test_captions_without_a_font_are_numbered_with_a_word(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "a", "\ue000", "-m", checkpoint, "--steps", 1, "-o", tmp_path / "o.png") == 0
    assert capsys.readouterr().err == (
        "showo: warning: no font here has all characters of the captions of pictures 1 (counted from 0); "
        "the sheet shows their numbers instead\n"
    )


def test_nan_in_the_decoder_is_no_black_picture(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, tmp_path / "broken")
    tokenizer = ImageTokenizer.from_pretrained(checkpoint / "image_tokenizer")
    torch.nn.init.constant_(tokenizer.decoder.conv_out.bias, torch.nan)
    tokenizer.save_pretrained(tmp_path / "broken" / "image_tokenizer")
    options = ["-m", tmp_path / "broken", "--steps", 1, "-o", tmp_path / "o.png"]
    assert "a picture came out as NaN" in failure(capsys, "generate", "a", *options)
    assert not (tmp_path / "o.png").exists()


def test_nan_in_the_transformer_is_no_arbitrary_answer(
    checkpoint: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, tmp_path / "broken")
    model = Showo.from_pretrained(checkpoint / "showo")
    torch.nn.init.constant_(model.showo.model.final_layernorm.bias, torch.nan)
    model.save_pretrained(tmp_path / "broken" / "showo")
    options = ["-m", tmp_path / "broken"]
    output = ["--steps", 1, "-o", tmp_path / "o.png"]
    assert "the logits are NaN or infinite" in failure(capsys, "generate", "a", *options, *output)
    assert "the logits are NaN or infinite" in failure(capsys, "describe", picture, *options)


def test_pictures_given_in_python_are_turned_and_laid_on_white(checkpoint: Path, tmp_path: Path) -> None:
    pipe = ShowoPipeline.from_pretrained(checkpoint)
    upright = Image.effect_noise((16, 16), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    upright.rotate(90).save(tmp_path / "turned.png", exif=exif)
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    with Image.open(tmp_path / "turned.png") as turned:
        given = pipe.encode([turned, clear], (4, 4))
    assert torch.equal(given, pipe.encode([upright, Image.new("RGB", (16, 16), "white")], (4, 4)))


@pytest.mark.parametrize("command", ["generate", "describe"])
def test_threads(checkpoint: Path, picture: Path, tmp_path: Path, command: str) -> None:
    before = torch.get_num_threads()
    try:
        what = ["a", "--steps", 1, "-o", tmp_path / "o.png"] if command == "generate" else [picture, "--max-tokens", 1]
        assert run(command, *what, "-m", checkpoint, "--threads", 3) == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


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
    assert run("describe", picture, "-m", checkpoint, "--max-tokens", 5, "--quantization", "int8") == 0
    assert capsys.readouterr().out.endswith("\n")
    question = ["--question", "What?", "--temperature", 0.7, "--top-k", 9, "--top-p", 0.9]
    assert run("describe", picture, "-m", checkpoint, "--max-tokens", 5, *question) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_long_prompts_are_cut_with_a_warning_in_python(checkpoint: Path) -> None:
    pipe = ShowoPipeline.from_pretrained(checkpoint)
    with pytest.warns(UserWarning, match="prompt cut after 18 of 30 tokens: 'aaa"):
        pictures = pipe.generate(["a" * 30], steps=2)
    with pytest.warns(UserWarning, match="prompt cut"):
        assert pipe.generate(["a" * 31], steps=2)[0].tobytes() == pictures[0].tobytes()


def test_thin_pictures_are_no_bombs(checkpoint: Path, tmp_path: Path) -> None:
    thin = tmp_path / "thin.png"
    Image.new("RGB", (60000, 1), "red").save(thin)
    assert run("describe", thin, "-m", checkpoint, "--max-tokens", 1) == 0


def test_interrupted_generation_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    assert run("generate", "a", "-m", checkpoint, "--steps", 1, "-o", tmp_path / "o.png") == 130
    assert list(tmp_path.iterdir()) == []


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        assert run("doctor", "--threads", 3) == 0
    finally:
        torch.set_num_threads(before)
    out = capsys.readouterr().out
    assert ", 3 threads" in out
    for word in ("torch", "CUDA kernels", "omni_attention", "resample", "native"):
        assert word in out


def fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter that finds the package where this one does."""
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=paths)


def imported(*arguments: str) -> set[str]:
    """The modules that a new interpreter has imported when it has run this command."""
    code = f"""
import sys, showo.cli
try:
    showo.cli.main({list(arguments)!r})
except SystemExit as stop:
    assert not stop.code, stop.code
print("imported:", *sys.modules)
"""
    result = fresh("-c", code)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.partition("imported: ")[2].split())


# Packages that other parts of this project need. Most take longer to import than a picture takes.
ELSEWHERE = {
    *("datasets", "fastapi", "gradio", "httpx", "huggingface_hub", "matplotlib", "omegaconf", "openai", "pandas"),
    *("peft", "prometheus_client", "pyarrow", "scipy", "sklearn", "starlette", "tensorboard", "torchao"),
    *("torchvision", "transformers", "uvicorn", "wandb"),
}


def test_help_imports_no_torch() -> None:
    for command in ((), ("generate",)):
        assert not imported(*command, "--help") & {"torch", "numpy", "PIL", *ELSEWHERE}


def test_generate_imports_what_it_needs(checkpoint: Path, tmp_path: Path) -> None:
    """The compiler, for one, takes longer than a picture does; rich is for a bar, which is on terminals only."""
    names = imported("generate", "a", "-m", str(checkpoint), "--steps", "2", "-o", str(tmp_path / "a.png"))
    assert "showo.engine.pipeline" in names
    own = {"showo.train.config", "showo.train.loop", "showo.serve", "showo.evaluate", "showo.data", "showo.demo"}
    assert not names & {"torch._dynamo", "torch._inductor", "sympy", "rich", *own, *ELSEWHERE}


def test_torch_is_imported_while_the_collector_of_garbage_rests() -> None:
    code = """
import gc
from showo.commands import common
rounds = []
gc.callbacks.append(lambda phase, info: rounds.append(phase))
common.load_torch()
assert not rounds and gc.isenabled()
frozen = gc.get_freeze_count()
assert frozen > 100_000, frozen
class Node: pass
node = Node()
node.itself = node
del node
common.load_torch()
assert gc.get_freeze_count() == frozen  # what a command makes is collected as ever
assert gc.collect() > 0
"""
    result = fresh("-c", code)
    assert result.returncode == 0, result.stderr


def test_threads_that_wait_do_not_spin_for_long(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libgomp says what it has read when torch loads it."""
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    command = ("-m", "showo", "generate", "a", "-m", str(checkpoint), "--steps", "1", "-o", str(tmp_path / "a.png"))
    said = fresh(*command).stderr
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("torch is built with another OpenMP library")
    assert "GOMP_SPINCOUNT = '2000'" in said
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert "GOMP_SPINCOUNT = '7'" in fresh(*command).stderr


def test_module_runs() -> None:
    result = fresh("-m", "showo", "--help")
    assert result.returncode == 0
    assert "describe" in result.stdout
