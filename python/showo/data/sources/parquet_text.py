"""Parquet files with a column of texts, such as RefinedWeb: every row is a document."""

from __future__ import annotations

from pathlib import Path

from showo.data.index import open_index
from showo.data.parquet import ParquetRows, open_parquet, scan_row_groups
from showo.data.patterns import find_paths
from showo.data.sample import Document
from showo.data.sources.config import SourceConfig
from showo.errors import DataError, SampleError

COLUMNS = ("content", "text")


class ParquetText:
    kind = Document

    def __init__(self, config: SourceConfig, cache: Path) -> None:
        self.name = config.describe()
        paths = find_paths(config.files)
        self.column = _column(paths[0], config.column)
        self.rows = ParquetRows(open_index(paths, scan_row_groups, cache), [self.column])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Document:
        place, values = self.rows.row(index)
        text = values.get(self.column)
        if text is None or not str(text).strip():
            raise SampleError(f"{place}: no text in {self.column!r}", "no text")
        if not isinstance(text, str):
            raise SampleError(f"{place}: expected a text in {self.column!r}, got {type(text).__name__}", "no text")
        return Document(Path(place).name, text)


def _column(path: Path, wanted: str) -> str:
    with open_parquet(path) as file:
        names = file.schema_arrow.names
    for column in [wanted] if wanted else COLUMNS:
        if column in names:
            return column
    raise DataError(f"{path}: no column {wanted or ' or '.join(COLUMNS)!r}; it has {', '.join(names)}")
