"""The sources of a training: opened and checked before any work, and known again when it goes on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from showo.data.faults import Pool, open_pool
from showo.data.patterns import find_paths
from showo.data.sample import Sample
from showo.data.sources.config import SourceConfig
from showo.data.sources.imagenet import class_folders, scan_folder
from showo.errors import CheckpointError, ConfigError, MissingDataError


def check_apart(learned: Mapping[str, Sequence[SourceConfig]], held_out: Mapping[str, Sequence[SourceConfig]]) -> None:
    """Raises ConfigError for a file that is learned and held out, whichever patterns name it.

    Sources by the keys that the configuration has them under, such as "t2i.data": the message names both.
    """
    learners: dict[Path, str] = {}
    for key, sources in learned.items():
        for _, path in _real_paths(sources):
            learners.setdefault(path, key)
    for key, sources in held_out.items():
        for number, path in _real_paths(sources):
            for place in (path, *path.parents):
                if place in learners:
                    raise ConfigError(
                        f"{key}[{number}].files must be other files than those of {learners[place]}, got {path}"
                    )


def _real_paths(sources: Sequence[SourceConfig]) -> Iterator[tuple[int, Path]]:
    """The number of a source, and where a file of it lies, whatever links lead there. What is missing is left out."""
    for number, source in enumerate(sources):
        for pattern in source.files:
            with suppress(MissingDataError):
                yield from ((number, path.resolve()) for path in find_paths([pattern]))


def open_samples(key: str, sources: Sequence[SourceConfig], kinds: tuple[type[Sample], ...], seed: int) -> Pool:
    """The pool of the sources that the configuration has under `key`.

    Raises as `open_pool`, and ConfigError for a source whose samples are of none of these kinds.
    """
    pool = open_pool(sources, seed)
    for index, source in enumerate(pool.sources):
        if not issubclass(source.kind, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            found = source.kind.__name__
            raise ConfigError(f"{key}[{index}] must be a source of {wanted}, got {source.name}, a source of {found}")
    return pool


@dataclass(frozen=True)
class SourceFacts:
    """What the samples of a source hang on, beside its configuration.

    samples: how many there are: the shuffled order is one of so many. files: checksum of the names and sizes of the
    files, in their order; copies of the files have the same.
    """

    name: str
    samples: int
    files: str


def facts_of(pools: Mapping[str, Pool]) -> dict[str, list[SourceFacts]]:
    """Of the sources of every stream, as they are now."""
    return {
        stream: [
            SourceFacts(source.name, len(source), _checksum(config))
            for source, config in zip(pool.sources, pool.configs, strict=True)
        ]
        for stream, pool in pools.items()
    }


def facts_to_json(facts: Mapping[str, Sequence[SourceFacts]]) -> dict[str, Any]:
    return {stream: [asdict(each) for each in sources] for stream, sources in facts.items()}


def changed_sources(before: Any, now: Mapping[str, Sequence[SourceFacts]]) -> list[str]:
    """Which sources are no longer as `facts_to_json` noted them: "t2i: webdataset a.tar had 40 samples and has 80".

    Streams that the note does not have are taken as they are. Raises CheckpointError for what is no such note.
    """
    try:
        noted = {stream: [SourceFacts(**each) for each in sources] for stream, sources in before.items()}
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"what it says of the data cannot be read: {error}") from error
    return [
        f"{stream}: {new.name} had {old.samples} samples and has {_now(old, new)}"
        for stream, sources in now.items()
        for old, new in zip(noted.get(stream, ()), sources)
        if (old.samples, old.files) != (new.samples, new.files)
    ]


def _now(old: SourceFacts, new: SourceFacts) -> str:
    return str(new.samples) if old.samples != new.samples else f"{new.samples} of other files"


def _checksum(config: SourceConfig) -> str:
    """Of the names and sizes of all files of a source; of folders of classes, the names of their pictures."""
    digest = hashlib.sha256()
    for path in find_paths([*config.files, *config.captions, *filter(None, [config.class_names])]):
        if path.is_dir():
            for folder in class_folders(path):
                names = scan_folder(folder)
                digest.update(os.fsencode(folder.name) + names.records.tobytes() + names.text)
        else:
            digest.update(os.fsencode(path.name) + f" {path.stat().st_size}\n".encode())
    return digest.hexdigest()
