"""Reading a training's configuration: YAML with key=value overrides, through OmegaConf."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from showo.errors import ConfigError
from showo.files import package_path
from showo.train.config.loop import LoopConfig

T = TypeVar("T", bound="LoopConfig")


def load_config(kind: type[T], source: str, overrides: Sequence[str] = ()) -> T:
    """Reads a YAML file or the bundled configuration of that name, applies `key=value` overrides, checks everything.

    A file may have a key `base`: another configuration, whose keys hold unless the file has its own. A list takes the
    place of a list, and `${t2i.data}` stands for the value of another key.

    Raises ConfigError, which names the file, or the key that is unknown or of the wrong type.
    """
    schema: Any = OmegaConf.structured(kind)
    OmegaConf.set_readonly(schema, False)
    keys = OmegaConf.create()  # without types until all are together, as ${...} may stand for keys of another file
    given = list(zip(overrides, _parsed(overrides), strict=True))
    for what, more in (*_with_bases(_find(source, Path())), *given):
        if missing := _without_value(OmegaConf.to_container(more)):  # OmegaConf would keep the value that was there
            raise ConfigError(f"{what}: {missing[0]} must have a value, got ???")
        with _errors_of(what):
            keys.merge_with(more)
    try:
        with _errors_of(f"config {source}"):
            config = OmegaConf.to_object(OmegaConf.merge(schema, keys))
    except ConfigError:
        for what, more in given:  # each by itself, to name the one whose type is wrong; to check it first takes long
            if "${" not in what:
                with _errors_of(what):
                    OmegaConf.merge(schema, more)
        raise
    assert isinstance(config, kind)
    config.check()
    return config


def _find(source: str, folder: Path) -> Path:
    """The bundled configuration of that name, or the YAML file at that path, which begins in `folder`."""
    configs = package_path("configs")
    path = folder / source if source.endswith((".yaml", ".yml")) else configs / f"{source}.yaml"
    if not os.path.isfile(path):
        names = sorted(p.name.removesuffix(".yaml") for p in configs.glob("*.yaml"))
        raise ConfigError(f"config: {source!r} is neither a YAML file nor one of {', '.join(names)}")
    return path


def _with_bases(path: Path) -> list[tuple[str, DictConfig]]:
    """What names a file in messages, and its keys, after those of the files that it stands on, the lowest one first."""
    found: list[tuple[str, DictConfig]] = []
    seen: set[Path] = set()
    while True:
        seen.add(path.resolve())
        keys = _read(path)
        base = keys.pop("base", None)
        found.insert(0, (f"config {path}", keys))
        if base is None:
            return found
        if not isinstance(base, str):
            raise ConfigError(f"config {path}: base must be a YAML file or the name of a configuration, got {base}")
        path = _find(base, path.parent)
        if path.resolve() in seen:
            raise ConfigError(f"config {path}: it is its own base")


def _read(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeError, OSError) as error:
        raise ConfigError(f"config {path}: not to be read as YAML: {error}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"config {path}: expected keys with values, got a list")
    return loaded


def _without_value(keys: Any, prefix: str = "") -> list[str]:
    """Full names of the keys whose value is ???."""
    if not isinstance(keys, dict):
        return [prefix.removesuffix(".")] if keys == MISSING else []
    return [name for key, value in keys.items() for name in _without_value(value, f"{prefix}{key}.")]


@contextmanager
def _errors_of(what: str) -> Iterator[None]:
    """What OmegaConf refuses inside is an error of `what`."""
    try:
        yield
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a dictionary where a list is expected
        raise ConfigError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What OmegaConf says, in a line, after the key that it is about."""
    key = getattr(error, "full_key", None)
    return (f"{key}: " if key else "") + str(error).partition("\n")[0]


# What is quoted, or a word with a range of shards, x-{0000..0009}.tar, which YAML would read as the start of a mapping.
_QUOTED_OR_RANGE = re.compile(r"""("[^"]*"|'[^']*')|([^\[\],\s"']*\{\d+\.\.\d+\}[^\[\],\s"']*)""")


def _parsed(overrides: Sequence[str]) -> list[DictConfig]:
    """Every override as a configuration.

    Raises ConfigError for what is not `key=value`, and for a list that is given twice: of texts=[x-{0,1}.tar] a shell
    makes two words; one would count.
    """
    pairs = [override.partition("=") for override in overrides]
    lists = [key for key, _, value in pairs if value.startswith("[")]
    if len(set(lists)) < len(lists):
        key = next(key for key in lists if lists.count(key) > 1)
        raise ConfigError(f"config: {key} is given {lists.count(key)} times; quote it if a shell expands its braces")
    parsed = []
    for key, sign, value in pairs:
        if not key or not sign:
            raise ConfigError(f"{key + sign + value!r}: expected key=value, such as optimizer.lr=3e-4")
        quoted = _QUOTED_OR_RANGE.sub(lambda m: m[1] or f"'{m[2]}'", value) or "''"  # KEY= is the empty text
        try:
            parsed.append(OmegaConf.from_dotlist([key + sign + quoted]))
        except (yaml.YAMLError, UnicodeError, OmegaConfBaseException) as error:
            raise ConfigError(f"{key}={value}: not to be read as YAML: {error}") from error
    return parsed


def to_yaml(config: LoopConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))
