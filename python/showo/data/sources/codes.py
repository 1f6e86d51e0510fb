"""Parquet shards of pictures that are encoded already: columns key, codes (a list of integers), caption and source.

`caption` is a text or a list of texts that each fit; `source` says which data set a picture is from, and is not read.
Shards of `showo tokenize` also say which image tokenizer their codes are of; others are taken as they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from showo.data.captions import usable_captions
from showo.data.code_shards import Encoding, read_facts
from showo.data.index import Part, open_index
from showo.data.parquet import ParquetRows, open_parquet, scan_row_groups
from showo.data.patterns import find_paths
from showo.data.sample import CaptionedPicture, Picture
from showo.data.sources.config import SourceConfig
from showo.errors import DataError, SampleError

COLUMNS = ("key", "codes", "caption")


class Codes:
    kind = CaptionedPicture

    def __init__(self, config: SourceConfig, cache: Path) -> None:
        self.name, self.clean = config.describe(), config.clean
        paths = find_paths(config.files)
        with open_parquet(paths[0]) as file:
            if missing := [name for name in COLUMNS if name not in file.schema_arrow.names]:
                raise DataError(f"{paths[0]}: no shard of codes, has no column {missing[0]!r}")
        self.rows = ParquetRows(open_index(paths, scan_shard, cache), COLUMNS)

    def __len__(self) -> int:
        return len(self.rows)

    def check_encoding(self, here: Encoding) -> None:
        """Raises DataError where a shard says that its codes were not made as `here`."""
        index = self.rows.files.index
        for path, start, end in zip(index.files, index.text_starts, index.text_starts[1:]):
            said = index.text[start:end].tobytes()
            if said and (there := Encoding.from_json(said)) != here:
                raise DataError(
                    f"{path}: its codes are of {there}, but this training has {here}; train with that image tokenizer "
                    "and resolution, or run showo tokenize with these"
                )

    def __getitem__(self, index: int) -> CaptionedPicture:
        place, values = self.rows.row(index)
        try:
            codes = np.asarray(values.get("codes"), np.int64)
        except (TypeError, ValueError):
            codes = np.empty(0, np.int64)
        if codes.ndim != 1 or not len(codes) or codes.min() < 0:
            raise SampleError(f"{place}: expected codes from 0 on, got {values.get('codes')!r:.60}", "wrong codes")
        captions = usable_captions(values.get("caption"), self.clean, place)
        return CaptionedPicture(str(values.get("key")), Picture(place, codes=codes), captions)


def scan_shard(path: Path) -> Part:
    """Records (rows,) of the shard's row groups; as text, the Encoding of its codes, if it says any."""
    facts = read_facts(path)
    return Part(scan_row_groups(path).records, b"" if facts is None else facts.encoding.to_json().encode())
