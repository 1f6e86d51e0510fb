"""The image tokenizer alone: how many true scenes are still what they were after its codes and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from showo.data.world.draw import draw_scene
from showo.data.world.scene import Demand, Scene, Wanted
from showo.evaluate.world.case import Advance, Case
from showo.evaluate.world.drawing import find_fault, in_words, objects_of
from showo.evaluate.world.judge import as_scene, find_objects, shows
from showo.model.image_tokenizer import ImageTokenizer
from showo.pictures import to_image, to_tensor
from showo.pieces import pieces


def reconstruct_scenes(tokenizer: ImageTokenizer, scenes: Sequence[Scene], batch: int, advance: Advance) -> list[Case]:
    """Every scene drawn, encoded to codes, decoded again and judged."""
    cases = []
    for part in pieces(scenes, batch):
        for scene, picture in zip(part, reconstructed(tokenizer, [draw_scene(scene) for scene in part])):
            found = find_objects(picture)
            named = Demand("full", tuple(Wanted(thing.shape, thing.colour) for thing in scene.objects))
            fault = find_fault(named, as_scene(found)) or (None if shows(found, scene) else "place")
            cases.append(Case(objects_of(scene), in_words(scene), in_words(found), fault, picture))
        advance(len(part))
    return cases


@torch.inference_mode()
def reconstructed(tokenizer: ImageTokenizer, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Equally large RGB pictures, encoded to codes and decoded again."""
    weight = next(tokenizer.parameters())
    pixels = torch.stack([to_tensor(picture) for picture in pictures]).to(weight.device, weight.dtype)
    height, width = (side // tokenizer.config.downsampling for side in pixels.shape[2:])
    return [to_image(image) for image in tokenizer.decode(tokenizer.encode(pixels), height, width)]
