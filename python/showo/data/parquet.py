"""Rows of parquet files by number. A row group is decoded as a whole, so the last ones that were used are kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from showo.data.index import Index, Part
from showo.data.open_files import Recent
from showo.errors import DataError, SampleError

MAX_GROUP_BYTES = 1 << 30  # of the columns that are read of one row group, decoded
_KEPT_BYTES = 1 << 28
_MAX_OPEN = 8  # files; each keeps its metadata


def open_parquet(path: Path) -> pq.ParquetFile:
    """Raises DataError where the file is no parquet file, or a cut one: what it holds is written at its end."""
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file, or not a whole one: {_reason(error)}") from error


def scan_row_groups(path: Path) -> Part:
    """Records (rows,) of the file's row groups."""
    with open_parquet(path) as file:
        metadata = file.metadata
        return Part.of(((metadata.row_group(group).num_rows,) for group in range(metadata.num_row_groups)), 1)


class ParquetFiles:
    """The files of an index, of which some columns are read: those of `columns` that a file has.

    Can be copied to another process.
    """

    def __init__(self, index: Index, columns: Sequence[str]) -> None:
        self.index, self.columns = index, tuple(columns)
        self._open: Recent[pq.ParquetFile] = Recent(_MAX_OPEN, drop=pq.ParquetFile.close)
        self._groups: Recent[pa.Table] = Recent(_KEPT_BYTES, weight=lambda table: int(table.nbytes))

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetFiles, (self.index, self.columns)

    def row(self, file: int, group: int, row: int) -> dict[str, Any]:
        """The values of one row of a row group, by column.

        Raises:
            DataError: the file is gone or is no longer the one that was indexed.
            SampleError: the row group is damaged or too large, or a text in the row is not UTF-8.
        """
        path = self.index.files[file]
        try:
            self.index.check_unchanged(file, os.stat(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        table = self._groups.get((file, group), lambda: self._read(file, group))
        try:
            return {name: table.column(name)[row].as_py() for name in table.column_names}
        except UnicodeDecodeError as error:
            raise SampleError(f"{path}: row {row} of group {group}: {error}", "text is not UTF-8") from error

    def _read(self, file: int, group: int) -> pa.Table:
        path = self.index.files[file]
        opened = self._open.get(file, lambda: open_parquet(path))
        names = [name for name in self.columns if name in opened.schema_arrow.names]
        metadata = opened.metadata.row_group(group)
        columns = [metadata.column(i) for i in range(metadata.num_columns)]
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] in names)
        if size > MAX_GROUP_BYTES:
            raise SampleError(f"{path}: row group {group} has {size} bytes, more than {MAX_GROUP_BYTES}", "too large")
        try:
            # One thread: a pool of threads does not outlive a fork, by which workers may start.
            return opened.read_row_group(group, columns=names, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise SampleError(f"{path}: row group {group}: {_reason(error)}", "damaged row group") from error


class ParquetRows:
    """All rows of an index of row groups (`scan_row_groups`), numbered through. Can be copied to another process."""

    def __init__(self, index: Index, columns: Sequence[str]) -> None:
        self.files = ParquetFiles(index, columns)
        self.starts = np.concatenate([[0], np.cumsum(index.records[:, 0])])
        if not len(self):
            raise DataError(f"{index.files[0]}{' ...' if len(index.files) > 1 else ''}: no rows")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def row(self, number: int) -> tuple[str, dict[str, Any]]:
        """Where a row is, as "file: row 3 of group 0", and its values. Raises as `ParquetFiles.row`."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        place = int(np.searchsorted(self.starts, number, "right")) - 1
        file, _ = self.files.index.locate(place)
        group, row = place - int(self.files.index.starts[file]), number - int(self.starts[place])
        return f"{self.files.index.files[file]}: row {row} of group {group}", self.files.row(file, group, row)


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0]
