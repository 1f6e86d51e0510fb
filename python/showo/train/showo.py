"""`showo train`: the three streams (t2i, lm, mmu) mixed in every step, with their loss weights (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from showo.batch import Batch
from showo.data.shards import load_images, read_pairs, read_texts
from showo.data.streams import PictureStream, Question, TextStream, encode_pictures
from showo.devices import find_device
from showo.engine.generate import generate_codes
from showo.engine.pipeline import name_image_tokenizer
from showo.errors import ConfigError
from showo.model.image_tokenizer import ImageTokenizer
from showo.model.losses import Losses, multimodal_loss
from showo.model.transformer import Showo
from showo.pictures import to_image
from showo.prompting import Prompting
from showo.seeds import seeded_generator
from showo.sheets import sheet
from showo.text import clean_text
from showo.tokens import TextTokenizer
from showo.train.config import ShowoTraining
from showo.train.initial import initial_model
from showo.train.loop import TrainLoop, train


def check_fit(config: ShowoTraining, images: ImageTokenizer, texts: TextTokenizer) -> int:
    """Side of the code grid. Raises ConfigError where the tokenizers do not fit the model's vocabulary or rows."""
    model = config.model
    side, rest = divmod(config.data.size, images.config.downsampling)
    if rest:
        raise ConfigError(f"data.size must be a multiple of {images.config.downsampling}, got {config.data.size}")
    for name, ours, theirs in (
        ("text_vocab_size", model.text_vocab_size, texts.text_vocab_size),
        ("codebook_size", model.codebook_size, images.config.codebook_size),
        ("num_vq_tokens", model.num_vq_tokens, side * side),
    ):
        if ours != theirs:
            raise ConfigError(f"model.{name} must be {theirs}, as the tokenizers and pictures have, got {ours}")
    return side


class TrainingStreams:
    """The samples of all formats in use, and which of them make up a step."""

    def __init__(
        self,
        config: ShowoTraining,
        prompting: Prompting,
        image_tokenizer: ImageTokenizer,
        text_tokenizer: TextTokenizer,
    ) -> None:
        self.config = config
        self.pictures: PictureStream | None = None
        self.held_out: PictureStream | None = None
        self.texts: TextStream | None = None
        self.questions: list[Question] = []

        def read_pictures(patterns: list[str]) -> tuple[PictureStream, list[str]]:
            samples = read_pairs(patterns)
            codes = encode_pictures(image_tokenizer, load_images(samples, config.data.size))
            captions = [sample.caption for sample in samples]
            return PictureStream(prompting, codes, text_tokenizer.encode_batch(captions), config.seed), captions

        if config.uses_pictures:
            self.pictures, captions = read_pictures(config.data.train)
            self.held_out, _ = read_pictures(config.data.val)
            self.questions = [Question(question, captions, text_tokenizer) for question in config.questions]
        if config.lm.batch:
            documents = text_tokenizer.encode_batch(read_texts(config.texts))
            self.texts = TextStream(prompting, documents, config.model.sequence_length, config.seed)

    def batch(self, step: int, micro: int, generator: torch.Generator) -> Batch:
        """The padded rows of one micro-batch. Each format goes on where the micro-batch before has ended."""
        config = self.config
        position = step * config.accumulate + micro
        formats: list[Batch] = []
        if self.pictures and (n := config.t2i.batch):
            formats.append(self.pictures.t2i(position * n, n, config.condition_dropout, generator))
        if self.texts and (n := config.lm.batch):
            formats.append(self.texts.lm(position * n, n))
        if self.pictures and (n := config.mmu.batch):
            formats.append(self.pictures.mmu(position * n, n, self.questions, config.question_share, generator))
        return Batch.cat(formats)

    def held_out_batch(self, count: int) -> Batch | None:
        """The same rows in every validation: t2i and mmu of the first held-out pictures, at most `count` of them."""
        if self.held_out is None:
            return None
        generator = seeded_generator(self.config.seed)
        n = min(count, self.held_out.order.n)
        return Batch.cat([self.held_out.t2i(0, n, 0.0, generator), self.held_out.mmu(0, n, [], 0.0, generator)])


def train_showo(config: ShowoTraining, run: Path, *, resume: bool = False, console: Console | None = None) -> TrainLoop:
    """Trains a Showo into `run` and returns the finished loop. Raises as `train` and the readers do."""
    return train(lambda: showo_loop(config, run, console), run, resume=resume)


def showo_loop(config: ShowoTraining, run: Path, console: Console | None = None) -> TrainLoop:
    """The models, the data and the losses of `train_showo`, ready to run."""
    device = find_device(config.device)
    image_tokenizer = ImageTokenizer.from_pretrained(config.image_tokenizer)
    text_tokenizer = TextTokenizer.from_file(config.text_tokenizer)
    side = check_fit(config, image_tokenizer, text_tokenizer)
    model = initial_model(Showo, config.model, config.init_from, config.seed).to(device)
    vocabulary = config.model.vocabulary
    prompting = Prompting.for_model(config.model, eot=text_tokenizer.eos)
    streams = TrainingStreams(config, prompting, image_tokenizer, text_tokenizer)
    weights = {"t2i": config.t2i.weight, "lm": config.lm.weight, "mmu": config.mmu.weight}

    def losses(batch: Batch) -> Losses:
        return multimodal_loss(model, batch.packed(vocabulary.pad).to(device), weights=weights)

    def loss(step: int, micro: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        found = losses(streams.batch(step, micro, generator))
        return found.total, {name: float(value.detach()) for name, value in found.means.items()}

    def validate(step: int) -> tuple[Mapping[str, float], Mapping[str, Image.Image]]:
        batch = streams.held_out_batch(64)
        means = {} if batch is None else losses(batch).means
        sheets: dict[str, Image.Image] = {}
        if config.validation_prompts:
            texts = text_tokenizer.encode_batch([clean_text(prompt) for prompt in config.validation_prompts])
            codes = generate_codes(model, prompting, texts, seed=config.seed)
            images = image_tokenizer.decode(codes.cpu(), side, side)
            sheets["generated"] = sheet([to_image(image) for image in images], config.validation_prompts, scale=2)
        return {name: float(value) for name, value in means.items()}, sheets

    def attach(folder: Path) -> None:
        text_tokenizer.save(folder)
        name_image_tokenizer(folder, config.image_tokenizer)

    rows = config.t2i.batch + config.lm.batch + config.mmu.batch
    units = {
        "images": (config.t2i.batch + config.mmu.batch) * config.accumulate,
        "tokens": rows * config.model.sequence_length * config.accumulate,
    }
    return TrainLoop(config, model, run, loss=loss, validate=validate, units=units, attach=attach, console=console)
