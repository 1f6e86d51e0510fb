"""`pipeline.json` in the folder of a transformer: what a pipeline needs to know that is not in the weights."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from showo.engine.sampling import Sampling
from showo.errors import CheckpointError, ConfigError
from showo.files import atomic_write_text

PIPELINE_NAME = "pipeline.json"
_OPTIONAL = ("vision_tower", "text_tokenizer")


@dataclass(frozen=True)
class PipelineFile:
    """image_tokenizer: a folder, hub id or "bundled:..." whose codes are the transformer's; "" names none.
    sampling: how the model draws where nobody says otherwise.
    vision_tower: a folder or hub id of the CLIP that a transformer with CLIP-ViT sees with; "" names none.
    text_tokenizer: a folder or hub id, where the transformer's folder holds no tokenizer.json; "" names none.
    """

    image_tokenizer: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    vision_tower: str = ""
    text_tokenizer: str = ""

    def write(self, folder: Path) -> None:
        """A folder that is named by a relative path is written as an absolute one: it is read from elsewhere."""
        content = {"image_tokenizer": _from_anywhere(self.image_tokenizer), "sampling": self.sampling.to_dict()}
        for name in _OPTIONAL:
            if source := getattr(self, name):
                content[name] = _from_anywhere(source)
        atomic_write_text(folder / PIPELINE_NAME, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> PipelineFile:
        """That of a transformer's folder; the defaults where there is none. Raises CheckpointError for a wrong one."""
        path = folder / PIPELINE_NAME
        if not path.is_file():
            return cls()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            sampling = Sampling.from_dict(content.get("sampling", {}))
            others = {name: str(content.get(name, "")) for name in _OPTIONAL}
            return cls(str(content["image_tokenizer"]), sampling, **others)
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} names no image_tokenizer ({type(error).__name__}: {error})") from error


def _from_anywhere(source: str) -> str:
    return os.path.abspath(source) if os.path.isdir(source) else source
