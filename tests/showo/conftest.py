"""A small random model and vocabulary that all tests of the `showo` package share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from showo.config import ShowoConfig
from showo.model.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from showo.model.transformer import Showo
from showo.prompting import Prompting
from showo.tokens import END_OF_TEXT, TextTokenizer
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
def clip_model64() -> Showo:
    """With a projector of features 24 wide, in fp64, with the plain-torch attention."""
    model = small_model(w_clip_vit=True, clip_width=24, max_positions=96).double()
    model.attend = reference.omni_attention
    return model


@pytest.fixture
def prompting(config: ShowoConfig) -> Prompting:
    return Prompting(config.vocabulary, eot=EOT, max_text_len=config.max_text_len)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: 16x16 pictures of 4x4 codes, bytes as text."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    text = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text.decoder = decoders.ByteLevel()
    text.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    TextTokenizer(text).save(folder / "showo")
    config = ShowoConfig(
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        text_vocab_size=257,
        codebook_size=64,
        num_vq_tokens=16,
        max_text_len=20,
        max_positions=128,
    )
    model = Showo(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
    model.save_pretrained(folder / "showo", dtype=torch.float16)
    sizes = ImageTokenizerConfig(
        bits=6,
        channels=8,
        encoder_multipliers=(1, 1, 1),
        encoder_blocks=(1, 1, 1),
        decoder_multipliers=(1, 1, 1),
        decoder_blocks=(1, 1, 1),
        norm_groups=4,
    )
    ImageTokenizer(sizes).save_pretrained(folder / "image_tokenizer")
    return folder


@pytest.fixture(scope="session")
def unreadable(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with damaged weights: whoever is told of another mistake is told before they are read."""
    folder = tmp_path_factory.mktemp("unreadable")
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    for weights in folder.rglob("*.safetensors"):
        weights.write_bytes(b"no weights")
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    pixels = torch.randint(256, (30, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(path)
    return path
