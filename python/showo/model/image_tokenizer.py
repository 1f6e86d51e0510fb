"""ImageTokenizer: MAGVIT-v2 style convolutional autoencoder with a lookup-free quantizer (LFQ), official parameter
names.

A picture [B, 3, H, W] becomes (H/f)(W/f) code ids of `bits` bits each and back. The quantizer keeps the sign of every
latent channel (MAGVIT-v2, arXiv 2310.05737, section 3.1); the layout of the network is that of showlab/Show-o,
models/modeling_magvitv2.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showo.config import check_types, reject_unknown, without_bookkeeping
from showo.errors import ConfigError
from showo.model.weights import PretrainedMixin
from showo.pictures import from_pixels
from showo_ext import lfq_decode, lfq_encode

# More are a slip of the pen, which would fill the memory before anything else is noticed. MAGVIT-v2 has up to 18 bits.
MAX_BITS, MAX_LEVELS, MAX_BLOCKS = 18, 12, 100
ENCODED_AT_ONCE = 64  # pictures


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """Sizes of the autoencoder; the defaults are the published tokenizer (f = 16, 8192 codes).

    Multipliers and residual blocks are listed from full resolution down, one entry a level; between two levels the
    picture is halved, so f = 2 ** (levels - 1).
    """

    bits: int = 13
    channels: int = 128
    encoder_multipliers: tuple[int, ...] = (1, 2, 2, 4, 4)
    encoder_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)
    decoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)
    norm_groups: int = 32
    model_type: ClassVar[str] = "showo_image_tokenizer"
    official_class: ClassVar[str] = "MAGVITv2"

    def __post_init__(self) -> None:
        check_types(self)
        levels = ("encoder_multipliers", "encoder_blocks", "decoder_multipliers", "decoder_blocks")
        lengths = {len(getattr(self, name)) for name in levels}
        if len(lengths) != 1 or not 1 <= min(lengths) <= MAX_LEVELS:
            raise ConfigError(
                f"encoder_/decoder_ multipliers and blocks: expected one entry a level in each, 1 to {MAX_LEVELS} "
                f"levels, got {', '.join(f'{name}={getattr(self, name)}' for name in levels)}"
            )
        if not 1 <= self.bits <= MAX_BITS:
            raise ConfigError(f"bits: expected 1 to {MAX_BITS}, got {self.bits}")
        if self.channels < 1 or self.norm_groups < 1:
            raise ConfigError(f"channels, norm_groups: expected at least 1, got {self.channels}, {self.norm_groups}")
        for blocks in {*self.encoder_blocks, *self.decoder_blocks}:
            if not 1 <= blocks <= MAX_BLOCKS:
                raise ConfigError(f"residual blocks of a level: expected 1 to {MAX_BLOCKS}, got {blocks}")
        for multiplier in {*self.encoder_multipliers, *self.decoder_multipliers}:
            if multiplier < 1 or self.channels * multiplier % self.norm_groups:
                raise ConfigError(
                    f"channels x multiplier: expected a multiple of norm_groups={self.norm_groups}, "
                    f"got {self.channels} x {multiplier}"
                )

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": self.model_type, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImageTokenizerConfig:
        """The inverse of to_dict; what is not named has the published size. Raises ConfigError, for unknown keys too.

        The published config.json names no size at all: it holds only the bookkeeping of the library that wrote it.
        """
        data = without_bookkeeping(data, cls)
        model_type = data.pop("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ConfigError(f"ImageTokenizerConfig: model_type is {model_type!r}, expected {cls.model_type!r}")
        reject_unknown(data, [field.name for field in dataclasses.fields(cls)], cls)
        return cls(**data)

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.encoder_multipliers) - 1)

    @property
    def codebook_size(self) -> int:
        return 2**self.bits

    def side(self, resolution: int, name: str = "resolution") -> int:
        """Codes along a side of pictures of `resolution` pixels. Raises ConfigError, by `name`, for a fraction."""
        side, rest = divmod(resolution, self.downsampling)
        if rest:
            raise ConfigError(f"{name} must be a multiple of {self.downsampling}, got {resolution}")
        return side


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Self-attention over all positions of the coarsest level, one head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).mT for conv in (self.q, self.k, self.v))  # [B, H*W, C]
        return x + self.proj_out(F.scaled_dot_product_attention(q, k, v).mT.reshape_as(x))


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only, as the released weights expect


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution; `resample` is the child's official name, downsample or upsample."""

    def __init__(self, widths: list[int], groups: int, resample: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in itertools.pairwise(widths))
        if isinstance(resample, Downsample):
            self.downsample = resample
        elif resample is not None:
            self.upsample = resample

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            for layer in child if isinstance(child, nn.ModuleList) else (child,):
                x = layer(x)
        return x


class Encoder(nn.Module):
    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        outs = [config.channels * m for m in config.encoder_multipliers]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        width = config.channels
        for level, (out, blocks) in enumerate(zip(outs, config.encoder_blocks, strict=True)):
            last = level == len(outs) - 1
            self.down.append(Level([width] + [out] * blocks, groups, None if last else Downsample(out)))
            width = out
        self.mid = Middle(width, groups)
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.bits, config.bits, 1)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(images)
        for level in self.down:
            h = level(h)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(h)))))


class Decoder(nn.Module):
    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        outs = [config.channels * m for m in config.decoder_multipliers]
        width = outs[-1]
        self.conv_in = nn.Conv2d(config.bits, width, 3, padding=1)
        self.mid = Middle(width, groups)
        levels = []
        for level in reversed(range(len(outs))):
            out = outs[level]
            levels.append(
                Level([width] + [out] * config.decoder_blocks[level], groups, Upsample(out) if level else None)
            )
            width = out
        self.up = nn.ModuleList(reversed(levels))  # official order: up.0 is full resolution
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.bits, config.bits, 1)

    def forward(self, latents: Tensor) -> Tensor:
        h = self.mid(self.conv_in(self.post_quant_conv(latents)))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Quantizer(nn.Module):
    """Lookup-free: a code is the signs of its channels. The buffers exist for the official checkpoints' sake."""

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        powers = 2 ** torch.arange(bits - 1, -1, -1)
        signs = (torch.arange(2**bits)[:, None] & powers != 0).float() * 2 - 1
        self.register_buffer("embedding", signs)
        self.register_buffer("power_vals", powers)

    def forward(self, z: Tensor) -> Tensor:
        """z [B, bits, H, W] -> exactly +-1 of the same shape, with the straight-through gradient."""
        signs = torch.where(z > 0, 1.0, -1.0).to(z.dtype)
        return signs + (z - z.detach())


class ImageTokenizer(PretrainedMixin, nn.Module):
    """Pictures to code ids and back.

    Example: `ids = tokenizer.encode(images)`; `images = tokenizer.decode(ids, height, width)` with images in [-1, 1]
    and height, width in positions of the code grid.
    """

    config_class = ImageTokenizerConfig

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.bits)

    def encode(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] floating point in [-1, 1] -> code ids int64 [B, (H/f)*(W/f)], row by row.

        Raises ValueError for other shapes, TypeError for integer pictures.
        """
        self.check_images(images)
        return lfq_encode(self.encoder(images))

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """pixels uint8 [B, 3, H, W], as files hold them -> code ids int64 [B, (H/f)*(W/f)].

        A few pictures at a time, and in the precision of the weights, whatever the caller computes in.
        """
        with torch.autocast(pixels.device.type, enabled=False):
            return torch.cat([self.encode(from_pixels(some)) for some in pixels.split(ENCODED_AT_ONCE)])

    def encoder_checksum(self) -> str:
        """Of the weights that decide which codes a picture has, as they are now."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def decode(self, ids: Tensor, height: int, width: int) -> Tensor:
        """ids int64 [B, height*width] in [0, 2**bits) -> images [B, 3, height*f, width*f], clamped to [-1, 1].

        A pixel that comes out as NaN or infinite is NaN.
        """
        dtype = self.decoder.conv_in.weight.dtype
        images = self.decoder(lfq_decode(ids, self.config.bits, height, width, dtype=dtype))
        return torch.where(images.isfinite(), images, torch.nan).clamp(-1, 1)  # infinity would pass for white or black

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """For training: images -> (reconstruction, not clamped; latents z [B, bits, h, w] before the quantizer)."""
        self.check_images(images)
        z = self.encoder(images)
        return self.decoder(self.quantize(z)), z

    def check_images(self, images: Tensor) -> None:
        f = self.config.downsampling
        if not images.is_floating_point():
            raise TypeError(f"images: expected floating point in [-1, 1], got {images.dtype}")
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % f or images.shape[3] % f:
            raise ValueError(f"images: expected [B, 3, H, W] with H and W multiples of {f}, got {list(images.shape)}")
