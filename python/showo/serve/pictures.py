"""Pictures as clients send and get them: files in forms, data URLs, base64 in JSON."""

from __future__ import annotations

import base64
import binascii
import io
import re

from PIL import Image, ImageOps

from showo.errors import SampleError, UserError
from showo.pictures import UNKNOWN_RANGE, open_image

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)


def bytes_of_url(url: str) -> bytes:
    """The file in a data URL. UserError for any other URL: nothing is ever fetched."""
    head = _DATA_URL.match(url)
    if head is None:
        raise UserError(f"a picture must come as data:image/...;base64,..., URLs are not fetched; got {url[:40]!r}")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"a picture's data URL is no valid base64: {error}") from error


def transparency(image: Image.Image, name: str) -> Image.Image:
    """A mask as OpenAI has it, as grey: white where `image` is transparent. SampleError where it cannot be."""
    upright = ImageOps.exif_transpose(image)
    if not upright.has_transparency_data:
        raise SampleError(f"{name}: has no transparent pixels, which are those to be drawn anew", UNKNOWN_RANGE)
    return ImageOps.invert(upright.convert("RGBA").getchannel("A"))


def read_mask(file: bytes, name: str, max_pixels: int) -> Image.Image:
    """A mask for `showo.engine.batching.Inpaint`. SampleError for a file that is none."""
    return open_image(file, name, transparency, max_pixels=max_pixels)


def encode(picture: Image.Image, kind: str, quality: int) -> str:
    """Base64 of a file. kind: png, jpeg or webp; quality: of the last two, 0 to 100."""
    buffer = io.BytesIO()
    if kind == "png":
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, kind.upper(), quality=quality)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
