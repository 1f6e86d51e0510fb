"""Tars of texts: every .txt file is a document."""

from __future__ import annotations

from pathlib import Path

from showo.data.open_files import decode_text
from showo.data.patterns import find_paths
from showo.data.sample import Document
from showo.data.sources.config import SourceConfig
from showo.data.sources.tar_samples import TarSamples
from showo.data.tar_scan import scan_texts
from showo.errors import SampleError


class TarText:
    kind = Document

    def __init__(self, config: SourceConfig, cache: Path) -> None:
        self.name = config.describe()
        self.tars = TarSamples(find_paths(config.files), scan_texts, cache)

    def __len__(self) -> int:
        return len(self.tars)

    def __getitem__(self, index: int) -> Document:
        path, key, files = self.tars.read(index, ("txt",))
        text = decode_text(files["txt"], f"{path}: {key}.txt")
        if not text.strip():
            raise SampleError(f"{path}: {key}.txt is empty", "no text")
        return Document(key, text)
