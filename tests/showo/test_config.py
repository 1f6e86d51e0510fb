"""ShowoConfig: values, JSON, the released config.json."""

from __future__ import annotations

import warnings

import pytest

from showo.config import ShowoConfig, official, tiny
from showo.errors import ConfigError


def test_official_sizes() -> None:
    config = official()
    assert (config.hidden_size, config.num_layers, config.num_heads, config.intermediate_size) == (2048, 24, 32, 8192)
    assert (config.head_dim, config.rotary_dim, config.vocab_size, config.sequence_length) == (64, 32, 58498, 387)
    assert official(num_vq_tokens=1024).sequence_length == 1155


@pytest.mark.parametrize(
    "config", [official(w_clip_vit=True), tiny(mmu_text_len=30, mmu_vit_text_len=40), tiny(700, num_layers=2)]
)
def test_json_round_trip(config: ShowoConfig) -> None:
    assert ShowoConfig.from_json(config.to_json()) == config


def test_released_config() -> None:
    released = {
        "_class_name": "Showo",
        "_diffusers_version": "0.30.1",
        "w_clip_vit": False,
        "vocab_size": 58498,
        "llm_vocab_size": 50295,
        "llm_model_path": "microsoft/phi-1_5",
        "codebook_size": 8192,
        "num_vq_tokens": 1024,
        "load_from_showo": False,
        "mask_token_id": 58497,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ShowoConfig.from_dict({**official().to_dict(), "_name_or_path": "x"}) == official()
        assert ShowoConfig.from_dict(released) == official(num_vq_tokens=1024)
    with pytest.warns(UserWarning, match="vocab_size 50305.*using 58498"):
        ShowoConfig.from_dict({**released, "vocab_size": 50305})
    with pytest.warns(UserWarning, match=r"not used: 'num_vq_token' .did you mean 'num_vq_tokens'"):
        ShowoConfig.from_dict({**released, "num_vq_token": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hiden_size": 8}, "'hiden_size' .did you mean 'hidden_size'"),
        ({"num_layers": "3"}, "num_layers must be int"),
        ({"num_layers": True}, "num_layers must be int"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"w_clip_vit": 1}, "w_clip_vit must be bool"),
        ({"layer_norm_eps": 0}, "layer_norm_eps must be positive"),
        ({"rope_theta": 10**400}, "rope_theta must be float"),
        ({"rope_theta": float("nan")}, "rope_theta must be positive"),
        ({"num_heads": 30}, "not a multiple of num_heads"),
        ({"num_heads": 128}, "give heads of 16 numbers; expected one of 32, 64, 96, 128"),
        ({"partial_rotary_factor": 0.05}, "expected an even number"),
        ({"partial_rotary_factor": 2.0}, "expected an even number"),
        ({"max_positions": 386}, "need 387 places"),
        ({"max_positions": 10**9}, "max_positions must be at most"),
        ({"max_text_len": 2}, "max_text_len must be at least 3"),
        ({"mmu_text_len": -1}, "mmu_text_len must be at least 3"),
        ({"mmu_vit_text_len": 2}, "mmu_vit_text_len must be at least 3"),
        ({"mmu_text_len": 1790}, "mmu_text_len 1790 and num_vq_tokens 256 need 2049 places, more than max_positions"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
    ],
)
def test_bad_values_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShowoConfig.from_dict({**official().to_dict(), **changes})


def test_not_json() -> None:
    with pytest.raises(ConfigError, match="not JSON"):
        ShowoConfig.from_json("{")
    with pytest.raises(ConfigError, match="expected a dictionary"):
        ShowoConfig.from_json("[1]")
