"""A published checkpoint in this package's own layout: `showo convert`. `showo export --official` is the way back."""

from __future__ import annotations

from pathlib import Path

import torch

from showo.config import ShowoConfig
from showo.engine.loading import find_transformer
from showo.engine.pipeline_file import PipelineFile
from showo.files import new_folder
from showo.model.export import SHARD_BYTES, copy_what_lies_beside, is_image_tokenizer, write_weights
from showo.model.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from showo.model.transformer import Showo
from showo.model.weight_files import WEIGHTS_NAME, open_tensors
from showo.model.weights import CONFIG_NAME, check_names_and_shapes, read_config, resolve_folder


def convert(
    source: str | Path,
    out: Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes a transformer or an image tokenizer, of whatever layout, as safetensors with our config.json into `out`.

    Of a transformer, pipeline.json names what goes with it. Tensors keep their names, their values, and their dtypes
    where `dtype` is None. `out` appears whole or not at all.

    source: a folder or hub id. revision: of the hub's repository. shard_bytes: larger weights are split.

    Raises:
        CheckpointError: the checkpoint is damaged, or its weights are not those that its config.json describes.
        OutputError: there is something at `out`, or it cannot be written.
    """
    folder, config, named = _opened(source, revision)
    with torch.device("meta"):
        model = Showo(config) if isinstance(config, ShowoConfig) else ImageTokenizer(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    readers = open_tensors(folder)
    found = {name: shape for name, (shape, _) in readers.items()}
    check_names_and_shapes(expected, found, what=f"{folder}", into=type(model).__name__)
    with new_folder(out) as temporary:
        copy_what_lies_beside(folder, temporary)
        model.save_config(temporary)
        if named is not None:
            named.write(temporary)
        write_weights({name: readers[name] for name in expected}, temporary, WEIGHTS_NAME, dtype, shard_bytes)
    return out


def _opened(
    source: str | Path, revision: str | None
) -> tuple[Path, ShowoConfig | ImageTokenizerConfig, PipelineFile | None]:
    light = resolve_folder(source, revision=revision, files=("*.json",))  # before what it holds is known
    if (light / CONFIG_NAME).is_file() and is_image_tokenizer(light):
        folder = resolve_folder(source, revision=revision)
        return folder, read_config(folder, ImageTokenizerConfig), None
    found = find_transformer(source, revision=revision)
    return found.folder, found.config, found.named
