"""The frozen vision tower of models with CLIP-ViT: `transformers`' CLIPVisionModel, as Show-o reads it.

Features are the hidden states before the last layer, without the class token (showlab/Show-o, models/clip_encoder.py):
of openai/clip-vit-large-patch14-336, 576 of them, 1024 wide. The model's projector makes embeddings of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from showo.errors import CheckpointError, UserError, first_line
from showo.model.weights import resolve_folder
from showo.pictures import crop_to_excess, to_pixels

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

CLIP_VIT_L_336 = "openai/clip-vit-large-patch14-336"
# Of the pictures that CLIP was trained with, by channel, in [0, 1] (openai/CLIP, clip/clip.py).
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_fit(image: Image.Image, side: int = 336) -> Image.Image:
    """What the tower sees of a picture: the shorter side resized to `side`, bicubic, and the centre cropped.

    As CLIP's own preprocessing does: the longer side and the corner of the crop are rounded down.
    (`showo.pictures.fit`, for the image tokenizer, rounds the corner to the nearest pixel.) A picture that is fitted
    already stays as it is. What is more than MAX_EXCESS times as long as wide is first cut to that.
    """
    image = crop_to_excess(image, (side, side))
    shorter = min(image.size)
    width, height = (side * length // shorter for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + side, top + side))


def clip_pixels(image: Image.Image, side: int = 336) -> Tensor:
    """An RGB picture, fitted, as uint8 [3, side, side]."""
    return to_pixels(clip_fit(image, side))


def load_transformers(what: str) -> Any:
    """The module `transformers`. Raises UserError, which says that `what` needs it, where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"{what} needs transformers: pip install 'showo_ext[clip]'") from error
    return transformers


@contextmanager
def _no_bar(logging: Any) -> Iterator[None]:
    """transformers (its module of messages is `logging`) else shows a bar, also on an stderr that is a file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class PixelNorm(nn.Module):
    """Pixels uint8 [n, 3, H, W] as CLIP takes them, float32: mean 0 and standard deviation 1 over its own pictures."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.float() / 255 - self.mean) / self.std


class ClipTower(nn.Module):
    """Pixels to features. It stays as it was loaded: evaluation mode, no gradients."""

    def __init__(self, vision: CLIPVisionModel) -> None:
        super().__init__()
        self.vision = vision.requires_grad_(False).eval()
        self.pixel_norm = PixelNorm()

    @classmethod
    def from_pretrained(cls, source: str | Path = CLIP_VIT_L_336) -> ClipTower:
        """From a folder or a hub id, of a whole CLIP model or of its vision tower alone.

        Raises:
            UserError: `transformers` is not installed.
            CheckpointError: there is no such folder or id, or it does not hold all weights of a vision tower.
        """
        transformers = load_transformers(f"{source}: a CLIP tower")
        folder = resolve_folder(source)
        try:
            with _no_bar(transformers.utils.logging):
                vision, info = transformers.CLIPVisionModel.from_pretrained(
                    folder, local_files_only=True, output_loading_info=True
                )
        except Exception as error:  # of many kinds: no config, no weights, damaged ones, other shapes
            raise CheckpointError(f"{folder} holds no CLIP vision tower: {first_line(error)}") from error
        if missing := sorted(info["missing_keys"]):  # transformers would fill them at random, with a warning
            raise CheckpointError(
                f"{folder} holds no CLIP vision tower: {len(missing)} weights are missing, such as {missing[0]}"
            )
        return cls(vision)

    def save_pretrained(self, folder: Path) -> None:
        """As transformers saves it: config.json and model.safetensors."""
        self.vision.save_pretrained(folder)

    @property
    def side(self) -> int:
        """Of its pictures, in pixels."""
        return self.vision.config.image_size

    @property
    def image_tokens(self) -> int:
        """Features of a picture."""
        return (self.side // self.vision.config.patch_size) ** 2

    @property
    def width(self) -> int:
        """Numbers of a feature: the `clip_width` of a Show-o."""
        return self.vision.config.hidden_size

    def train(self, mode: bool = True) -> ClipTower:
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """pixels uint8 [n, 3, side, side], see `clip_pixels` -> features [n, image_tokens, width]."""
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != (3, self.side, self.side):
            raise ValueError(
                f"pixels: expected uint8 [n, 3, {self.side}, {self.side}], got {pixels.dtype} {list(pixels.shape)}"
            )
        images = self.pixel_norm(pixels).to(self.vision.dtype)
        states = self.vision(images, output_hidden_states=True).hidden_states
        return states[-2][:, 1:]
