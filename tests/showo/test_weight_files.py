"""Weights as other trainers leave them: prefixes, entries of a larger state, files of other names, pickled code."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from showo.errors import CheckpointError
from showo.model.transformer import Showo


def loads(model: Showo, folder: Path) -> bool:
    found = Showo.from_pretrained(folder).state_dict()
    return all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def folder(model: Showo, tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(model.config.to_json())
    return tmp_path


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_prefixes_of_wrappers(model: Showo, folder: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    assert loads(model, folder)
    first = next(iter(state))
    state[first.removeprefix(prefix)] = state.pop(first)  # then it is no wrapper's
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"unexpected: {prefix}"):
        Showo.from_pretrained(folder)


@pytest.mark.parametrize("entry", ["module", "model", "state_dict", "ema"])
def test_a_state_dict_among_other_things(model: Showo, folder: Path, entry: str) -> None:
    state: dict[str, Any] = {entry: model.state_dict(), "step": 7, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(state, folder / "pytorch_model.bin")
    assert loads(model, folder)
    torch.save({**state, "teacher": model.state_dict()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin holds several state dicts, {entry}, teacher; save"):
        Showo.from_pretrained(folder)
    torch.save({"step": 7, "optimizer": {}}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not a state dict of tensors"):
        Showo.from_pretrained(folder)


@pytest.mark.parametrize("name", ["mycheckpoint.pth", "weights.pt", "pytorch_model.fp16.bin", "ema.safetensors"])
def test_one_file_of_any_name(model: Showo, folder: Path, name: str) -> None:
    write = save_file if name.endswith(".safetensors") else torch.save
    write(model.state_dict(), folder / name)
    assert loads(model, folder)
    write(model.state_dict(), folder / f"z-{name}")
    with pytest.raises(CheckpointError, match=f"has no weights .*; which of {name}, z-{name} is meant"):
        Showo.from_pretrained(folder)


def test_folders_of_the_official_trainer(model: Showo, tmp_path: Path) -> None:
    for step in (500, 1000):
        inside = tmp_path / f"checkpoint-{step}" / "unwrapped_model"
        inside.mkdir(parents=True)
        torch.save(model.state_dict(), inside / "pytorch_model.bin")
        (inside / "config.json").write_text(model.config.to_json())
    assert loads(model, tmp_path / "checkpoint-500")
    with pytest.raises(
        CheckpointError, match=r"no config\.json; it is a run, .* is .*/checkpoint-1000/unwrapped_model$"
    ):
        Showo.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("adapter_config.json", r"adapters alone \(LoRA\)"),
        ("zero_to_fp32.py", r"DeepSpeed's: make a pytorch_model\.bin with its zero_to_fp32\.py"),
        ("pytorch_model/mp_rank_00_model_states.pt", "DeepSpeed's"),
        ("pytorch_model.bin", "only weights: lay that of the model which they were trained from beside them"),
    ],
)
def test_folders_without_a_configuration_are_recognised(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=rf"has no config\.json.*{hint}"):
        Showo.from_pretrained(tmp_path)


def test_other_models_are_named(model: Showo, folder: Path) -> None:
    config = {"_class_name": "Showo2Qwen2_5", "llm_vocab_size": 151665, "hidden_size": 1536}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: .* this is a Showo2Qwen2_5, expected a Showo"):
        Showo.from_pretrained(folder)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("never printed",))


def test_pickled_code_is_named_and_not_run(model: Showo, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, code in ((model, "showo.config.ShowoConfig"), ({"a": Evil()}, "builtins.print")):
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(
            CheckpointError, match=rf"pytorch_model\.bin .*it asks to run .*{code}.*state_dict\(\) alone"
        ):
            Showo.from_pretrained(folder)
    assert "never printed" not in capsys.readouterr().out


def test_ordered_dicts_and_parameters_are_weights(model: Showo, folder: Path) -> None:
    state = collections.OrderedDict((name, torch.nn.Parameter(tensor)) for name, tensor in model.state_dict().items())
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert loads(model, folder)
