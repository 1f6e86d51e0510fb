"""`showo export`: a checkpoint as a folder of safetensors, whoever trained it, in the memory of one file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from showo import cli
from showo.config import ShowoConfig, official
from showo.engine.pipeline import ShowoPipeline
from showo.errors import CheckpointError
from showo.model import weights
from showo.model.export import export, official_config
from showo.model.image_tokenizer import ImageTokenizer
from showo.model.transformer import Showo
from showo.train.checkpoint import checkpoints
from tests.train.conftest import saved_weights, small_training, train


@pytest.fixture(scope="module")
def run(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    train(small_training(folders, "ema_decay=0.5", "code_bits=true", "optimizer.lr=1e-2", "validation_prompts=[]"), run)
    return run


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", *arguments])
    return int(ended.value.code or 0)


def test_the_command_makes_a_folder_to_generate_with(run: Path, tmp_path: Path) -> None:
    assert command(str(run), str(tmp_path / "out")) == 0
    newest = checkpoints(run)[-1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "model.safetensors", "pipeline.json", "tokenizer.json",
    }  # fmt: skip
    found, expected = load_file(tmp_path / "out" / "model.safetensors"), saved_weights(newest)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    one, two = (ShowoPipeline.from_pretrained(folder) for folder in (tmp_path / "out", newest))
    (a,), (b,) = (pipe.generate(["red circle"], steps=2, seed=1) for pipe in (one, two))
    assert a.tobytes() == b.tobytes()


def test_steps_averages_and_dtypes(run: Path, tmp_path: Path) -> None:
    assert command(str(run), str(tmp_path / "early"), "--step", "3", "--dtype", "bfloat16") == 0
    assert command(str(run), str(tmp_path / "average"), "--ema") == 0
    early, late = checkpoints(run)
    expected = saved_weights(early)
    for name, value in load_file(tmp_path / "early" / "model.safetensors").items():
        assert torch.equal(value, expected[name].bfloat16())
    found, expected, plain = (
        load_file(tmp_path / "average" / "model.safetensors"), saved_weights(late, average=True), saved_weights(late),
    )  # fmt: skip
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert not torch.equal(found["showo.lm_head.weight"], plain["showo.lm_head.weight"])


def test_large_weights_are_split_as_transformers_splits_them(run: Path, tmp_path: Path) -> None:
    export(checkpoints(run)[-1], tmp_path / "out", shard_bytes=60_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    count = len(files)
    assert count > 2
    assert files == [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    sizes = [sum(x.nbytes for x in load_file(tmp_path / "out" / name).values()) for name in files]
    assert all(size <= 60_000 or len(load_file(tmp_path / "out" / n)) == 1 for size, n in zip(sizes, files))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(sizes)}
    loaded, expected = Showo.from_pretrained(tmp_path / "out").state_dict(), saved_weights(checkpoints(run)[-1])
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())


MEASURE = """
import resource, sys
from pathlib import Path
from showo.model.export import export
export(Path(sys.argv[1]), Path(sys.argv[2]) / "small", shard_bytes=10**6)  # imports, and what they take
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
export(Path(sys.argv[1]), Path(sys.argv[2]) / "large", shard_bytes=10**7)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_no_more_than_a_shard_is_in_memory(tmp_path: Path) -> None:
    """Of 120 MB of weights."""
    model = torch.nn.ModuleList(torch.nn.Linear(1000, 1000, bias=False) for _ in range(30))
    (tmp_path / "model").mkdir()
    state = {f"weights.{name}": x for name, x in model.state_dict().items()}
    save(state, storage_writer=FileSystemWriter(tmp_path / "model" / "state"))
    words = [sys.executable, "-c", MEASURE, str(tmp_path / "model"), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60e6


def test_the_official_layout_is_loaded_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small model in place of the released size, which takes 5 GB."""
    for full in (official(), official(num_vq_tokens=1024, w_clip_vit=True)):
        (tmp_path / "config.json").write_text(full.to_json())
        assert ShowoConfig.from_dict(official_config(tmp_path)) == full
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 1, "intermediate_size": 64}
    small = ShowoConfig(text_vocab_size=300, codebook_size=64, num_vq_tokens=16, **sizes)
    Showo(small).save_pretrained(tmp_path / "small")
    with pytest.raises(CheckpointError, match="cannot be written as the official model: hidden_size 32 is not 2048"):
        export(tmp_path / "small", tmp_path / "out", official=True)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("showo.model.export.SIZES", ())
    export(tmp_path / "small", tmp_path / "out", official=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "pytorch_model.safetensors"}
    found = weights.read_config(tmp_path / "out", ShowoConfig)
    assert (found.text_vocab_size, found.codebook_size, found.num_vq_tokens) == (300, 64, 16)
    loaded = Showo.from_pretrained(tmp_path / "out", config=replace(found, **sizes)).state_dict()
    assert all(torch.equal(v, loaded[n]) for n, v in load_file(tmp_path / "small" / "model.safetensors").items())


def test_other_models_are_written_likewise(folders: dict[str, Path], tmp_path: Path) -> None:
    export(folders["image_tokenizer"], tmp_path / "out", dtype=torch.float16)
    found = ImageTokenizer.from_pretrained(tmp_path / "out", dtype=None).state_dict()
    expected = ImageTokenizer.from_pretrained(folders["image_tokenizer"]).state_dict()
    assert all(torch.equal(value, expected[name].half()) for name, value in found.items())


def test_what_cannot_be_is_said_in_a_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    cases = {
        (str(run), out, "--step", "5"): "--step 5: .* has no such checkpoint; there are step-000003, step-000006",
        (str(run), out, "--dtype", "int8"): "--dtype must be one of float32, bfloat16, float16, got 'int8'",
        (str(run), out, "--max-shard-size", "big"): "--max-shard-size must be a number of KB, MB or GB, such as 5GB",
        (str(run), out, "--official"): "cannot be written as the official model: hidden_size 32 is not 2048",
        (str(tmp_path / "nowhere"), out): "no checkpoint folder at",
        ("bundled:tiny/showo", out, "--ema"): "has no averages of weights; a training with ema_decay keeps them",
        (str(run), str(tmp_path / "there")): "there",
    }
    for arguments, reason in cases.items():
        assert command(*arguments) == 2, arguments
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(reason, line), line
    assert not (tmp_path / "out").exists()
