"""`showo train`: several streams of rows mixed in every step, with their loss weights (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import parametrize

from showo.batch import FeatureSpans
from showo.data.micro_batch import RowBatch
from showo.devices import find_device
from showo.dialogue import SYSTEM_PROMPT
from showo.engine.generate import generate_codes
from showo.engine.pipeline_file import PipelineFile
from showo.errors import ConfigError
from showo.model.clip import ClipTower
from showo.model.code_bits import add_code_bits
from showo.model.image_tokenizer import ImageTokenizer
from showo.model.lora import add_lora
from showo.model.losses import Losses, multimodal_loss
from showo.model.transformer import Showo
from showo.pictures import to_image
from showo.prompting import Prompting
from showo.seeds import drawing_from
from showo.sheets import sheet
from showo.text import clean_text
from showo.tokens import TextTokenizer
from showo.train.blocks import compile_blocks, recompute_activations
from showo.train.config import ShowoTraining
from showo.train.facts import Facts
from showo.train.initial import freeze, initial_model, newest_checkpoint
from showo.train.loop import TrainLoop, train
from showo.train.parallel import Parallel, Replicated
from showo.train.phi import is_phi, showo_from_phi
from showo.train.ranks import Ranks, device_of_rank, joined_ranks
from showo.train.sharded import Sharded
from showo.train.showo_data import Encoders, ShowoData


def check_fit(config: ShowoTraining, images: ImageTokenizer, texts: TextTokenizer) -> int:
    """Side of the code grid. Raises ConfigError where the tokenizers do not fit the model's vocabulary or rows."""
    model = config.model
    side = images.config.side(config.resolution)
    for name, ours, theirs in (
        ("text_vocab_size", model.text_vocab_size, texts.text_vocab_size),
        ("codebook_size", model.codebook_size, images.config.codebook_size),
        ("num_vq_tokens", model.num_vq_tokens, side * side),
    ):
        if ours != theirs:
            raise ConfigError(f"model.{name} must be {theirs}, as the tokenizers and pictures have, got {ours}")
    return side


def train_showo(
    config: ShowoTraining, run: Path, *, resume: bool = False, console: Console | None = None, profile: int = 0
) -> TrainLoop[RowBatch]:
    """Trains a Showo into `run` and returns the finished loop: alone, or as one of the ranks that torchrun has started,
    of which the first one speaks. profile: as `TrainLoop.run`. Raises as `train`, `joined_ranks` and the readers do.
    """
    device = find_device(device_of_rank(config.device))
    with joined_ranks(device, config.pause_timeout, group=config.parallel == "fsdp") as ranks:
        if not ranks.first:
            console = Console(quiet=True, force_terminal=False)
        return train(lambda: showo_loop(config, run, console, ranks), run, resume=resume, ranks=ranks, profile=profile)


class RowLosses(nn.Module):
    """What is called in training: a module, whose calls DDP and FSDP attend to.

    sees: whether there are rows of mmu_vit. Then the projector takes part in every call, also where a rank has none of
    them: all ranks have gradients of the same parameters.
    """

    def __init__(self, model: Showo, weights: Mapping[str, float], *, sees: bool) -> None:
        super().__init__()
        self.model, self.weights, self.sees = model, weights, sees

    def forward(self, rows: RowBatch, smoothing: float = 0.0) -> dict[str, Tensor]:
        """The sums of `Losses`."""
        batch = rows.batch
        if self.sees and batch.features is None:
            nothing = FeatureSpans.none(self.model.config.clip_width, batch.input_ids.device)
            batch = replace(batch, features=nothing)
        with parametrize.cached():  # the tables of `code_bits` are made once
            return multimodal_loss(self.model, batch, weights=self.weights, label_smoothing=smoothing).sums


def showo_loop(
    config: ShowoTraining, run: Path, console: Console | None = None, ranks: Ranks | None = None
) -> TrainLoop[RowBatch]:
    """The models, the data and the losses of `train_showo`, ready to run."""
    ranks = ranks or Ranks()
    device = find_device(device_of_rank(config.device))
    console = console or Console(stderr=True)
    image_folder = newest_checkpoint(config.image_tokenizer)
    image_tokenizer = ImageTokenizer.from_pretrained(image_folder)
    text_tokenizer = TextTokenizer.from_file(config.text_tokenizer)
    side = check_fit(config, image_tokenizer, text_tokenizer)
    model = initial_showo(config, lambda text: console.print(text, markup=False, highlight=False))
    parallel = shared(model, config, ranks, device)
    prompting = Prompting.for_model(config.model, eot=text_tokenizer.eos)
    encoders = Encoders(text_tokenizer, image_tokenizer.to(device), side, open_tower(config, text_tokenizer, device))
    data = ShowoData(config, encoders, device, console, ranks)
    weights = {name: stream.weight for name, stream in config.streams.items()}
    sums = parallel.trained(RowLosses(model, weights, sees=bool(config.mmu_vit.batch)))

    def loss(
        rows: RowBatch, counts: Mapping[str, float], generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        with drawing_from(generator, device) if config.lora.dropout else nullcontext():
            found = Losses(sums(rows, config.objective.label_smoothing), dict(rows.counts), weights)
        return found.total_over(counts), found.means_over(counts)

    def validate(model: Showo, step: int) -> tuple[Mapping[str, float], Mapping[str, Image.Image]]:
        means = held_out_losses(RowLosses(model, weights, sees=False), data.held_out())
        sheets: dict[str, Image.Image] = {}
        if config.validation_prompts:
            texts = text_tokenizer.encode_batch([clean_text(prompt) for prompt in config.validation_prompts])
            codes = generate_codes(model, prompting, texts, seed=config.seed, **config.sampling.to_dict())
            images = image_tokenizer.decode(codes, side, side)
            sheets["generated"] = sheet([to_image(image) for image in images], config.validation_prompts, scale=2)
        return means, sheets

    def attach(folder: Path) -> None:
        model.save_config(folder)
        text_tokenizer.save(folder)
        seen_with = newest_checkpoint(config.vision_tower) if config.mmu_vit.batch else ""
        PipelineFile(image_folder, config.sampling, seen_with).write(folder)

    return TrainLoop(
        config,
        parallel,
        run,
        data=data,
        pools=data.pools,
        loss=loss,
        validate=validate,
        attach=attach,
        console=console,
    )


def shared(model: Showo, config: ShowoTraining, ranks: Ranks, device: torch.device) -> Parallel:
    """The model as the ranks share it. Raises ConfigError where they are not to, or cannot."""
    if config.parallel == "fsdp":
        return Sharded(model, ranks, list(model.showo.model.layers), config.fsdp, config.precision, device)
    if ranks.count > 1 and config.parallel == "none":
        raise ConfigError(f"parallel must be ddp or fsdp, as torchrun has started {ranks.count} processes, got none")
    return (Replicated if ranks.count > 1 else Parallel)(model.to(device), ranks)


def open_tower(config: ShowoTraining, texts: TextTokenizer, device: torch.device) -> ClipTower | None:
    """The vision tower, if there are rows of mmu_vit. Raises ConfigError where it does not fit the model."""
    if not config.mmu_vit.batch:
        return None
    tower = ClipTower.from_pretrained(newest_checkpoint(config.vision_tower)).to(device)
    model, marks = config.model, 3  # task, soi, eoi
    text = model.mmu_vit_text_len or model.max_text_len
    places = marks + len(texts.encode(SYSTEM_PROMPT)) + tower.image_tokens + text
    if not model.w_clip_vit or model.clip_width != tower.width:
        raise ConfigError(
            f"model.w_clip_vit must be true, and model.clip_width {tower.width}, as {config.vision_tower} has, "
            f"got {model.w_clip_vit} and {model.clip_width}"
        )
    if places > model.max_positions:
        raise ConfigError(f"model.max_positions must be at least {places} for mmu_vit, got {model.max_positions}")
    return tower


def initial_showo(config: ShowoTraining, tell: Callable[[str], object]) -> Showo:
    """The model that a training starts from, as its options have it."""
    lora = config.lora
    start = (config.model, config.init_from, config.seed, tell)
    if is_phi(config.init_from):
        model = showo_from_phi(*start, whole=bool(lora.rank))
    else:
        model = initial_model(Showo, *start, whole=bool(lora.rank))
    choose_learned(model, config)
    if config.code_bits and config.init_from:
        tell("init_from: code_bits: the tables are taken as they are, and what codes share of their bits begins at 0")
    recompute_activations(model, config.recompute, draws=bool(lora.dropout))
    if config.compile:
        compile_blocks(model, config.compile)
    return model


def choose_learned(model: Showo, config: ShowoTraining) -> None:
    """Gives the model what a training adds to it, and freezes what the training says, and what no row of it uses.

    Raises as `add_code_bits` and `freeze`.
    """
    if config.model.w_clip_vit and not config.mmu_vit.batch:
        model.mm_projector.requires_grad_(False)
    if config.code_bits:
        add_code_bits(model, keep_tables=bool(config.init_from))
    if config.lora.rank:
        add_lora(model, **asdict(config.lora), base=config.init_from, seed=config.seed)
    freeze(model, config.frozen)


def held_out_losses(sums: RowLosses, batches: Iterable[RowBatch]) -> dict[str, float]:
    """The mean loss of every part over the targets of all batches."""
    found: dict[str, Tensor] = {}
    facts = Facts.of([])
    for rows in batches:
        facts = Facts.of([facts, rows])
        for name, value in sums(rows).items():
            found[name] = found[name] + value if name in found else value
    return {name: float(value) / (facts.counts[name] or 1.0) for name, value in found.items()}
