"""A small random model and vocabulary that all tests of the `showo` package share."""

from __future__ import annotations

import pytest
import torch

from showo.config import ShowoConfig
from showo.model.transformer import Showo
from showo.prompting import Prompting
from showo_ext import reference

EOT = 39


def small_config(**changes: object) -> ShowoConfig:
    sizes: dict[str, object] = {
        "hidden_size": 64,
        "num_layers": 3,
        "num_heads": 2,
        "intermediate_size": 96,
        "text_vocab_size": 40,
        "codebook_size": 64,
        "num_vq_tokens": 16,
        "max_text_len": 8,
        "max_positions": 64,
    }
    return ShowoConfig(**{**sizes, **changes})  # type: ignore[arg-type]


def small_model(seed: int = 0, **changes: object) -> Showo:
    """Random weights large enough that attention and logits are far from uniform."""
    torch.manual_seed(seed)
    model = Showo(small_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def config() -> ShowoConfig:
    return small_config()


@pytest.fixture
def model() -> Showo:
    return small_model()


@pytest.fixture
def model64() -> Showo:
    """The same in fp64, with the plain-torch attention."""
    model = small_model().double()
    model.attend = reference.omni_attention
    return model


@pytest.fixture
def prompting(config: ShowoConfig) -> Prompting:
    return Prompting(config.vocabulary, eot=EOT, max_text_len=config.max_text_len)
