"""Where the parts of a pipeline lie: everything is found, and every config.json read, before any weights are."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from showo.config import ShowoConfig, is_released, official
from showo.engine.pipeline_file import PIPELINE_NAME, PipelineFile
from showo.engine.published import IMAGE_TOKENIZER, TEXT_TOKENIZER, Published, published, sampling_by_codes
from showo.engine.sampling import Sampling
from showo.errors import CheckpointError
from showo.files import package_path
from showo.model.clip import CLIP_VIT_L_336
from showo.model.weights import CONFIG_NAME, read_config, read_config_json, resolve_folder
from showo.tokens import TOKENIZER_NAME, TextTokenizer

# Of a folder that holds a whole pipeline.
SHOWO_FOLDER, IMAGE_TOKENIZER_FOLDER, VISION_TOWER_FOLDER = "showo", "image_tokenizer", "vision_tower"


@dataclass(frozen=True)
class Transformer:
    """A transformer's folder, its sizes, and what goes with it.

    named: its pipeline.json; where that says nothing, what is known of published models.
    """

    folder: Path
    config: ShowoConfig
    named: PipelineFile


@dataclass(frozen=True)
class Parts:
    """Of a pipeline: the folder and sizes of the transformer, the image tokenizer's folder, and all that is light.

    vision_tower: a folder or hub id, opened when a picture is described; None where none is named.
    """

    folder: Path
    config: ShowoConfig
    image_tokenizer: Path
    text_tokenizer: TextTokenizer
    sampling: Sampling
    vision_tower: str | Path | None


def bundled_checkpoint() -> Path:
    """Folder of the model that comes with the package."""
    return package_path("assets/tiny")


def find_transformer(source: str | Path, *, revision: str | None = None) -> Transformer:
    """A transformer with what goes with it, from a folder or a hub id; of a whole pipeline's folder, its transformer.

    Raises:
        CheckpointError: there is none, or its config.json or pipeline.json is damaged or of something else.
    """
    known = published(source)
    alone = known.weights if known is not None else ""
    folder = resolve_folder(source, revision=revision, files=("*.json", alone) if alone else ("*.json",))
    whole = folder if (folder / SHOWO_FOLDER).is_dir() else None
    if whole is not None:
        folder = whole / SHOWO_FOLDER
    named = PipelineFile.read(folder)
    if known is not None and alone and not (folder / CONFIG_NAME).exists():
        config, released = official(num_vq_tokens=known.num_vq_tokens), True
    else:
        config, released = read_config(folder, ShowoConfig), is_released(read_config_json(folder))
    if not alone:
        resolve_folder(source, revision=revision)  # the weights too, now that they are known to be of a Show-o
    if released:
        config, named = _completed(folder, config, named, known)
    if whole is not None:
        named = _with_parts_of(whole, named)
    return Transformer(folder, config, named)


def find_parts(
    source: str | Path | None = None,
    *,
    image_tokenizer: str | Path | None = None,
    text_tokenizer: str | Path | None = None,
    vision_tower: str | Path | None = None,
    revision: str | None = None,
) -> Parts:
    """The parts of a pipeline; see `ShowoPipeline.from_pretrained`, whose arguments these are.

    Raises:
        CheckpointError: one of them is not there, or not what it should be; the message says which, and what to name.
    """
    found = find_transformer(bundled_checkpoint() if source is None else source, revision=revision)
    return Parts(
        folder=found.folder,
        config=found.config,
        image_tokenizer=_image_folder(found) if image_tokenizer is None else resolve_folder(image_tokenizer),
        text_tokenizer=_words(found) if text_tokenizer is None else TextTokenizer.from_file(text_tokenizer),
        sampling=found.named.sampling,
        vision_tower=vision_tower or found.named.vision_tower or None,
    )


def _completed(
    folder: Path, config: ShowoConfig, named: PipelineFile, known: Published | None
) -> tuple[ShowoConfig, PipelineFile]:
    """What a released model's files do not say, from what is known of it."""
    if known is not None and config.num_vq_tokens != known.num_vq_tokens:
        warnings.warn(
            f"{folder / CONFIG_NAME} says num_vq_tokens {config.num_vq_tokens}, as of the model that this one was "
            f"trained from; by its name its pictures have {known.num_vq_tokens} codes, and so they are drawn",
            stacklevel=4,
        )
        config = replace(config, num_vq_tokens=known.num_vq_tokens)
    sampling = known.sampling if known is not None else sampling_by_codes(config.num_vq_tokens)
    tower = _near(folder, CLIP_VIT_L_336) if config.w_clip_vit else ""
    words = "" if (folder / TOKENIZER_NAME).is_file() else _near(folder, TEXT_TOKENIZER)
    return config, PipelineFile(
        named.image_tokenizer or _near(folder, IMAGE_TOKENIZER),
        sampling if named == PipelineFile() else named.sampling,
        named.vision_tower or tower,
        named.text_tokenizer or words,
    )


def _near(folder: Path, hub_id: str) -> str:
    """The folder of a hub id's name that lies beside `folder`, where there is one; else the id."""
    beside = folder.parent / hub_id.rpartition("/")[2]
    return str(beside) if beside.is_dir() else hub_id


def _with_parts_of(whole: Path, named: PipelineFile) -> PipelineFile:
    tower = whole / VISION_TOWER_FOLDER
    return replace(
        named,
        image_tokenizer=str(whole / IMAGE_TOKENIZER_FOLDER),
        vision_tower=str(tower) if tower.is_dir() else named.vision_tower,
    )


def _image_folder(found: Transformer) -> Path:
    if not found.named.image_tokenizer:
        raise CheckpointError(
            f"{found.folder} does not say which image tokenizer it was trained with; name it (image_tokenizer)"
        )
    try:
        return resolve_folder(found.named.image_tokenizer)
    except CheckpointError as error:
        path = found.folder / PIPELINE_NAME
        said = f"{path}: " if path.is_file() else ""
        raise CheckpointError(f"{said}image_tokenizer: {error}; name another (image_tokenizer)") from error


def _words(found: Transformer) -> TextTokenizer:
    try:
        return TextTokenizer.from_file(found.named.text_tokenizer or found.folder)
    except CheckpointError as error:
        raise CheckpointError(f"text_tokenizer: {error}; name another (text_tokenizer)") from error
