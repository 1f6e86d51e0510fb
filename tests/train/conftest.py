"""Small shards of drawn pictures, so that the trainers' tests need seconds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from torch import Tensor

from showo.data.make_assets import encode_png
from showo.data.make_text_tokenizer import train_text_tokenizer
from showo.data.tar import write_tar
from showo.model.dcp import open_dcp
from showo.model.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from showo.model.weight_files import STATE_NAME, open_tensors
from showo.tokens import TextTokenizer
from showo.train.config import ShowoTraining, load_config
from showo.train.loop import TrainLoop
from showo.train.showo import train_showo


def saved_weights(folder: Path, *, average: bool = False) -> dict[str, Tensor]:
    """Of a checkpoint, as a plain model has them."""
    return {name: read() for name, (_, read) in open_tensors(folder, average=average).items()}


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """All of a checkpoint of a training."""
    return {name: read() for name, (_, read) in open_dcp(folder / STATE_NAME).items()}


def same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether they have the same names, kinds and bits."""
    return a.keys() == b.keys() and all(x.dtype == b[name].dtype and torch.equal(x, b[name]) for name, x in a.items())


def damage(path: Path, kind: int, other: Path, draw: random.Random) -> None:
    """kind: 0 flips a bit, 1 cuts the file off, 2 deletes it, any other one puts the content of `other` there."""
    data = bytearray(path.read_bytes())
    if kind == 0:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    elif kind == 1:
        path.write_bytes(data[: draw.randrange(len(data))])
    elif kind == 2:
        path.unlink()
    else:
        path.write_bytes(other.read_bytes())


def webdataset(*patterns: object) -> str:
    """A list of one source of captioned pictures, as an override gives it."""
    return f"[{{layout: webdataset, files: [{', '.join(map(str, patterns))}]}}]"


COLOURS = ("red", "green", "blue", "orange", "purple", "black", "teal", "brown")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train-0000.tar (16 pictures) and val-0000.tar (4) of 32x32 circles and squares with captions."""
    folder = tmp_path_factory.mktemp("shards")
    samples = []
    for shape in ("circle", "square"):
        for colour in COLOURS:
            image = Image.new("RGB", (32, 32), "white")
            draw = ImageDraw.Draw(image)
            (draw.ellipse if shape == "circle" else draw.rectangle)((6, 6, 26, 26), fill=colour)
            samples.append((f"{colour}-{shape}", encode_png(image), f"{colour} {shape}"))
    for name, part in (("train", samples), ("val", samples[::4])):
        files = [f for key, png, text in part for f in ((f"{key}.png", png), (f"{key}.txt", text.encode()))]
        write_tar(folder / f"{name}-0000.tar", files)
    return folder


WORDS = [f"{colour} {shape}" for colour in ("red", "green", "blue", "orange") for shape in ("circle", "square")]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> dict[str, Path]:
    """An untrained image tokenizer (32x32 -> 4x4 codes of 6 bits) and a small text tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizers")
    torch.manual_seed(0)
    config = ImageTokenizerConfig(6, 8, (1, 1, 1, 2), (1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 1, 1), 4)
    ImageTokenizer(config).save_pretrained(folder / "image_tokenizer")
    train_text_tokenizer(WORDS, ["some text to read"] * 20, vocab_size=300).save(folder / "text")
    return {"pictures": pictures, "image_tokenizer": folder / "image_tokenizer", "text": folder / "text"}


def small_training(folders: dict[str, Path], *overrides: str) -> ShowoTraining:
    words = TextTokenizer.from_file(folders["text"]).text_vocab_size
    sizes = (
        "hidden_size=32 num_layers=2 num_heads=1 intermediate_size=64 codebook_size=64 num_vq_tokens=16 "
        "max_text_len=20 mmu_text_len=0"
    )
    shards, held_out = (webdataset(folders["pictures"] / f"{name}-*.tar") for name in ("train", "val"))
    paths = [
        *(
            f"{stream}.{key}={data}"
            for stream in ("t2i", "mmu")
            for key, data in (("data", shards), ("held_out", held_out))
        ),
        "resolution=32",
        f"image_tokenizer={folders['image_tokenizer']}",
        f"text_tokenizer={folders['text']}",
    ]
    batches = ["t2i.batch=4", "lm.batch=1", "mmu.batch=3", "validation_prompts=[red circle]"]
    common = ["steps=6", "checkpoint_every=3", "validate_every=6", "optimizer.warmup_steps=2"]
    model = [f"model.{size}" for size in sizes.split()] + [f"model.text_vocab_size={words}"]
    given = {override.partition("=")[0] for override in overrides}
    defaults = [each for each in (*paths, *batches, *common, *model) if each.partition("=")[0] not in given]
    return load_config(ShowoTraining, "tiny", [*defaults, *overrides])


def train(config: ShowoTraining, run: Path, resume: bool = False) -> TrainLoop:
    return train_showo(config, run, resume=resume, console=Console(quiet=True))
