"""Shards of codes as files: parquet, whose metadata says what the codes were made with, of what, and what was skipped.

Codes mean something to one image tokenizer only, and to pictures of one size. So every shard carries both, wherever it
is moved; who trains on it compares them with what the training has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from showo.data.faults import Fault
from showo.data.parquet import open_parquet
from showo.errors import DataError
from showo.files import atomic_path
from showo.model.image_tokenizer import ImageTokenizer
from showo.pictures import PREPROCESSING

_KEY = b"showo"  # of the metadata
_ROWS_PER_GROUP = 1000  # which are decoded together, whichever row is asked for


@dataclass(frozen=True)
class Encoding:
    """What decides which codes a picture has.

    image_tokenizer: how it was called, for messages; another name for the same encoder makes no difference.
    encoder: checksum of its encoder's weights. A decoder that was trained further draws the same codes, better.
    resolution: sides of the pictures, in pixels. preprocessing: `showo.pictures.PREPROCESSING`.
    """

    image_tokenizer: str = field(compare=False)
    encoder: str
    resolution: int
    preprocessing: int

    @classmethod
    def of(cls, images: ImageTokenizer, name: str, resolution: int) -> Encoding:
        """That of an image tokenizer, called `name`, here and now."""
        return cls(name, images.encoder_checksum(), resolution, PREPROCESSING)

    @classmethod
    def from_json(cls, text: str | bytes) -> Encoding:
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        return (
            f"{self.image_tokenizer} (encoder {self.encoder[:12]}) at {self.resolution} pixels, preprocessing "
            f"{self.preprocessing}"
        )


@dataclass(frozen=True)
class Origin:
    """What the shards of a folder are made of: a change of any of these would mix two data sets.

    files: checksum of the sizes and times of the files. samples: of the source. shard_size: samples a shard is made of.
    """

    source: str
    files: str
    samples: int
    shard_size: int


@dataclass(frozen=True)
class ShardFacts:
    """What a shard says of itself. faults: of the samples that it was made of and does not hold."""

    encoding: Encoding
    origin: Origin
    faults: tuple[Fault, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> ShardFacts:
        data = json.loads(text)
        faults = tuple(Fault(**fault) for fault in data["faults"])
        return cls(Encoding(**data["encoding"]), Origin(**data["origin"]), faults)


@dataclass(frozen=True)
class ShardRows:
    """codes: int64 [pictures, N]; keys and captions of those pictures."""

    keys: Sequence[str]
    codes: np.ndarray
    captions: Sequence[Sequence[str]]


def write_shard(path: Path, rows: ShardRows, facts: ShardFacts, codebook_size: int) -> None:
    """The shard is whole or absent. Raises OutputError where it cannot be written, such as on a full disk."""
    count, each = rows.codes.shape
    kind = pa.uint16() if codebook_size <= 2**16 else pa.uint32()
    starts = np.arange(0, (count + 1) * each, each, dtype=np.int32) if each else np.zeros(count + 1, np.int32)
    columns = {
        "key": pa.array(rows.keys, pa.string()),
        "codes": pa.ListArray.from_arrays(starts, pa.array(rows.codes.reshape(-1), kind)),
        "caption": pa.array([list(some) for some in rows.captions], pa.list_(pa.string())),
        "source": pa.array([facts.origin.source] * count, pa.string()),
    }
    table = pa.table(columns).replace_schema_metadata({_KEY: facts.to_json()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, row_group_size=_ROWS_PER_GROUP, compression="zstd", use_dictionary=["source"])


def read_facts(path: Path) -> ShardFacts | None:
    """What the shard says of itself; None where it says nothing, as when another program has written it.

    Raises DataError where the file is no parquet file, or says what no ShardFacts has written.
    """
    with open_parquet(path) as file:
        text = (file.schema_arrow.metadata or {}).get(_KEY)
    try:
        return None if text is None else ShardFacts.from_json(text)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: its metadata does not say what its codes are of: {error!r:.100}") from error
