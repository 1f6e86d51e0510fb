"""Sources of samples: one class for every layout in which data come, each read where the files lie."""

from __future__ import annotations

import importlib
from pathlib import Path

from showo.data.index import default_cache
from showo.data.sample import Source
from showo.data.sources.config import SourceConfig
from showo.errors import ConfigError

LAYOUTS = {
    "webdataset": "WebDataset",
    "imagenet": "ImageNet",
    "codes": "Codes",
    "tar_text": "TarText",
    "parquet_text": "ParquetText",
    "llava": "Llava",
    "sequences": "Sequences",
}  # module of this package, and its class


def open_source(config: SourceConfig, cache: Path | None = None) -> Source:
    """The source that a configuration describes; what its files hold is indexed first where that was not done before.

    cache: the folder of indices; None: `default_cache()`.

    Raises:
        ConfigError: the layout is not known.
        DataError: files are missing, damaged as a whole, or not of this layout; there are no samples.
        OutputError: the folder of indices cannot be written.
    """
    if config.layout not in LAYOUTS:
        raise ConfigError(f"layout must be one of {', '.join(LAYOUTS)}, got {config.layout!r}")
    module = importlib.import_module(f"showo.data.sources.{config.layout}")
    source: Source = getattr(module, LAYOUTS[config.layout])(config, default_cache() if cache is None else cache)
    return source
