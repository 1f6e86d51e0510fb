"""A world's prompts, and a small random model that fits the world: 64x64 pixels, 8x8 codes, bytes as text."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from showo.config import ShowoConfig
from showo.data.world.prompts import make_prompts
from showo.data.world.world import WORLD_FILE, World
from showo.engine.pipeline import ShowoPipeline
from showo.model.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from showo.model.transformer import Showo
from showo.tokens import END_OF_TEXT, TextTokenizer

PROMPTS = 48


@pytest.fixture(scope="session")
def world() -> World:
    return World(seed=3, scenes=100)


@pytest.fixture(scope="session")
def world_folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(world, tmp_path_factory.mktemp("world"))


def write_prompts(world: World, folder: Path) -> Path:
    """What the evaluation reads of a world's files; all else follows from world.json."""
    (folder / WORLD_FILE).write_text(json.dumps(world.to_json()))
    (folder / "prompts").mkdir()
    for name, split in (("seen", "train"), ("held-out", "held-out")):
        prompts = list(itertools.islice(make_prompts(world, split), PROMPTS))
        (folder / "prompts" / f"{name}.json").write_text(json.dumps(prompts))
    return folder


@pytest.fixture(scope="session")
def small_pipe() -> ShowoPipeline:
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    text = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text.decoder = decoders.ByteLevel()
    text.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    config = ShowoConfig(
        hidden_size=32,
        num_layers=1,
        num_heads=1,
        intermediate_size=32,
        text_vocab_size=257,
        codebook_size=64,
        num_vq_tokens=64,
        max_text_len=120,
        max_positions=640,
    )
    levels = (1, 1, 1, 1)
    sizes = ImageTokenizerConfig(
        bits=6,
        channels=8,
        encoder_multipliers=levels,
        encoder_blocks=levels,
        decoder_multipliers=levels,
        decoder_blocks=levels,
        norm_groups=4,
    )
    return ShowoPipeline(Showo(config).eval(), ImageTokenizer(sizes).eval(), TextTokenizer(text))


@pytest.fixture(scope="session")
def small_checkpoint(small_pipe: ShowoPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    small_pipe.model.save_pretrained(folder / "showo")
    small_pipe.text_tokenizer.save(folder / "showo")
    small_pipe.image_tokenizer.save_pretrained(folder / "image_tokenizer")
    return folder
