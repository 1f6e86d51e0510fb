"""Configuration of the transformer: one frozen dataclass, JSON in and out, presets as functions.

Also here: the checks that every model's configuration shares.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from showo.errors import ConfigError
from showo.tokens import SPECIAL_TOKENS, Vocabulary

# Keys of the released config.json. The backbone's sizes are not among them: it names microsoft/phi-1_5 instead.
_OFFICIAL_KEYS = frozenset(
    {
        "w_clip_vit",
        "vocab_size",
        "llm_vocab_size",
        "llm_model_path",
        "codebook_size",
        "num_vq_tokens",
        "mask_token_id",
        "load_from_showo",
        "model_name",
        "num_new_special_tokens",
        "pretrained_model_path",
        "tokenizer_path",
    }
)

# Fields that must be at least 1.
_COUNTS = (
    "hidden_size",
    "num_layers",
    "num_heads",
    "intermediate_size",
    "text_vocab_size",
    "codebook_size",
    "num_vq_tokens",
    "max_positions",
    "clip_width",
)
_FLOAT_MAX = 10**300  # larger integers, which JSON may hold, have no float
# More are a slip of the pen, which nothing else would notice in time: no weight has as many places as a sequence.
_AT_MOST = {"max_positions": 2**20, "num_layers": 1000}


def without_bookkeeping(data: Any, kind: type) -> dict[str, Any]:
    """A config.json's dictionary for `kind` without the keys that begin with "_".

    Those (`_class_name`, `_diffusers_version`, `_name_or_path`) say which class and which version of diffusers or
    transformers wrote the file, never a size: nothing in a model depends on them.

    Raises:
        ConfigError: `data` is no dictionary, or of another class than `kind.official_class`, or one that is derived
            from that and named so (`Student_Showo`).
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{kind.__name__}: expected a dictionary, got {type(data).__name__}")
    expected: str = kind.official_class  # type: ignore[attr-defined]
    if "_class_name" in data and not str(data["_class_name"]).endswith(expected):
        raise ConfigError(f"{kind.__name__}: this is a {data['_class_name']}, expected a {expected}")
    return {key: value for key, value in data.items() if not str(key).startswith("_")}


def is_released(data: Any) -> bool:
    """Whether a config.json's content is of a released Show-o, or of one derived from it, and not of this package."""
    return isinstance(data, Mapping) and ("llm_vocab_size" in data or "_class_name" in data)


def reject_unknown(data: Mapping[str, Any], known: Collection[str], kind: type) -> None:
    """ConfigError for keys that are not known, with the likeliest known one."""
    if unknown := _unknown_keys(data, known):
        raise ConfigError(f"{kind.__name__}: unknown keys {unknown}")


def _unknown_keys(data: Mapping[str, Any], known: Collection[str]) -> str:
    hints = []
    for key in sorted(map(str, set(data) - set(known))):
        close = difflib.get_close_matches(key, known, n=1)
        hints.append(f"{key!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    return ", ".join(hints)


def check_types(config: Any) -> None:
    """ConfigError where a field of a frozen dataclass is not of its type; ints become floats, lists become tuples.

    Types: int, float, bool, and tuple[int, ...].
    """
    for field in dataclasses.fields(config):
        value, wanted = getattr(config, field.name), str(field.type)
        if wanted == "float" and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _FLOAT_MAX:
            object.__setattr__(config, field.name, float(value))
        elif wanted == "tuple[int, ...]" and isinstance(value, Sequence) and all(type(item) is int for item in value):
            object.__setattr__(config, field.name, tuple(value))
        elif wanted != type(value).__name__:
            raise ConfigError(f"{type(config).__name__}: {field.name} must be {wanted}, got {value!r}")


@dataclass(frozen=True)
class ShowoConfig:
    """Sizes of a Show-o transformer; the defaults are the released 1.4B model at 256x256.

    num_vq_tokens: image codes of one picture in training (256 for 16x16, 1024 for 32x32).
    max_text_len: text places (128); a text-to-image sequence has one more, for the task token.
    mmu_text_len, mmu_vit_text_len: text places of rows of understanding, where they are not max_text_len (0).
    max_positions: longest sequence that may be asked for.
    qk_layernorm: LayerNorm over every head's q and k before rotation (all released weights have it).
    w_clip_vit: adds the projector from CLIP-ViT features (clip_width wide) into the transformer.
    """

    hidden_size: int = 2048
    num_layers: int = 24
    num_heads: int = 32
    intermediate_size: int = 8192
    partial_rotary_factor: float = 0.5
    rope_theta: float = 10000.0
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    qk_layernorm: bool = True
    text_vocab_size: int = 50295
    codebook_size: int = 8192
    num_vq_tokens: int = 256
    max_text_len: int = 128
    mmu_text_len: int = 0
    mmu_vit_text_len: int = 0
    max_positions: int = 2048
    w_clip_vit: bool = False
    clip_width: int = 1024
    official_class: ClassVar[str] = "Showo"

    def __post_init__(self) -> None:
        check_types(self)
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"ShowoConfig: {name} must be at least 1, got {getattr(self, name)}")
        for name, limit in _AT_MOST.items():
            if getattr(self, name) > limit:
                raise ConfigError(f"ShowoConfig: {name} must be at most {limit}, got {getattr(self, name)}")
        for name in ("rope_theta", "layer_norm_eps", "initializer_range"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"ShowoConfig: {name} must be positive, got {getattr(self, name)}")
        for name in ("max_text_len", "mmu_text_len", "mmu_vit_text_len"):
            value = getattr(self, name)
            if value < 3 and (name == "max_text_len" or value != 0):
                raise ConfigError(f"ShowoConfig: {name} must be at least 3, got {value}")
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"ShowoConfig: hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        from showo_ext import HEAD_DIMS  # here, since it loads torch, which `showo --help` does without

        if self.head_dim not in HEAD_DIMS:
            raise ConfigError(
                f"ShowoConfig: hidden_size {self.hidden_size} and num_heads {self.num_heads} give heads of "
                f"{self.head_dim} numbers; expected one of {', '.join(map(str, HEAD_DIMS))}"
            )
        if not 0 < self.partial_rotary_factor <= 1 or self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ConfigError(
                f"ShowoConfig: partial_rotary_factor {self.partial_rotary_factor} of head size {self.head_dim} gives "
                f"{self.rotary_dim} rotated dims; expected an even number from 2 to {self.head_dim}"
            )
        if self.sequence_length > self.max_positions:
            raise ConfigError(
                f"ShowoConfig: max_text_len {self.max_text_len} and num_vq_tokens {self.num_vq_tokens} need "
                f"{self.sequence_length} places, more than max_positions {self.max_positions}"
            )
        if 3 + self.num_vq_tokens + self.mmu_text_len > self.max_positions:
            raise ConfigError(
                f"ShowoConfig: mmu_text_len {self.mmu_text_len} and num_vq_tokens {self.num_vq_tokens} need "
                f"{3 + self.num_vq_tokens + self.mmu_text_len} places, more than max_positions {self.max_positions}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def rotary_dim(self) -> int:
        """Dims of each head that rotary turns; the rest pass."""
        return int(self.partial_rotary_factor * self.head_dim)

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.text_vocab_size, self.codebook_size)

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    def sequence_length(self) -> int:
        """Length of every padded training row: task + text + soi + codes + eoi."""
        return self.max_text_len + 1 + self.num_vq_tokens + 2

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "showo", **dataclasses.asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ShowoConfig:
        """From our own dictionary or the released config.json's. Raises ConfigError, for unknown keys too."""
        data = without_bookkeeping(data, cls)
        if "llm_vocab_size" in data:
            return _from_official(data)
        model_type = data.pop("model_type", "showo")
        if model_type != "showo":
            raise ConfigError(f"ShowoConfig: model_type is {model_type!r}, expected 'showo'")
        reject_unknown(data, [field.name for field in dataclasses.fields(cls)], cls)
        return cls(**data)

    @classmethod
    def from_json(cls, text: str) -> ShowoConfig:
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"ShowoConfig: not JSON: {error}") from error
        return cls.from_dict(data)

    @classmethod
    def from_file(cls, path: str | Path) -> ShowoConfig:
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def official(*, num_vq_tokens: int = 256, w_clip_vit: bool = False) -> ShowoConfig:
    """The released models: 256 codes (256x256) or 1024 (512x512), with or without the CLIP-ViT projector."""
    return ShowoConfig(num_vq_tokens=num_vq_tokens, w_clip_vit=w_clip_vit)


def tiny(text_vocab_size: int = 2048, **changes: Any) -> ShowoConfig:
    """A model of a few million parameters for 64x64 pictures (8x8 codes), trainable on a CPU."""
    sizes: dict[str, Any] = {
        "hidden_size": 256,
        "num_layers": 6,
        "num_heads": 4,
        "intermediate_size": 1024,
        "text_vocab_size": text_vocab_size,
        "num_vq_tokens": 64,
        "max_text_len": 24,
        "max_positions": 256,
    }
    return ShowoConfig(**{**sizes, **changes})


def _from_official(data: Mapping[str, Any]) -> ShowoConfig:
    if unknown := _unknown_keys(data, _OFFICIAL_KEYS):  # the official class takes any, and uses none
        warnings.warn(
            f"config.json has keys that no released model has, and that are not used: {unknown}", stacklevel=3
        )
    specials = data.get("num_new_special_tokens", len(SPECIAL_TOKENS))
    if specials != len(SPECIAL_TOKENS):
        raise ConfigError(f"ShowoConfig: num_new_special_tokens is {specials}, expected {len(SPECIAL_TOKENS)}")
    config = ShowoConfig(
        text_vocab_size=data["llm_vocab_size"],
        codebook_size=data.get("codebook_size", 8192),
        num_vq_tokens=data.get("num_vq_tokens", 256),
        w_clip_vit=data.get("w_clip_vit", False),
    )
    # Official training may leave a stale size here (it resizes without saving); the weights decide.
    for key, expected in (("vocab_size", config.vocab_size), ("mask_token_id", config.vocabulary.mask_id)):
        if data.get(key, expected) != expected:
            warnings.warn(
                f"config.json says {key} {data[key]}, but {config.text_vocab_size} text ids and "
                f"{config.codebook_size} codes give {expected}; using {expected}",
                stacklevel=3,
            )
    return config
