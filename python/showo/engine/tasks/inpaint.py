"""A part of a picture drawn anew: which codes that is, and how old and new pixels meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from showo.engine.drawing import Drawing, check_output, paired, repeated
from showo.engine.options import Asked, is_whole
from showo.errors import UserError
from showo.pictures import fit, fit_mask, to_grey

if TYPE_CHECKING:
    from showo.engine.pipeline import ShowoPipeline

Box = tuple[int, int, int, int]


def inpaint(
    pipe: ShowoPipeline,
    asked: Asked,
    image: Image.Image | Sequence[Image.Image],
    prompt: str | Sequence[str],
    mask_image: Image.Image | Box,
    blend: int | None,
    num_images_per_prompt: int,
    output_type: str,
) -> Any:
    """The output for pictures that are drawn anew in part; arguments and errors as of `Inpainting`."""
    check_output(output_type, blend)
    task = Inpainting(pipe, asked, image, prompt, mask_image, blend, num_images_per_prompt)
    return task.drawing.output(task.drawing.draw_all(task.canvas()), output_type, task.finish)


class Inpainting:
    """Every code in whose patch the mask marks a pixel, be it in part, is drawn anew; all other codes stay as they are.

    mask_image: grey, of the pictures' size, as a brush paints it: black stays, all else is marked; or a box (left, top,
        right, bottom) in pixels, the last two not included. It is cropped and resized as its picture is.
    blend: None gives all pixels as the image tokenizer decodes them, so that those of unmarked places are near the
        picture's, not equal. A number keeps the picture's pixels but for the marked ones, grey ones in part, and
        fades over so many pixels around them.

    Raises UserError for a mask of another size than a picture, or that marks nothing, and for a box that is not inside.
    """

    def __init__(
        self,
        pipe: ShowoPipeline,
        asked: Asked,
        image: Image.Image | Sequence[Image.Image],
        prompt: str | Sequence[str],
        mask_image: Image.Image | Box,
        blend: int | None,
        num_images_per_prompt: int = 1,
    ) -> None:
        shown, texts = paired(image, prompt)
        grey = to_grey(mask_image) if isinstance(mask_image, Image.Image) else mask_image
        masks = [as_mask(grey, picture.size) for picture in shown]
        self.drawing = Drawing(pipe, asked, repeated(texts, num_images_per_prompt), pipe.grid(asked.size))
        pixels = pipe.pixels(self.drawing.grid)
        self._mask_id, self._blend, self._times = pipe.config.vocabulary.mask_id, blend, num_images_per_prompt
        self._shown, self._masks = [fit(picture, pixels) for picture in shown], [fit_mask(m, pixels) for m in masks]

    def canvas(self) -> Tensor:
        """Vocabulary ids [B, N] to draw on."""
        ids = self.drawing.encode(self._shown)
        places = torch.stack([masked_places(mask, self.drawing.grid) for mask in self._masks]).to(ids.device)
        return ids.masked_fill(places, self._mask_id).repeat_interleave(self._times, 0)

    def finish(self, number: int, drawn: Image.Image) -> Image.Image:
        """A picture as it is given back, of what the image tokenizer has decoded."""
        if self._blend is None:
            return drawn
        source = number // self._times
        return blended(self._shown[source], drawn, self._masks[source], self._blend)


def as_mask(mask: Image.Image | Box, size: tuple[int, int]) -> Image.Image:
    """A grey mask of a picture of `size` (width, height): black stays, all else is drawn anew.

    mask: such a picture already, or (left, top, right, bottom) in pixels, the last two not included.

    Raises UserError for a mask of another size, or one that marks nothing, and for a box that is not inside.
    """
    width, height = size
    if not isinstance(mask, Image.Image):
        if not (isinstance(mask, (tuple, list)) and len(mask) == 4 and all(map(is_whole, mask))):
            raise TypeError(
                "mask_image must be one picture (PIL.Image) for all, or a box (left, top, right, bottom) in whole "
                f"pixels, got {mask!r}"
            )
        left, top, right, bottom = mask
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise UserError(
                f"box {left},{top},{right},{bottom}: expected 0 <= left < right <= {width} and "
                f"0 <= top < bottom <= {height}, the picture's sides"
            )
        drawn = Image.new("L", size)
        ImageDraw.Draw(drawn).rectangle((left, top, right - 1, bottom - 1), fill=255)
        return drawn
    if mask.size != size:
        raise UserError(f"the mask has {mask.width}x{mask.height} pixels, its picture {width}x{height}")
    if mask.getextrema()[1] == 0:
        raise UserError("the mask is black: nothing is to be drawn")
    return mask


def masked_places(mask: Image.Image, grid: tuple[int, int]) -> Tensor:
    """bool [h * w]: the codes in whose patch of pixels anything is not black."""
    return F.adaptive_max_pool2d(_grey(mask), grid).flatten() > 0


def blended(picture: Image.Image, drawn: Image.Image, mask: Image.Image, width: int) -> Image.Image:
    """`drawn` where the grey mask is white, mixed with `picture` where it is grey; all of one size.

    The mask fades to black over `width` pixels around it, in equal steps (distances along the farther axis); beyond
    these the pixels are those of `picture`.
    """
    share = _grey(mask) / 255
    for _ in range(width):
        share = torch.maximum(share, F.max_pool2d(share, 3, stride=1, padding=1) - 1 / (width + 1))
    levels = (share[0, 0] * 255).round().byte().numpy()
    return Image.composite(drawn, picture, Image.fromarray(levels))


def _grey(mask: Image.Image) -> Tensor:
    """fp32 [1, 1, H, W], 0 to 255."""
    return torch.from_numpy(np.array(mask, dtype=np.float32))[None, None]
