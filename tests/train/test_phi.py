"""`init_from` with a Phi language model as transformers saves it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from showo.config import tiny
from showo.errors import CheckpointError
from showo.model.transformer import Showo
from showo.model.weights import CONFIG_NAME
from showo.train.phi import is_phi, showo_from_phi
from showo.train.showo import initial_showo
from showo_ext.testing import max_error, randint, randn
from tests.train.conftest import small_training

transformers = pytest.importorskip("transformers")
ROWS = 40  # of Phi's tables; 30 of them are text
CONFIG = tiny(30, hidden_size=64, num_layers=2, num_heads=2, intermediate_size=96, codebook_size=16)


def save_phi(folder: Path, how: str = "safetensors", **changes: Any) -> Any:
    """A small Phi with biases and norms of its own, saved; changes are of its configuration."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    torch.manual_seed(7)
    phi = transformers.PhiForCausalLM(transformers.PhiConfig(**{"vocab_size": ROWS, **sizes, **changes})).eval()
    with torch.no_grad():
        for parameter in phi.parameters():
            parameter.add_(0.2 * randn(*parameter.shape))
    phi.save_pretrained(folder, max_shard_size="60KB" if how == "shards" else "5GB")
    if how == "pickle":
        (folder / "model.safetensors").unlink()
        torch.save(phi.state_dict(), folder / "pytorch_model.bin")
    assert (folder / "model.safetensors.index.json").exists() == (how == "shards")
    return phi


@pytest.mark.parametrize(
    ("how", "norms"), [("safetensors", False), ("shards", False), ("pickle", False), ("shards", True)]
)
def test_a_text_has_the_hidden_states_of_phi(tmp_path: Path, how: str, norms: bool) -> None:
    phi = save_phi(tmp_path, how, qk_layernorm=norms)
    assert is_phi(str(tmp_path))
    config = replace(CONFIG, qk_layernorm=norms)
    model = showo_from_phi(config, str(tmp_path), 0, lambda line: None)
    ids = randint(0, 30, (2, 17))
    with torch.no_grad():
        exact = phi.double()(ids, output_hidden_states=True)
        hidden = model.hidden_states(ids)
        assert max_error(hidden, exact.hidden_states[-1]) < 1e-5
        assert max_error(model.logits(hidden, (0, ROWS)), exact.logits) < 1e-5


def test_what_phi_has_not_is_new_and_told(tmp_path: Path) -> None:
    phi = save_phi(tmp_path, max_position_embeddings=128).state_dict()
    lines: list[str] = []
    model = showo_from_phi(replace(CONFIG, w_clip_vit=True, clip_width=8), str(tmp_path), 5, lines.append)
    torch.manual_seed(5)
    fresh, new = Showo(model.config).state_dict(), []
    for name, tensor in model.state_dict().items():
        taken = phi.get(name.removeprefix("showo."), tensor[:0])
        assert torch.equal(tensor[: len(taken)], taken)
        assert torch.equal(tensor[len(taken) :], fresh[name][len(taken) :])
        new += [name] if len(taken) < len(tensor) else []
    norms = [name for name in fresh if "q_layernorm" in name or "k_layernorm" in name]
    tables = ["showo.model.embed_tokens.weight", "showo.lm_head.weight", "showo.lm_head.bias"]
    assert sorted(new) == sorted([*tables, *norms, *(name for name in fresh if name.startswith("mm_projector"))])
    assert [line.partition(f"init_from: {tmp_path}: ")[2].partition(",")[0] for line in lines] == [
        f"{model.config.vocab_size - ROWS} rows of embeddings and head",
        "10 rows of marks and codes",
        "qk_layernorm is new",
        "mm_projector is new",
        "max_positions 128 -> 256: from 128 on Phi knows none",
    ]


def test_a_training_takes_it(folders: dict[str, Path], tmp_path: Path) -> None:
    config = small_training(folders, f"init_from={tmp_path}")
    sizes = config.model
    phi = save_phi(
        tmp_path,
        vocab_size=sizes.text_vocab_size,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.intermediate_size,
    )
    model = initial_showo(config, lambda line: None)
    assert torch.equal(model.showo.model.layers[1].mlp.fc1.weight, phi.model.layers[1].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_size": 128, "num_hidden_layers": 3}, "hidden_size is 128, not 64, num_hidden_layers is 3, not 2"),
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1, not 2"),
        ({"hidden_act": "relu"}, "hidden_act is relu, not gelu_new"),
        ({"vocab_size": 29}, "vocab_size is 29, less than text_vocab_size 30"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type is linear, not default"),
    ],
)
def test_other_sizes_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    save_phi(tmp_path)
    path = tmp_path / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=rf"init_from: {path} has another model configuration: {reason}"):
        showo_from_phi(CONFIG, str(tmp_path), 0, lambda line: None)


def test_weights_that_are_not_those_of_the_configuration_are_refused(tmp_path: Path) -> None:
    save_phi(tmp_path)
    path = tmp_path / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 41}))
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight \[40, 64\] instead of \[41, 64\]"):
        showo_from_phi(CONFIG, str(tmp_path), 0, lambda line: None)
    with pytest.raises(CheckpointError, match=r"adapters do not learn them; train with lora\.rank=0"):
        showo_from_phi(CONFIG, str(tmp_path), 0, lambda line: None, whole=True)
