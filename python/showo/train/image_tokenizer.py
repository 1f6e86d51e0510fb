"""`showo train-tokenizer`: the LFQ autoencoder, whose training code the paper never released.

Loss = squared error + l1_weight x L1 + gradient_weight x L1 of pixel differences + quantizer_weight x commitment +
entropy term. Commitment and entropy are those of the official modeling_magvitv2.py (LFQuantizer), after MAGVIT-v2
(arXiv 2310.05737, eq. 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
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
from showo.train.config import TokenizerTraining
from showo.train.initial import initial_model
from showo.train.loop import TrainLoop, train
from showo.train.pools import open_samples

_SHOWN = 16  # pictures on the sheet of a validation


def commitment_loss(z: Tensor) -> Tensor:
    """mean((sg(q) - z)^2) + 0.25 mean((q - sg(z))^2) with sg for stop-gradient and q the signs of z.

    Officially q passes its gradient straight on to z, so the second term pulls z away from q and takes a quarter of
    the first term's gradient back: the value is 1.25 times the squared distance, the gradient 0.75 times that of it.
    """
    distance = (torch.where(z > 0, 1.0, -1.0) - z).square().mean()
    return 0.75 * distance + 0.5 * distance.detach()


def entropy_loss(z: Tensor) -> Tensor:
    """Mean entropy of the code of a position minus the entropy of the mean distribution over all codes, in nats.

    A bit has logits -(z-1)^2 and -(z+1)^2, which differ by 4z: p = sigmoid(4z). z is [B, bits, H, W]. The entropy of
    the mean is the joint one over 2**bits codes, as in MAGVIT-v2 (eq. 5); the official code takes it bit by bit,
    which leaves equal bits unpunished: trained so, half of the bits here became copies of each other. The bits of a
    position are independent, so the mean joint distribution is one matrix product of the two halves' distributions.
    """
    z = z.float().movedim(1, -1).flatten(0, -2)  # [positions, bits]
    positions, bits = z.shape
    p = torch.sigmoid(4 * z)
    each = -(p * F.logsigmoid(4 * z) + (1 - p) * F.logsigmoid(-4 * z)).sum(1).mean()
    halves = []
    for half in p.split([bits // 2, bits - bits // 2], dim=1):
        codes = half.new_ones(positions, 1)
        for bit in half.unbind(1):
            codes = torch.cat([codes * (1 - bit[:, None]), codes * bit[:, None]], dim=1)
        halves.append(codes)
    mean = halves[0].mT @ halves[1] / positions  # [2**(bits // 2), 2**(bits - bits // 2)]
    return each + torch.xlogy(mean, mean.clamp_min(1e-12)).sum()


def gradient_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 between the horizontal and vertical first differences of two batches of pictures."""
    return F.l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + F.l1_loss(a.diff(dim=-2), b.diff(dim=-2))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Per picture, in dB, for pictures in [-1, 1] taken to 8-bit range: 10 log10(4 / mse). [B, 3, H, W] x2 -> [B]."""
    mse = (a.clamp(-1, 1) - b).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / mse.clamp_min(1e-10))


def augment(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Turns (15 degrees), scales (0.8 to 1.2), moves (6 pixels), mirrors and swaps colour channels of a share of
    the pictures, on white.
    """
    batch, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * moved_to(images.device, torch.rand(batch, generator=generator))

    angle = uniform(-math.pi / 12, math.pi / 12)
    scale = uniform(0.8, 1.2)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    matrix = [scale * angle.cos() * mirror, -scale * angle.sin(), uniform(-6, 6) * 2 / width,
              scale * angle.sin() * mirror, scale * angle.cos(), uniform(-6, 6) * 2 / height]  # fmt: skip
    theta = torch.stack(matrix, 1).view(batch, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images - 1, grid, align_corners=False) + 1  # zero padding of (image - 1) is white
    chosen = uniform(0, 1) < share
    swapped = chosen & (uniform(0, 1) < 0.3)
    out = torch.where(chosen[:, None, None, None], moved, images)
    order = moved_to(images.device, torch.randperm(3, generator=generator))
    return torch.where(swapped[:, None, None, None], out[:, order], out)


def loss_terms(reconstruction: Tensor, z: Tensor, images: Tensor) -> dict[str, Tensor]:
    """The unweighted terms for pictures [B, 3, H, W] and what the model made of them: see `ImageTokenizer.forward`."""
    return {
        "mse": F.mse_loss(reconstruction, images),
        "l1": F.l1_loss(reconstruction, images),
        "gradient": gradient_loss(reconstruction, images),
        "commitment": commitment_loss(z),
        "entropy": entropy_loss(z),
    }


def loss_weights(config: TokenizerTraining) -> dict[str, float]:
    return {
        "mse": 1.0,
        "l1": config.l1_weight,
        "gradient": config.gradient_weight,
        "commitment": config.quantizer_weight,
        "entropy": config.entropy_weight,
    }


def train_tokenizer(
    config: TokenizerTraining, run: Path, *, resume: bool = False, console: Console | None = None
) -> TrainLoop[PictureBatch]:
    """Trains an ImageTokenizer into `run`; returns the finished loop. Raises as `train` and the readers do."""
    return train(lambda: tokenizer_loop(config, run, console), run, resume=resume)


def tokenizer_loop(config: TokenizerTraining, run: Path, console: Console | None = None) -> TrainLoop[PictureBatch]:
    """The model, the data and the losses of `train_tokenizer`, ready to run."""
    device = find_device(config.device)
    model = initial_model(ImageTokenizer, config.model, config.init_from, config.seed).to(device)
    model.encoder.requires_grad_(config.train_encoder)
    pictures = picture_batches("data", config, config.data)
    data = Loader(pictures, workers=config.workers, prefetch=config.prefetch)
    held_out = picture_batches("held_out", config, config.held_out) if config.held_out else None
    weights = loss_weights(config)

    def loss(
        batch: PictureBatch, counts: Mapping[str, float], generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        share = len(batch.pixels) / counts["pictures"]
        images = augment(from_pixels(moved_to(device, batch.pixels)), config.augment, generator)
        reconstruction, z = model(images)
        terms = {name: share * term for name, term in loss_terms(reconstruction, z, images).items()}
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum(), terms

    def validate(step: int) -> tuple[Mapping[str, float], Mapping[str, Image.Image]]:
        if held_out is None:
            return {}, {}
        return reconstruction_quality(model, held_out, config.validation_samples, device)

    pools = {"pictures": pictures.pool}
    return TrainLoop(config, model, run, data=data, pools=pools, loss=loss, validate=validate, console=console)


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
