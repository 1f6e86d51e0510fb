"""Sources of samples: one class for every layout in which data come, each read where the files lie."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from showo.data.index import default_cache
from showo.data.sample import CaptionedPicture, Document, Sample, Source
from showo.data.sources.config import LAYOUTS, SourceConfig
from showo.data.sources.tar_text import TarText
from showo.data.sources.webdataset import WebDataset


def read_pictures(*files: str) -> list[CaptionedPicture]:
    """All captioned pictures of a few tars (webdataset), in order. Raises SampleError at the first broken one."""
    source = WebDataset(SourceConfig("webdataset", list(files)), default_cache())
    return [source[index] for index in range(len(source))]


def read_documents(*files: str) -> list[Document]:
    """All documents of a few tars (layout tar_text), in order. Raises SampleError at the first broken one."""
    source = TarText(SourceConfig("tar_text", list(files)), default_cache())
    return [source[index] for index in range(len(source))]


def open_source(config: SourceConfig, cache: Path | None = None) -> Source:
    """The source that a configuration describes; what its files hold is indexed first where that was not done before.

    cache: the folder of indices; None: `default_cache()`.

    Raises:
        ConfigError: the configuration makes no sense.
        DataError: files are missing, damaged as a whole, or not of this layout; there are no samples.
        OutputError: the folder of indices cannot be written.
    """
    config.check("data")
    source: Source = _class_of(config.layout)(config, default_cache() if cache is None else cache)
    return source


def kind_of(layout: str) -> type[Sample]:
    """Of what kind the samples of a layout are, which is one of `LAYOUTS`."""
    kind: type[Sample] = _class_of(layout).kind
    return kind


def _class_of(layout: str) -> Any:
    return getattr(importlib.import_module(f"showo.data.sources.{layout}"), LAYOUTS[layout])
