"""Checkpoints: round trips, the released layouts, and everything that can be wrong with a folder."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from showo.errors import CheckpointError
from showo.files import package_path
from showo.model.transformer import Showo
from showo.model.weights import resolve_folder


def same(a: Showo, b: Showo) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_round_trip(model: Showo, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "a" / "b")
    loaded = Showo.from_pretrained(tmp_path / "a" / "b")
    assert same(model, loaded)
    assert loaded.config == model.config
    assert not loaded.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["config.json", "model.safetensors"]
    assert same(loaded, Showo.from_pretrained(str(tmp_path / "a" / "b")))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_dtypes(model: Showo, tmp_path: Path, stored: torch.dtype) -> None:
    model.save_pretrained(tmp_path, dtype=stored)
    assert model.dtype == torch.float32
    rounded = {name: tensor.to(stored) for name, tensor in model.state_dict().items()}
    for dtype, expected in ((torch.float32, torch.float32), (None, stored), (torch.float64, torch.float64)):
        state = Showo.from_pretrained(tmp_path, dtype=dtype).state_dict()
        assert all(torch.equal(state[name], tensor.to(expected)) for name, tensor in rounded.items())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.safetensors"])
def test_released_file_names_and_config(model: Showo, tmp_path: Path, name: str) -> None:
    if name.endswith(".bin"):
        torch.save(model.state_dict(), tmp_path / name)
    else:
        save_file(model.state_dict(), tmp_path / name)
    (tmp_path / "config.json").write_text(model.config.to_json())
    assert same(model, Showo.from_pretrained(tmp_path))


def write_shards(model: Showo, folder: Path) -> dict[str, str]:
    names = list(model.state_dict())
    half = len(names) // 2
    placed = {}
    for number, part in enumerate((names[:half], names[half:]), start=1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: model.state_dict()[name] for name in part}, folder / shard)
        placed |= dict.fromkeys(part, shard)
    write_index(folder, placed)
    (folder / "config.json").write_text(model.config.to_json())
    return placed


def write_index(folder: Path, placed: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def test_shards(model: Showo, tmp_path: Path) -> None:
    placed = write_shards(model, tmp_path)
    assert same(model, Showo.from_pretrained(tmp_path))
    first = next(iter(placed))
    for broken, message in (
        ({**placed, first: "../elsewhere.safetensors"}, "outside its folder"),
        ({**placed, first: "model-00002-of-00002.safetensors"}, "does not place there"),
        ({**placed, "more": placed[first]}, "lacks more"),
        ([1], "not an index"),
    ):
        write_index(tmp_path, broken)
        with pytest.raises(CheckpointError, match=message):
            Showo.from_pretrained(tmp_path)
    write_index(tmp_path, placed)
    (tmp_path / placed[first]).unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of 2 weight shards: model-00001"):
        Showo.from_pretrained(tmp_path)


def test_names_and_shapes_are_compared(model: Showo, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    state = model.state_dict()
    del state["showo.lm_head.bias"]
    state["showo.model.embed_tokens.weight"] = torch.zeros(3, 64)
    state["extra"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        Showo.from_pretrained(tmp_path)
    message = str(error.value)
    assert "1 missing: showo.lm_head.bias" in message
    assert "1 unexpected: extra" in message
    assert f"showo.model.embed_tokens.weight [3, 64] instead of [{model.config.vocab_size}, 64]" in message


@pytest.mark.parametrize("keep", [0, 5, 100, 20000])
def test_truncated_files(model: Showo, tmp_path: Path, keep: int) -> None:
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or incomplete"):
        Showo.from_pretrained(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("never printed",))


@pytest.mark.parametrize("content", ["evil", "list", "garbage", "empty"])
def test_pickles_hold_weights_only(
    model: Showo, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(model.config.to_json())
    path = tmp_path / "pytorch_model.bin"
    if content == "evil":
        torch.save({"a": Evil()}, path)
    elif content == "list":
        torch.save([torch.zeros(1)], path)
    else:
        path.write_bytes(pickle.dumps({"a": Evil()}) if content == "garbage" else b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        Showo.from_pretrained(tmp_path)
    assert "never printed" not in capsys.readouterr().out


def test_missing_pieces(model: Showo, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint folder at .*absent"):
        Showo.from_pretrained(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Showo.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        Showo.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden": 3}')
    with pytest.raises(CheckpointError, match=r"config\.json: ShowoConfig: unknown keys 'hidden'"):
        Showo.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(model.config.to_json())
    with pytest.raises(CheckpointError, match="has no weights"):
        Showo.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        Showo.from_pretrained(tmp_path / "config.json")


def test_bundled_models_are_found_wherever_a_folder_is() -> None:
    assert resolve_folder("bundled:tiny/showo").samefile(resolve_folder(package_path("assets/tiny/showo")))
    with pytest.raises(CheckpointError, match=r"no checkpoint folder at .*assets/nothing"):
        resolve_folder("bundled:nothing")


def test_the_folder_of_a_run_names_its_newest_checkpoint(model: Showo, tmp_path: Path) -> None:
    for name in ("step-000003", "step-999999", "step-1000000", "step-1000001.damaged", "step-1000002.tmp"):
        model.save_pretrained(tmp_path / "checkpoints" / name)
    with pytest.raises(CheckpointError, match=r"has no config\.json; it is a run, .* is .*/checkpoints/step-1000000$"):
        Showo.from_pretrained(tmp_path)


def test_a_name_too_long_for_a_path_is_no_folder() -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder at"):
        resolve_folder("x" * 5000)


def test_hub_ids_are_downloaded(model: Showo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    model.save_pretrained(tmp_path)
    asked: list[object] = []

    def download(repo: str, **options: object) -> str:
        asked.append((repo, options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert same(model, Showo.from_pretrained("someone/show-o", revision="v1"))
    assert asked == [("someone/show-o", "v1")]

    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    patterns: list[object] = []

    def download_bin(repo: str, *, allow_patterns: list[str], **options: object) -> str:
        patterns.append(allow_patterns)
        if "*.bin" not in allow_patterns:
            (tmp_path / "pytorch_model.bin").rename(tmp_path / "hidden")
        else:
            (tmp_path / "hidden").rename(tmp_path / "pytorch_model.bin")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download_bin)
    assert same(model, Showo.from_pretrained("someone/show-o"))
    assert patterns == [["*.json", "*.safetensors"], ["*.json", "*.bin"]]  # pickles only where there is nothing else

    def fail(repo: str, **options: object) -> str:
        raise OSError("no route\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"no folder .* in the cache, and cannot be had from the hub: no route$"):
        Showo.from_pretrained("someone/show-o")


def test_an_interrupted_save_leaves_the_old_file(model: Showo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(tensors: object, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 2**20, "num_heads": 2**14}, "many times as large as its weights"),
        ({"num_layers": 10**9}, "num_layers must be at most 1000"),
        ({"num_layers": 1000, "intermediate_size": 10**5}, "many times as large as its weights"),
        ({"intermediate_size": 10**15}, "many times as large as its weights"),
        ({"text_vocab_size": 10**12}, "many times as large as its weights"),
        ({"hidden_size": 128}, "of another shape"),
    ],
)
def test_absurd_sizes_are_refused_before_they_are_allocated(
    model: Showo, tmp_path: Path, sizes: dict[str, int], message: str
) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**model.config.to_dict(), **sizes}))
    with pytest.raises(CheckpointError, match=message):
        Showo.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "9" * 5000, "[" * 100_000, "\ud800", '{"num_layers": 1e9}'])
def test_other_json_is_no_configuration(model: Showo, tmp_path: Path, text: str) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Showo.from_pretrained(tmp_path)


def test_integers_are_no_weights(model: Showo, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    state = model.state_dict()
    state["showo.lm_head.bias"] = state["showo.lm_head.bias"].long()
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.bias is torch\.int64, expected a kind of torch\.float32"):
        Showo.from_pretrained(tmp_path)
