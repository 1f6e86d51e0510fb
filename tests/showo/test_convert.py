"""`showo convert` and, back, `showo export --official`: the same names, shapes, dtypes and bits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from showo.engine.loading import find_transformer
from showo.engine.pipeline import ShowoPipeline
from showo.model.weight_files import open_tensors
from showo.tokens import TextTokenizer
from tests.showo.command import failure, run
from tests.showo.published_models import LAYOUTS, make_small, small_showo, write_showo, write_tokenizers


@pytest.fixture
def folders(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_small(monkeypatch)
    write_tokenizers(tmp_path, TextTokenizer.from_file(checkpoint / "showo"))
    return tmp_path


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: read() for name, (_, read) in open_tensors(folder).items()}


def bits(folder: Path) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    return {
        name: (
            tensor.dtype,
            tensor.shape,
            tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else b"",
        )
        for name, tensor in tensors(folder).items()
    }


def keys(folder: Path) -> dict[str, object]:
    """Of config.json, those that say something of the model."""
    found = json.loads((folder / "config.json").read_text())
    return {key: value for key, value in found.items() if key not in ("_diffusers_version", "mask_token_id")}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "clip"), [(torch.float32, False), (torch.float16, True), (torch.bfloat16, False)])
def test_there_and_back(folders: Path, layout: str, dtype: torch.dtype, clip: bool) -> None:
    source = write_showo(folders / "show-o-mine", small_showo(w_clip_vit=clip), layout, dtype, w_clip_vit=clip)
    there, back = folders / "there", folders / "back"
    assert run("convert", source, there) == 0
    assert {path.name for path in there.iterdir()} >= {"config.json", "model.safetensors", "pipeline.json"}
    assert len({path.stat().st_mode for path in there.iterdir()}) == 1  # as readable as any other new file
    assert bits(there) == bits(source)
    assert find_transformer(there).config == find_transformer(source).config
    assert find_transformer(there).named == find_transformer(source).named
    assert run("export", "--official", there, back) == 0
    assert {path.name for path in back.iterdir()} == {"config.json", "pipeline.json", "pytorch_model.safetensors"}
    assert bits(back) == bits(source)
    assert keys(back) == keys(source)
    one, two, three = (ShowoPipeline.from_pretrained(folder, dtype=torch.float32) for folder in (source, there, back))
    assert (
        list(one.model.state_dict()) == list(two.model.state_dict()) == list(small_showo(w_clip_vit=clip).state_dict())
    )
    drawn = [pipe.generate(["red"], steps=2)[0].tobytes() for pipe in (one, two, three)]
    assert drawn[0] == drawn[1] == drawn[2]


def test_the_image_tokenizer_there_and_back(folders: Path) -> None:
    source, there, back = folders / "magvitv2", folders / "there", folders / "back"
    assert run("convert", source, there) == 0
    assert json.loads((there / "config.json").read_text())["bits"] == 6
    assert run("export", "--official", there, back) == 0
    assert bits(there) == bits(source) == bits(back)
    assert keys(back) == keys(source) == {"_class_name": "MAGVITv2"}


def test_dtypes_and_shards(folders: Path) -> None:
    source = write_showo(folders / "show-o-mine", small_showo())
    assert run("convert", source, folders / "there", "--dtype", "bfloat16", "--max-shard-size", "50KB") == 0
    assert len(list((folders / "there").glob("model-0*.safetensors"))) > 2
    expected = {name: tensor.bfloat16() for name, tensor in tensors(source).items()}
    found = tensors(folders / "there")
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_mistakes(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_showo(folders / "show-o-mine", small_showo(), w_clip_vit=True)
    out = folders / "out"
    for arguments, reason in (
        ((source, out), "does not fit Showo: 4 missing: mm_projector"),
        ((folders / "nothing", out), "no checkpoint folder at"),
        ((folders / "phi-1_5", out), "has no config.json"),
        ((folders / "magvitv2", folders), re.escape(str(folders))),
        ((source, out, "--max-shard-size", "much"), "--max-shard-size must be a number of KB"),
        ((source, out, "--revision", "v1"), "only the hub's have revisions"),
    ):
        assert re.search(reason, failure(capsys, "convert", *arguments))
    assert not out.exists()
