"""Training configuration.

Dataclasses, read from YAML with key=value overrides through OmegaConf (unknown keys and wrong types are errors).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from showo.config import ShowoConfig
from showo.errors import ConfigError
from showo.files import package_path
from showo.model.image_tokenizer import ImageTokenizerConfig
from showo.train.intervals import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, SHARE_BELOW_ONE, check_intervals, within

T = TypeVar("T", bound="LoopConfig")


@dataclass
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to `final_lr_ratio * lr`.

    Grouping as officially: only biases are not decayed.
    """

    lr: float = within(NOT_NEGATIVE, 1e-4)
    final_lr_ratio: float = within(SHARE, 0.0)
    warmup_steps: int = within(NOT_NEGATIVE, 5000)
    betas: tuple[float, float] = within(SHARE_BELOW_ONE, (0.9, 0.999))
    eps: float = within(POSITIVE, 1e-8)
    weight_decay: float = within(NOT_NEGATIVE, 0.01)
    max_grad_norm: float = within(NOT_NEGATIVE, 0.0)  # 0: no clipping


@dataclass
class LoopConfig:
    """What every training shares.

    `max_seconds` > 0 ends a run early (with a checkpoint); the schedule still follows `steps`.
    """

    steps: int = within(COUNT, MISSING)
    seed: int = 10086
    precision: str = "fp32"  # or bf16 (autocast)
    accumulate: int = within(COUNT, 1)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    log_every: int = within(COUNT, 10)
    validate_every: int = within(COUNT, 500)
    checkpoint_every: int = within(COUNT, 500)
    keep_checkpoints: int = within(COUNT, 2)
    max_seconds: float = within(NOT_NEGATIVE, 0.0)
    device: str = "cpu"

    def check(self) -> None:
        """Raises ConfigError, which names the key, for values out of range or that make no sense together."""
        check_intervals(self)
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision must be fp32 or bf16, got {self.precision!r}")


@dataclass
class PictureData:
    train: list[str] = field(default_factory=lambda: ["bundled:emoji/train-*.tar"])
    val: list[str] = field(default_factory=lambda: ["bundled:emoji/val-*.tar"])
    size: int = within(COUNT, 64)

    def check(self) -> None:
        """Raises ConfigError where there is nothing to read."""
        for name, patterns in (("train", self.train), ("val", self.val)):
            if not patterns:
                raise ConfigError(f"data.{name} must be at least one shard, got []")


@dataclass
class TokenizerTraining(LoopConfig):
    """`showo train-tokenizer`."""

    batch: int = within(COUNT, 32)
    model: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)
    data: PictureData = field(default_factory=PictureData)
    init_from: str = ""  # a checkpoint folder whose weights start this run
    train_encoder: bool = True  # False: codes stay what they are, only the decoder learns to draw them better
    augment: float = within(SHARE, 0.75)  # share of pictures that are turned, scaled, moved, mirrored
    l1_weight: float = within(NOT_NEGATIVE, 0.2)  # beside 1.0 x squared error
    gradient_weight: float = within(NOT_NEGATIVE, 0.2)  # L1 of pixel differences: sharp edges without a critic
    quantizer_weight: float = within(NOT_NEGATIVE, 0.1)  # of the commitment term, as officially
    entropy_weight: float = within(NOT_NEGATIVE, 0.015)  # official: 0.1 x the mean over bits, half of this

    def check(self) -> None:
        super().check()
        self.data.check()
        if self.data.size % self.model.downsampling:
            raise ConfigError(f"data.size must be a multiple of {self.model.downsampling}, got {self.data.size}")


@dataclass
class Stream:
    """Rows of one sequence format in every step, and the weight of its loss (official: t2i 1.0, lm 0.1, mmu 1.0)."""

    batch: int = within(NOT_NEGATIVE, 1)
    weight: float = within(NOT_NEGATIVE, 1.0)


@dataclass
class ShowoTraining(LoopConfig):
    """`showo train`."""

    model: ShowoConfig = field(default_factory=ShowoConfig)
    image_tokenizer: str = "bundled:tiny/image_tokenizer"
    text_tokenizer: str = "bundled:tiny/showo"
    init_from: str = ""  # a checkpoint folder whose weights start this run
    data: PictureData = field(default_factory=PictureData)
    texts: list[str] = field(default_factory=lambda: ["bundled:text/train-*.tar"])
    t2i: Stream = field(default_factory=Stream)
    lm: Stream = field(default_factory=lambda: Stream(weight=0.1))
    mmu: Stream = field(default_factory=Stream)
    condition_dropout: float = within(SHARE, 0.1)
    questions: list[str] = field(default_factory=list)  # mmu rows may ask one of these before the caption
    question_share: float = within(SHARE, 0.0)
    validation_prompts: list[str] = field(default_factory=list)

    @property
    def uses_pictures(self) -> bool:
        return self.t2i.batch + self.mmu.batch > 0

    def check(self) -> None:
        super().check()
        if not (self.uses_pictures or self.lm.batch):
            raise ConfigError("t2i.batch, lm.batch or mmu.batch must be at least 1, got 0 for each")
        if self.uses_pictures:
            self.data.check()
        if self.lm.batch and not self.texts:
            raise ConfigError(f"texts must be at least one shard where lm.batch is {self.lm.batch}, got []")
        if self.question_share and not self.questions:
            raise ConfigError(f"questions must be at least one where question_share is {self.question_share}, got []")


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
