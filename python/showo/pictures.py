"""Pictures in and out: files to upright RGB, RGB to tensors and back, and files that appear whole or not at all.

Resizing, cropping and the conversion to 8 bits are those of the released model's code, so that its weights see and
give the very pictures that they do there. docs/pictures.md says where other ways would differ.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from showo.errors import NotFiniteError, SampleError, UserError
from showo.files import atomic_path, make_folder

# How a file becomes pixels, by number: to be raised when `open_image`, `fit` or `to_pixels` give others, as codes that
# were made of the old ones are then not those of the pictures any more.
PREPROCESSING = 1
MAX_PIXELS = 64 * 1024 * 1024  # a file may promise more than memory holds: refused before decoding
MASKED_GREY = (128, 128, 128)
MAX_EXCESS = 8  # how many times as long as the wanted shape a picture may be when it is resized

UNREADABLE, UNKNOWN_RANGE = "unreadable picture", "pixels of unknown range"  # reasons of SampleError

# The modes that Pillow's `convert` takes to 8-bit RGB by a formula (CMYK: (255 - C)(255 - K) / 255).
_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_TIFF_BITS, _TIFF_INTERPRETATION, _WHITE_IS_ZERO = 258, 262, 0  # tags, and a value of the second


def open_image(
    source: bytes | Path,
    name: str = "picture",
    convert: Callable[[Image.Image, str], Image.Image] | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Read a picture file as `convert` gives it (None: `to_rgb`); of an animation, the first frame.

    source: the file's bytes, which `name` stands for in messages, or its path. max_pixels: at most MAX_PIXELS.

    Raises:
        SampleError: the file is no readable picture, has more than max_pixels pixels, or `convert` refuses them.
    """
    name = str(source) if isinstance(source, Path) else name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's doubts about sizes and tags; the checks here are stricter
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
                if image.width * image.height > max_pixels:
                    size = f"{image.width}x{image.height}"
                    raise SampleError(f"{name}: {size} pixels, more than {max_pixels}", "too large")
                image.load()  # a TIFF turns itself upright here; its orientation is to be asked after that
                return (convert or to_rgb)(image, name)
    except UserError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's limit, which lies above the one here
        raise SampleError(f"{name}: more than {MAX_PIXELS} pixels ({error})", "too large") from error
    except UnidentifiedImageError as error:  # its text names a Python object
        raise SampleError(f"{name}: not a readable picture", UNREADABLE) from error
    except Exception as error:  # a damaged file makes Pillow's readers raise whatever their parsing runs into
        reason = str(error) or type(error).__name__
        raise SampleError(f"{name}: not a readable picture ({reason})", UNREADABLE) from error


def to_rgb(image: Image.Image, name: str = "picture") -> Image.Image:
    """`image` as upright 8-bit RGB; `name` stands for it in messages.

    The orientation that a camera notes (EXIF) is applied. Transparent pixels lie on white. 16-bit channels give their
    high byte. Colour profiles are not applied.

    Raises:
        SampleError: the range of the pixels is not known (floating point, 32 bits, 12 bits, CIELAB).
    """
    image = ImageOps.exif_transpose(_eight_bits(image, name))
    if image.mode not in _CONVERTIBLE:
        raise SampleError(
            f"{name}: pixels of mode {image.mode}, whose range is unknown; save it with 8 bits a channel", UNKNOWN_RANGE
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def to_grey(image: Image.Image, name: str = "mask") -> Image.Image:
    """A mask as upright 8-bit grey, brightness by ITU-R 601. Raises SampleError as `to_rgb` does, and for a mask with
    transparent pixels, as nothing says which of them are meant.
    """
    if image.has_transparency_data:
        raise SampleError(f"{name}: has transparent pixels; save it without, white where it marks", UNKNOWN_RANGE)
    return to_rgb(image, name).convert("L")


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """`image`, with the high byte of its pixels if they are 16-bit grey (16-bit colours are read so by Pillow)."""
    wide_png = image.mode == "I" and image.format in ("PNG", "PPM")  # 16 bits, in a mode that has room for 32
    if not image.mode.startswith("I;16") and not wide_png:
        return image
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if tags.get(_TIFF_BITS, (16,)) != (16,) or tags.get(_TIFF_INTERPRETATION) == _WHITE_IS_ZERO:
        raise SampleError(
            f"{name}: grey of other than 16 bits, or with white as 0; save it with 8 bits a channel", UNKNOWN_RANGE
        )
    if "transparency" in image.info:
        raise SampleError(f"{name}: 16-bit grey with a transparent value; save it with 8 bits a channel", UNKNOWN_RANGE)
    high = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    high.info = image.info  # the orientation is kept there
    return high


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image`, resized to just cover `size` (width, height), and cropped to it around its centre.

    As the released code does (torchvision's Resize of the shorter side, bicubic, then CenterCrop): the longer side is
    rounded down, the corner of the crop to the nearest pixel, halves to even. What is more than MAX_EXCESS times as
    long as `size` is first cut to that, so that a thread of pixels does not grow to a giant.
    """
    image = crop_to_excess(image, size)
    return _crop_centre(image.resize(_covering(image.size, size), Image.Resampling.BICUBIC), size)


def fit_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A grey mask as `fit` does it to its picture; a pixel is the lightest that lies in it, be it in part, so that
    nothing that is marked gets lost.
    """
    mask = crop_to_excess(mask, size)
    width, height = _covering(mask.size, size)
    grey = torch.from_numpy(np.array(mask, dtype=np.float32))[None]
    lightest = adaptive_max_pool2d(grey, (height, width))[0].byte()
    return _crop_centre(Image.fromarray(lightest.numpy()), size)


def crop_to_excess(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of `image`, at most MAX_EXCESS times as long as the shape of `size` (width, height) is."""
    width, height = size
    kept = (
        min(image.width, -(-MAX_EXCESS * image.height * width // height)),
        min(image.height, -(-MAX_EXCESS * image.width * height // width)),
    )
    return _crop_centre(image, kept)


def _covering(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The size in the shape of `image` that just covers `size`; all are (width, height)."""
    width, height = size
    if image[0] * height >= image[1] * width:
        return int(height * image[0] / image[1]), height
    return width, int(width * image[1] / image[0])


def _crop_centre(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    left, top = (round((whole - part) / 2) for whole, part in zip(image.size, size))
    return image.crop((left, top, left + size[0], top + size[1]))


def to_pixels(image: Image.Image) -> Tensor:
    """RGB picture -> uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1], of any shape."""
    return pixels.float().div(255).sub(0.5).div(0.5)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> float32 [3, H, W] in [-1, 1]."""
    return from_pixels(to_pixels(image))


def to_image(tensor: Tensor) -> Image.Image:
    """[3, H, W] -> RGB picture: [-1, 1] becomes 0 to 255, what lies outside is clamped, and fractions are cut off.

    Cut off, not rounded, as the released code does: on average the picture is half a level of 255 darker.

    Raises:
        NotFiniteError: a value is NaN or infinite.
    """
    pixels = tensor.detach().float().cpu()
    if not bool(pixels.isfinite().all()):
        raise NotFiniteError(
            "a picture came out as NaN or infinity: the weights are damaged, or too large for their dtype (try float32)"
        )
    pixels = pixels.add(1).div(2).clamp(0, 1).mul(255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def cover(image: Image.Image, masked: Tensor) -> Image.Image:
    """`image`, grey in the patches that are true in bool [height, width]: where codes are still to be chosen."""
    patches = Image.fromarray(masked.to(torch.uint8).mul(255).numpy()).resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", image.size, MASKED_GREY), image, patches)


def encode_png(image: Image.Image, *, optimize: bool = False) -> bytes:
    """The bytes of a PNG file; `optimize` makes them a tenth fewer and takes five times as long."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=optimize)
    return buffer.getvalue()


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write a picture whole or not at all; the folder is made if needed."""
    make_folder(Path(os.path.realpath(path)).parent)
    with atomic_path(path) as temporary:
        image.save(temporary, **options)
