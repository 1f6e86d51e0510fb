"""Show-o: one transformer that understands and generates images and text.

    import showo
    pipe = showo.ShowoPipeline.from_pretrained()  # the bundled model
    model = showo.Showo.from_pretrained(folder_or_hub_id)

The heavy modules load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from showo.config import ShowoConfig as ShowoConfig
    from showo.engine.pipeline import ShowoPipeline as ShowoPipeline
    from showo.model.image_tokenizer import ImageTokenizer as ImageTokenizer
    from showo.model.image_tokenizer import ImageTokenizerConfig as ImageTokenizerConfig
    from showo.model.transformer import Showo as Showo
    from showo.tokens import TextTokenizer as TextTokenizer
    from showo.tokens import Vocabulary as Vocabulary

_HOME = {
    "ShowoPipeline": "showo.engine.pipeline",
    "ShowoConfig": "showo.config",
    "Vocabulary": "showo.tokens",
    "TextTokenizer": "showo.tokens",
    "Showo": "showo.model.transformer",
    "ImageTokenizer": "showo.model.image_tokenizer",
    "ImageTokenizerConfig": "showo.model.image_tokenizer",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'showo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
