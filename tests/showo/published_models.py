"""Small models in the folders of published ones: the released config.json, other weights, the hub's cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from showo import config as configs
from showo.config import ShowoConfig
from showo.model.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from showo.model.transformer import Showo
from showo.tokens import TextTokenizer

# A released config.json names none of these, so the tests set what it stands for.
SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 64, "max_text_len": 20,
    "max_positions": 1200, "clip_width": 24,
}  # fmt: skip
TOKENIZER = ImageTokenizerConfig(
    bits=6,
    channels=8,
    encoder_multipliers=(1, 1, 1),
    encoder_blocks=(1, 1, 1),
    decoder_multipliers=(1, 1, 1),
    decoder_blocks=(1, 1, 1),
    norm_groups=4,
)
LAYOUTS = ("pytorch_model.bin", "pytorch_model.safetensors", "sharded bin", "sharded safetensors")


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Released config.json files stand for models of SIZES and TOKENIZER, and published ones draw 16 codes."""
    released, read = configs._from_official, ImageTokenizerConfig.from_dict

    def small(data: Mapping[str, Any]) -> ShowoConfig:
        return replace(released(data), **SIZES)

    def small_tokenizer(data: Mapping[str, Any]) -> ImageTokenizerConfig:
        return TOKENIZER if data.get("_class_name") == "MAGVITv2" else read(data)

    patch.setattr(configs, "_from_official", small)
    patch.setattr(ImageTokenizerConfig, "from_dict", small_tokenizer)


def released_config(**changes: Any) -> dict[str, Any]:
    """As the hub has it, but for the sizes of the vocabulary, which are those of the tests' tokenizers."""
    return {
        "_class_name": "Showo",
        "_diffusers_version": "0.30.1",
        "codebook_size": 64,
        "llm_model_path": "microsoft/phi-1_5",
        "llm_vocab_size": 257,
        "mask_token_id": 331,
        "num_new_special_tokens": 10,
        "num_vq_tokens": 16,
        "vocab_size": 332,
        "w_clip_vit": False,
        **changes,
    }


def small_showo(**changes: Any) -> Showo:
    torch.manual_seed(0)
    model = Showo(ShowoConfig(text_vocab_size=257, codebook_size=64, num_vq_tokens=16, **{**SIZES, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
    return model.eval()


def write_weights(folder: Path, state: Mapping[str, Tensor], layout: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "safetensors" if layout.endswith("safetensors") else "bin"

    def write(part: Mapping[str, Tensor], name: str) -> None:
        if suffix == "bin":
            torch.save(dict(part), folder / name)
        else:
            save_file(dict(part), folder / name, {"format": "pt"})

    if not layout.startswith("sharded"):
        write(state, layout)
        return
    names, placed = list(state), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.{suffix}"
        write({name: state[name] for name in part}, file)
        placed.update(dict.fromkeys(part, file))
    index = json.dumps({"metadata": {"total_size": 0}, "weight_map": placed})
    (folder / f"pytorch_model.{suffix}.index.json").write_text(index)


def write_showo(
    folder: Path, model: Showo, layout: str = LAYOUTS[0], dtype: torch.dtype = torch.float32, **config: Any
) -> Path:
    write_weights(folder, {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, layout)
    (folder / "config.json").write_text(json.dumps(released_config(**config)))
    return folder


def write_tokenizers(folder: Path, words: TextTokenizer) -> None:
    """magvitv2 and phi-1_5 under the names of the hub, as they lie there."""
    torch.manual_seed(1)
    write_weights(folder / "magvitv2", ImageTokenizer(TOKENIZER).state_dict(), "pytorch_model.bin")
    config = {"_class_name": "MAGVITv2", "_diffusers_version": "0.30.1"}
    (folder / "magvitv2" / "config.json").write_text(json.dumps(config))
    words.save(folder / "phi-1_5")


class HubCache:
    """The hub's cache on this machine, and no network."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def add(self, hub_id: str, source: Path, revision: str = "main") -> Path:
        """Puts a folder there as the newest commit of a branch."""
        home = self.folder / f"models--{hub_id.replace('/', '--')}"
        commit = f"{len(list(home.glob('snapshots/*'))) + 1:040x}"
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / revision).write_text(commit)
        shutil.copytree(source, home / "snapshots" / commit)
        return home / "snapshots" / commit
