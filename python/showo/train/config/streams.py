"""What rows a training's steps hold, and where their samples come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from showo.data.sources.config import SourceConfig
from showo.errors import ConfigError
from showo.intervals import NOT_NEGATIVE, within


def check_sources(prefix: str, data: Sequence[SourceConfig], held_out: Sequence[SourceConfig]) -> None:
    """Raises ConfigError, which names the key, where there is nothing to train on, or it is held out as well."""
    if not data:
        raise ConfigError(f"{prefix}data must be at least one source, got []")
    for name, sources in (("data", data), ("held_out", held_out)):
        for index, source in enumerate(sources):
            source.check(f"{prefix}{name}[{index}]")
    trained = {file for source in data for file in source.files}
    for index, source in enumerate(held_out):
        if both := [file for file in source.files if file in trained]:
            raise ConfigError(f"{prefix}held_out[{index}].files must be other files than those of data, got {both[0]}")


def refuse_codes(prefix: str, data: Sequence[SourceConfig], held_out: Sequence[SourceConfig]) -> None:
    """Raises ConfigError, which names the key, for a source of codes where the pictures themselves are needed."""
    for name, sources in (("data", data), ("held_out", held_out)):
        for index, source in enumerate(sources):
            if source.layout == "codes":
                raise ConfigError(f"{prefix}{name}[{index}].layout must be one of pictures, got codes")


@dataclass
class Stream:
    """Rows of one sequence format in every step, and the weight of their loss (official: t2i 1.0, lm 0.1, mmu 1.0).

    batch: rows of a whole step, in all its micro-batches together; 0 leaves the stream out.
    data, held_out: what is learned, and what only validation sees; none is held out where there is no source.
    """

    batch: int = within(NOT_NEGATIVE, 0)
    weight: float = within(NOT_NEGATIVE, 1.0)
    data: list[SourceConfig] = field(default_factory=list)
    held_out: list[SourceConfig] = field(default_factory=list)
