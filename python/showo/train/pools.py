"""The sources of a training, opened and checked before any work."""

from __future__ import annotations

from collections.abc import Sequence

from showo.data.faults import Pool, open_pool
from showo.data.patterns import find_paths
from showo.data.sample import Sample
from showo.data.sources.config import SourceConfig
from showo.errors import ConfigError


def check_apart(prefix: str, data: Sequence[SourceConfig], held_out: Sequence[SourceConfig]) -> None:
    """Raises ConfigError, which names the key, for a file that is learned and held out, whichever patterns name it."""
    learned = {path.resolve() for source in data for path in find_paths(source.files)}
    for index, source in enumerate(held_out):
        for path in find_paths(source.files):
            if learned & {path.resolve(), *path.resolve().parents}:
                raise ConfigError(f"{prefix}held_out[{index}].files must be other files than those of data, got {path}")


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
