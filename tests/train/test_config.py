"""Training configuration: YAML and overrides, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from showo.errors import ConfigError
from showo.train.config import ShowoTraining, TokenizerTraining, load_config, to_yaml


def test_bundled_configurations_load() -> None:
    assert load_config(ShowoTraining, "tiny").model.num_vq_tokens == 64
    assert load_config(TokenizerTraining, "tiny-image-tokenizer").model.bits == 13


def test_overrides_reach_nested_fields() -> None:
    config = load_config(ShowoTraining, "tiny", ["optimizer.lr=3e-4", "t2i.batch=2", "model.num_layers=1"])
    assert (config.optimizer.lr, config.t2i.batch, config.model.num_layers) == (3e-4, 2, 1)


@pytest.mark.parametrize(
    ("value", "patterns"),
    [
        ("[d/x-{0000..0009}.tar]", ["d/x-{0000..0009}.tar"]),
        ("[bundled:x-{0..1}/{00..11}.tar, b.tar]", ["bundled:x-{0..1}/{00..11}.tar", "b.tar"]),
        ("[\"d/x y-{0..9}.tar\",'z-{0..9}.tar']", ["d/x y-{0..9}.tar", "z-{0..9}.tar"]),
    ],
)
def test_ranges_of_shards_are_overrides_too(value: str, patterns: list[str]) -> None:
    assert load_config(ShowoTraining, "tiny", [f"texts={value}"]).texts == patterns


def test_a_list_given_twice_is_an_error() -> None:
    """As when a shell makes two words of texts=[{a,b}]."""
    with pytest.raises(ValueError, match="texts is given 2 times"):
        load_config(ShowoTraining, "tiny", ["texts=[a]", "texts=[b]"])
    assert load_config(ShowoTraining, "tiny", ["steps=1", "steps=2"]).steps == 2


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = load_config(ShowoTraining, "tiny", ["steps=7"])
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load_config(ShowoTraining, str(tmp_path / "c.yaml")) == config


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("optimizer.learning_rate=1", "learning_rate"),
        ("step=1", "step"),
        ("steps=many", "steps"),
        ("steps=0", "steps"),
        ("model.hidden_size=a", "hidden_size"),
        ("precision=fp8", "precision"),
    ],
)
def test_unknown_keys_and_wrong_values_are_errors(override: str, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        load_config(ShowoTraining, "tiny", [override])


def test_missing_file_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match="tiny-image-tokenizer"):
        load_config(ShowoTraining, "nope")
