"""Reading a training's configuration: YAML with key=value overrides, through OmegaConf."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from showo.errors import ConfigError
from showo.files import package_path
from showo.train.config.loop import LoopConfig

T = TypeVar("T", bound="LoopConfig")


def load_config(kind: type[T], source: str, overrides: Sequence[str] = ()) -> T:
    """Reads a YAML file or the bundled configuration of that name, applies `key=value` overrides, checks everything.

    Raises ConfigError, which names the file, or the key that is unknown or of the wrong type.
    """
    configs = package_path("configs")
    path = Path(source) if source.endswith((".yaml", ".yml")) else configs / f"{source}.yaml"
    if not os.path.isfile(path):
        names = sorted(p.name.removesuffix(".yaml") for p in configs.glob("*.yaml"))
        raise ConfigError(f"config: {source!r} is neither a YAML file nor one of {', '.join(names)}")
    merged: Any = OmegaConf.structured(kind)
    OmegaConf.set_readonly(merged, False)
    merged = _merged(merged, _read(path), f"config {source}")
    for override, parsed in zip(overrides, _parsed(overrides), strict=True):
        merged = _merged(merged, parsed, override)
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config {source}: {_reason(error)}") from error
    assert isinstance(config, kind)
    config.check()
    return config


def _read(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeError, OSError) as error:
        raise ConfigError(f"config {path}: not to be read as YAML: {error}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"config {path}: expected keys with values, got a list")
    return loaded


def _merged(config: Any, more: DictConfig, what: str) -> Any:
    try:
        if missing := sorted(OmegaConf.missing_keys(more)):  # OmegaConf would keep the value that was there
            raise ConfigError(f"{what}: {missing[0]} must have a value, got ???")
        return OmegaConf.merge(config, more)
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
        quoted = _QUOTED_OR_RANGE.sub(lambda m: m[1] or f"'{m[2]}'", value)
        try:
            parsed.append(OmegaConf.from_dotlist([key + sign + quoted]))
        except (yaml.YAMLError, UnicodeError, OmegaConfBaseException) as error:
            raise ConfigError(f"{key}={value}: not to be read as YAML: {error}") from error
    return parsed


def to_yaml(config: LoopConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))
