"""The image tokenizer alone: how many true scenes are still what they were after its codes and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from showo.data.world.draw import draw_scene
from showo.data.world.scene import Scene
from showo.evaluate.world.judge import find_objects, shows
from showo.model.image_tokenizer import ImageTokenizer
from showo.pictures import to_image, to_tensor


@torch.inference_mode()
def reconstructed(tokenizer: ImageTokenizer, pictures: Sequence[Image.Image], batch: int = 64) -> list[Image.Image]:
    """Equally large RGB pictures, encoded to codes and decoded again."""
    after: list[Image.Image] = []
    weight = next(tokenizer.parameters())
    for first in range(0, len(pictures), batch):
        pixels = torch.stack([to_tensor(picture) for picture in pictures[first : first + batch]])
        height, width = (side // tokenizer.config.downsampling for side in pixels.shape[2:])
        codes = tokenizer.encode(pixels.to(weight.device, weight.dtype))
        after += [to_image(image) for image in tokenizer.decode(codes, height, width)]
    return after


def share_right(tokenizer: ImageTokenizer, scenes: Sequence[Scene]) -> float:
    """Which share of drawn scenes the judge still finds, whole and in their places, after the tokenizer."""
    after = reconstructed(tokenizer, [draw_scene(scene) for scene in scenes])
    return sum(shows(find_objects(picture), scene) for picture, scene in zip(after, scenes)) / len(scenes)
