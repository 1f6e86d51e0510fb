"""A checkpoint written anew as a folder of safetensors: `showo export`, and what `showo convert` shares with it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from showo.config import ShowoConfig
from showo.errors import CheckpointError
from showo.files import new_folder
from showo.model.folding import adapters
from showo.model.image_tokenizer import ImageTokenizerConfig
from showo.model.lora import ADAPTER_WEIGHTS
from showo.model.weight_files import (
    FACTS_NAME,
    INDEX_SUFFIX,
    STATE_NAME,
    WEIGHT_FILES,
    WEIGHTS_NAME,
    Reader,
    open_tensors,
    trained_weights,
)
from showo.model.weights import CONFIG_NAME, read_config, read_config_json
from showo.tokens import SPECIAL_TOKENS

OFFICIAL_WEIGHTS_NAME = "pytorch_model.safetensors"
SHARD_BYTES = 5 * 10**9  # as transformers splits weights
_METADATA = {"format": "pt"}
# What a released config.json does not say, since all released models have the same.
SIZES = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "qk_layernorm", "clip_width")


def export(
    folder: Path,
    out: Path,
    *,
    average: bool = False,
    official: bool = False,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes the weights of a checkpoint's folder, and what lies beside them, into `out`, which appears whole or not.

    Weights are those of the plain model: what a training has put beside them is added up (`showo.model.folding`). The
    adapters of a training are written too, as `peft` loads them. No more than one shard is in memory at a time.

    average: the averages that a training keeps, in place of its weights.
    official: config.json has the official keys, and the file of weights the name that goes with them.
    dtype: floating tensors are stored in it; None keeps theirs.
    shard_bytes: what does not fit one file of this size is written as several, with an index.

    Raises:
        CheckpointError: the checkpoint is damaged, has no averages, or cannot be official.
        OutputError: there is something at `out`, or it cannot be written.
    """
    readers = open_tensors(folder, average=average)
    trained = trained_weights(folder, average=average) if (folder / STATE_NAME).is_dir() else {}
    config = official_config(folder) if official else None
    with new_folder(out) as temporary:
        copy_what_lies_beside(folder, temporary)
        if config is not None:
            (temporary / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        name = OFFICIAL_WEIGHTS_NAME if official else WEIGHTS_NAME
        write_weights(readers, temporary, name, dtype, shard_bytes)
        if found := adapters(trained):
            save_file({n: _read(r, dtype) for n, r in found.items()}, temporary / ADAPTER_WEIGHTS, metadata=_METADATA)
    return out


def is_image_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint's config.json is an image tokenizer's, ours or the released one's, and not a transformer's.

    Raises CheckpointError where there is none, or no JSON.
    """
    found = read_config_json(folder)
    return isinstance(found, dict) and (
        found.get("model_type") == ImageTokenizerConfig.model_type
        or found.get("_class_name") == ImageTokenizerConfig.official_class
    )


def official_config(folder: Path) -> dict[str, Any]:
    """The content of the released config.json for a checkpoint, of a transformer or an image tokenizer.

    Raises CheckpointError for a model of sizes that it cannot express.
    """
    if not is_image_tokenizer(folder):
        showo = read_config(folder, ShowoConfig)
        official = _official_showo(showo)
        expected, sizes = asdict(ShowoConfig.from_dict(official)), asdict(showo)
        compared: Sequence[str] = SIZES
    else:
        official = {"_class_name": ImageTokenizerConfig.official_class}
        expected = asdict(ImageTokenizerConfig.from_dict(official))
        sizes = asdict(read_config(folder, ImageTokenizerConfig))
        compared = list(sizes)
    if other := [f"{key} {sizes[key]} is not {expected[key]}" for key in compared if sizes[key] != expected[key]]:
        raise CheckpointError(f"{folder} cannot be written as the official model: {', '.join(other)}")
    return official


def _official_showo(config: ShowoConfig) -> dict[str, Any]:
    return {
        "_class_name": ShowoConfig.official_class,
        "w_clip_vit": config.w_clip_vit,
        "vocab_size": config.vocab_size,
        "llm_vocab_size": config.text_vocab_size,
        "llm_model_path": "microsoft/phi-1_5",
        "codebook_size": config.codebook_size,
        "num_vq_tokens": config.num_vq_tokens,
        "num_new_special_tokens": len(SPECIAL_TOKENS),
    }


def copy_what_lies_beside(folder: Path, out: Path) -> None:
    """Configuration, tokenizer and the like: small files, but for those of a training alone, and indices of weights."""
    left_out = {FACTS_NAME, *(name + INDEX_SUFFIX for name in WEIGHT_FILES)}
    for path in folder.iterdir():
        if path.is_file() and path.suffix in (".json", ".txt") and path.name not in left_out:
            shutil.copyfile(path, out / path.name)


def write_weights(
    readers: Mapping[str, Reader], folder: Path, name: str, dtype: torch.dtype | None, shard_bytes: int
) -> None:
    """One file of the name, or several with an index, as transformers writes them."""
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    total, filled = 0, 0

    def write() -> None:
        save_file(shard, folder / str(len(shards)), metadata=_METADATA)
        shards.append(list(shard))
        shard.clear()

    for each, reader in readers.items():
        tensor = _read(reader, dtype)
        if shard and filled + tensor.nbytes > shard_bytes:
            write()
            filled = 0
        shard[each] = tensor
        filled, total = filled + tensor.nbytes, total + tensor.nbytes
    write()
    if len(shards) == 1:
        os.rename(folder / "0", folder / name)
        return
    placed = {}
    stem, suffix = name.rsplit(".", 1)
    for number, names in enumerate(shards):
        file = f"{stem}-{number + 1:05d}-of-{len(shards):05d}.{suffix}"
        os.rename(folder / str(number), folder / file)
        placed.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / (name + INDEX_SUFFIX)).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _read(reader: Reader, dtype: torch.dtype | None) -> Tensor:
    tensor = reader[1]().detach()
    return (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor).contiguous()
