"""`showo train` with what cannot be: one line that names it, exit code 2, and no checkpoint."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from showo.train.checkpoint import checkpoints
from tests.showo.command import failure, run
from tests.train.conftest import webdataset

LONG = "a" * 300  # longer than any file's name may be


def few(pictures: Path) -> list[str]:
    """Overrides for a few small pictures."""
    parts = {"data": "train", "held_out": "val"}
    return [f"{s}.{key}={webdataset(pictures / f'{p}-*.tar')}" for s in ("t2i", "mmu") for key, p in parts.items()]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr", "'lr': expected key=value"),
        ("=5", "'=5': expected key=value"),
        ("t2i=[", "t2i=[: not to be read as YAML"),
        ("t2i={batch: 1", "t2i={batch: 1: not to be read as YAML"),
        ("questions={a: 1}", "questions={a: 1}: "),
        ("t2i.data[0]=3", "t2i.data[0]=3: "),
        ("lm.data=[bundled:text/train-*.tar]", "lm.data=[bundled:text/train-*.tar]: "),
        ("lm.data=[{layout: zip, files: [a]}]", "zip"),
        ("init_from=\udcff", "init_from=\\udcff: not to be read as YAML"),
        ("optimizer.betas=[a,b]", "optimizer.betas=[a,b]: "),
        ("questions=[a,[b]]", "questions must be a list of texts, got ['a', ['b']]"),
        ("steps=${steps}", "Recursive interpolation"),
        ("device=tpu", "device must be cpu, cuda or cuda:N, got 'tpu'"),
        ("device=cuda:99", "device cuda:99: this machine has"),
        ("model.intermediate_size=100000000000", "its weights and their gradients do not fit"),
        ("model.num_layers=1000000000", "num_layers must be at most 1000"),
        (f"lm.data=[{{layout: tar_text, files: [{LONG}]}}]", "no file matches 'aaa"),
        (f"init_from={LONG}", "no checkpoint folder at aaa"),
        (f"text_tokenizer={LONG}", "no tokenizer at aaa"),
        ("image_tokenizer=/none", "no checkpoint folder at /none"),
        ("text_tokenizer=/none", "no tokenizer at /none"),
    ],
)
def test_overrides(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert message in failure(capsys, "train", "--run", tmp_path, *few(pictures), override)
    assert not checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"steps: 1\nsteps: 2\n", "duplicate key steps"),
        (b"- 1\n- 2\n", "expected keys with values, got a list"),
        (b"3\n", "not to be read as YAML"),
        (b"", "steps"),
        (b"steps: \xe9\n", "not to be read as YAML"),
        (b"\0\1", "not to be read as YAML"),
        (b"a: [1, 2", "not to be read as YAML"),
        (b"<html>: <body>", "'<html>' not in"),
        (b"a: !!python/object:os.system {}\n", "not to be read as YAML"),
        (b"[" * 5000, "not to be read as YAML"),
        (b"~: 2\n", "not to be read as YAML"),
    ],
)
def test_configuration_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text)
    error = failure(capsys, "train", "--run", tmp_path / "run", "--config", path)
    assert error.startswith(f"showo: config {path}: ")
    assert message in error


@pytest.mark.parametrize(
    ("name", "data"),
    [("html", b"<html>404</html>" * 100), ("gzip", gzip.compress(b"x" * 2000, mtime=0)), ("empty", b"")],
)
def test_files_that_are_no_tars(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes
) -> None:
    path = tmp_path / f"{name}.tar"
    path.write_bytes(data)
    error = failure(
        capsys, "train", "--run", tmp_path / "run", *few(pictures), f"lm.data=[{{layout: tar_text, files: [{path}]}}]"
    )
    assert f"{path}: damaged or no tar archive" in error


@pytest.mark.parametrize("command", ["train", "train-tokenizer", "train-vision-tower"])
def test_places_for_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    (tmp_path / "file").touch()
    assert "is neither a YAML file nor one of" in failure(capsys, command, "--config", LONG)
    assert "is neither a YAML file nor one of" in failure(capsys, command, "--config", f"{LONG}.yaml")
    for place, message in (
        (tmp_path / "file", "is a file; expected a folder"),
        (tmp_path / "file" / "run", "file is not a writable folder"),
        (tmp_path / ("a" * 256), "a name of 256 bytes"),
    ):
        assert message in failure(capsys, command, "--run", place)
    assert "--threads must be 1 to" in failure(capsys, command, "--run", tmp_path / "run", "--threads", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_loss_that_runs_away(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bold = ["optimizer.lr=1e30", "optimizer.warmup_steps=0", "optimizer.max_grad_norm=0", "t2i.batch=1", "mmu.batch=1"]
    bold += ["log_every=2", "max_skipped_steps=2"]
    assert run("train", "--run", tmp_path, *few(pictures), *bold, "model.num_layers=1") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("showo: step ")
    assert "nan" in error
    assert "3 steps in a row were skipped, at most 2 may be (max_skipped_steps)" in error
    assert error.endswith("; there is no checkpoint of this run yet")
    assert not checkpoints(tmp_path)
