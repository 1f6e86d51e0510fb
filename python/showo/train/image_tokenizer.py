"""`showo train-tokenizer`: the LFQ autoencoder, whose training code the paper never released.

What its loss consists of is in `showo.train.tokenizer_losses`, how pictures are varied in `showo.train.augment`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from showo.data.loader import Loader
from showo.data.picture_batches import PictureBatch, PictureBatches
from showo.data.sample import CaptionedPicture
from showo.data.sources.config import SourceConfig
from showo.devices import find_device, moved_to
from showo.model.image_tokenizer import ImageTokenizer
from showo.pictures import from_pixels, to_image
from showo.sheets import sheet
from showo.train.augment import augment, recolour, seam
from showo.train.config import TokenizerTraining
from showo.train.initial import initial_model
from showo.train.loop import TrainLoop, train
from showo.train.parallel import Parallel
from showo.train.pools import check_apart, open_samples
from showo.train.ranks import refuse_ranks
from showo.train.tokenizer_losses import colour_loss, locality_loss, loss_terms, loss_weights, psnr

_SHOWN = 16  # pictures on the sheet of a validation


def train_tokenizer(
    config: TokenizerTraining, run: Path, *, resume: bool = False, console: Console | None = None
) -> TrainLoop[PictureBatch]:
    """Trains an ImageTokenizer into `run`; returns the finished loop. Raises as `train` and the readers do."""
    refuse_ranks("showo train-tokenizer")
    return train(lambda: tokenizer_loop(config, run, console), run, resume=resume)


def tokenizer_loop(config: TokenizerTraining, run: Path, console: Console | None = None) -> TrainLoop[PictureBatch]:
    """The model, the data and the losses of `train_tokenizer`, ready to run."""
    device = find_device(config.device)
    console = console or Console(stderr=True)
    model = initial_model(ImageTokenizer, config.model, config.init_from, config.seed, console.print).to(device)
    model.encoder.requires_grad_(config.train_encoder)
    pictures = picture_batches("data", config, config.data)
    data = Loader(pictures, workers=config.workers, prefetch=config.prefetch)
    check_apart({"data": config.data}, {"held_out": config.held_out})
    held_out = picture_batches("held_out", config, config.held_out) if config.held_out else None
    weights = loss_weights(config)

    def loss(
        batch: PictureBatch, counts: Mapping[str, float], generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        share = len(batch.pixels) / counts["pictures"]
        images = augment(from_pixels(moved_to(device, batch.pixels)), config.augment, generator)
        if config.recolour:
            images = recolour(images, config.recolour, generator)
        found = picture_losses(model, images, config, generator)
        terms = {name: share * term for name, term in found.items()}
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum(), terms

    def validate(model: ImageTokenizer, step: int) -> tuple[Mapping[str, float], Mapping[str, Image.Image]]:
        if held_out is None:
            return {}, {}
        return reconstruction_quality(model, held_out, config.validation_samples, device)

    pools = {"pictures": pictures.pool}
    return TrainLoop(
        config,
        Parallel(model),
        run,
        data=data,
        pools=pools,
        loss=loss,
        validate=validate,
        attach=model.save_config,
        console=console,
    )


def picture_losses(
    model: ImageTokenizer, images: Tensor, config: TokenizerTraining, generator: torch.Generator
) -> dict[str, Tensor]:
    """The unweighted terms of the loss of pictures [B, 3, H, W], each a mean over them.

    What `locality_weight` and `colour_weight` ask for takes a quarter more pictures each, which are made of these ones
    and are learned as they are.
    """
    every, count = [images], len(images)
    if config.locality_weight:
        line = seam(images, model.config.downsampling, generator)
        every.append(line.join(images))
    if config.colour_weight:
        twins = max(1, count // 4)
        every.append(recolour(images[:twins], 1.0, generator))
    everything = torch.cat(every)
    reconstruction, z = model(everything)
    terms = loss_terms(reconstruction, z, everything, flat_patches=config.entropy_of_flat_patches)
    if config.locality_weight:
        terms["locality"] = locality_loss(z, z[count : count + len(every[1])], line)
    if config.colour_weight:
        terms["colour"] = colour_loss(z[:twins], z[-twins:], config.colour_bits)
    return terms


def picture_batches(key: str, config: TokenizerTraining, sources: Sequence[SourceConfig]) -> PictureBatches:
    pool = open_samples(key, sources, (CaptionedPicture,), config.seed)
    return PictureBatches(pool, config.resolution, config.batch // config.accumulate)


def reconstruction_quality(
    model: ImageTokenizer, pictures: PictureBatches, count: int, device: torch.device
) -> tuple[Mapping[str, float], Mapping[str, Image.Image]]:
    """Mean PSNR of at most `count` pictures, how many different codes they use, and the first ones as a sheet."""
    decibels: list[Tensor] = []
    used: list[Tensor] = []
    pairs: list[Image.Image] = []
    for numbers in pictures.first(count):
        before = from_pixels(moved_to(device, pictures.of(numbers).pixels))
        side = before.shape[-1] // model.config.downsampling
        codes = model.encode(before)
        after = model.decode(codes, side, side)
        decibels.append(psnr(after, before))
        used.append(codes)
        shown = max(0, 2 * _SHOWN - len(pairs)) // 2
        pairs += [to_image(picture) for pair in zip(before[:shown], after[:shown]) for picture in pair]
    scalars = {"psnr": float(torch.cat(decibels).mean()), "codes_used": float(len(torch.cat(used).unique()))}
    return scalars, {"reconstruction": sheet(pairs, columns=8)}
