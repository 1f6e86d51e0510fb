"""Pictures in and out: nothing alters them silently, and sizes and bits are those of the released code."""

from __future__ import annotations

import contextlib
import io
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from showo import pictures
from showo.errors import DataError, NotFiniteError
from showo.pictures import fit, open_image, to_image, to_tensor
from showo_ext.testing import uniforms


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


# ---- files to RGB ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_the_camera_says(kind: str, orientation: int) -> None:
    """The eight orientations of EXIF: where the stored first row and first column are shown."""
    stored = Image.new("RGB", (32, 16), "white")
    stored.paste("red", (0, 0, 16, 8))  # the corner of first row and first column
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = open_image(encoded(stored, kind, exif=exif))
    assert shown.size == ((32, 16) if orientation < 5 else (16, 32))
    right, low = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    corner = (shown.width - 3 if right else 2, shown.height - 3 if low else 2)
    red, green, blue = shown.getpixel(corner)  # type: ignore[misc]
    assert red > 200
    assert green < 60
    assert blue < 60


def test_16_bit_pixels_give_their_high_byte(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7), np.uint16)
    grey = Image.fromarray(values)
    assert grey.mode == "I;16"
    for kind in ("PNG", "TIFF"):
        found = np.asarray(open_image(encoded(grey, kind)))
        assert (found == (values >> 8)[:, :, None]).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    turned = np.asarray(open_image(encoded(grey, exif=exif)))
    assert (turned[:, :, 0] == np.rot90(values >> 8, 3)).all()
    binary = b"P5 7 5 65535\n" + values.astype(">u2").tobytes()
    assert (np.asarray(open_image(binary)) == (values >> 8)[:, :, None]).all()


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    wide = np.full((2, 2), 300, np.int32)
    for image, reason in (
        (Image.fromarray(wide.astype(np.float32)), "mode F, whose range is unknown"),
        (Image.fromarray(wide), "mode I, whose range is unknown"),
        (Image.new("LAB", (2, 2)), "mode LAB, whose range is unknown"),
    ):
        path = tmp_path / "p.tiff"
        path.write_bytes(encoded(image, "TIFF"))
        with pytest.raises(DataError, match=rf"p\.tiff: pixels of {reason}"):
            open_image(path)
    tiff = encoded(Image.fromarray(wide.astype(np.uint16)), "TIFF")
    for tag, right, wrong in ((262, 1, 0), (258, 16, 12)):  # which end is white; bits
        at = tiff.index(struct.pack("<HHL", tag, 3, 1)) + 8
        assert tiff[at] == right
        with pytest.raises(DataError, match="x: grey of other than 16 bits, or with white as 0"):
            open_image(tiff[:at] + bytes([wrong]) + tiff[at + 1 :], "x")
    with pytest.raises(DataError, match="16-bit grey with a transparent value"):
        open_image(encoded(Image.fromarray(wide.astype(np.uint16)), transparency=300))


def test_transparent_pixels_lie_on_white() -> None:
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    image.putpixel((2, 0), (0, 0, 0, 51))  # a fifth
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    grey = Image.new("LA", (1, 1), (100, 0))
    for source, shown in (
        (image, [(255, 255, 255), (10, 20, 30), (204, 204, 204)]),
        (palette, [(255, 0, 0), (0, 0, 255)]),
        (grey, [(255, 255, 255)]),
    ):
        flat = open_image(encoded(source))
        assert [flat.getpixel((x, 0)) for x in range(flat.width)] == shown
    clear = open_image(encoded(palette, transparency=0))
    assert clear.getpixel((0, 0)) == (255, 255, 255)


def test_inks_are_mixed_as_stated() -> None:
    inks = Image.new("CMYK", (1, 1), (51, 102, 0, 153))
    paper = [round((255 - ink) * (255 - 153) / 255) for ink in (51, 102, 0)]
    assert open_image(encoded(inks, "TIFF")).getpixel((0, 0)) == tuple(paper)


def test_decompression_bomb_is_refused_before_decoding() -> None:
    with pytest.raises(DataError, match="bomb: 4x4 pixels, more than 15"):
        open_image(encoded(Image.new("RGB", (4, 4))), "bomb", max_pixels=15)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "DDS", "JPEG2000", "ICO", "TGA"])
@settings(max_examples=30, deadline=None)
@given(junk=st.binary(max_size=40), share=st.floats(0, 1), cut=st.booleans())
def test_damaged_pictures_are_named(kind: str, junk: bytes, share: float, cut: bool) -> None:
    whole = encoded(Image.new("RGB", (16, 16), "red"), kind)
    at = int(share * len(whole))
    with contextlib.suppress(DataError):
        open_image(whole[:at] + junk + (b"" if cut else whole[at + len(junk) :]))


def test_messages_name_the_file_and_no_python_object() -> None:
    with pytest.raises(DataError) as error:
        open_image(b"<html>not found</html>", "a.tar: red.png")
    assert str(error.value) == "a.tar: red.png: not a readable picture"


# ---- RGB to tensors --------------------------------------------------------------------------------------------------


def official_fit(image: Image.Image, size: int) -> Image.Image:
    """Resize(size, BICUBIC) and CenterCrop(size) of torchvision, as training/utils.py of the released code has them."""
    short, long = sorted(image.size)
    longer = int(size * long / short)
    image = image.resize((size, longer) if image.width <= image.height else (longer, size), Image.Resampling.BICUBIC)
    top, left = round((image.height - size) / 2.0), round((image.width - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


SIDES = st.integers(1, 90)


@settings(max_examples=60, deadline=None)
@given(width=SIDES, height=SIDES, size=st.sampled_from((16, 31, 64)))
def test_fit_is_the_official_resize_and_crop(width: int, height: int, size: int) -> None:
    assume(max(width, height) <= pictures.MAX_EXCESS * min(width, height))
    image = noise(width, height)
    assert fit(image, (size, size)).tobytes() == official_fit(image, size).tobytes()


@settings(max_examples=60, deadline=None)
@given(width=SIDES, height=SIDES, size=st.tuples(SIDES, SIDES))
def test_fit_gives_any_shape(width: int, height: int, size: tuple[int, int]) -> None:
    assert fit(noise(width, height), size).size == size


def test_fit_keeps_the_centre() -> None:
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (16, 0, 48, 32))
    assert fit(image, (32, 32)).getcolors() == [(32 * 32, (0, 0, 255))]


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_a_thread_of_pixels_never_grows_to_a_giant(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    resize, seen = Image.Image.resize, []

    def watched(image: Image.Image, to: tuple[int, int], *rest: object) -> Image.Image:
        seen.append(math.prod(to))
        return resize(image, to, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", watched)
    assert fit(Image.new("RGB", size), (64, 64)).size == (64, 64)
    assert seen == [pictures.MAX_EXCESS * 64 * 64]


def test_tensors_are_those_of_the_official_transform() -> None:
    image = noise(9, 5)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(to_tensor(image), (pixels.float() / 255 - 0.5) / 0.5)


# ---- tensors to RGB --------------------------------------------------------------------------------------------------


def test_fractions_of_a_level_are_cut_off() -> None:
    """As `(clamp((x + 1) / 2, 0, 1) * 255).astype(uint8)` does."""
    x = uniforms(3, 20, 30) * 2.4 - 1.2
    expected = (np.clip((x.numpy() + 1) / 2, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    assert np.array_equal(np.asarray(to_image(x)), expected)
    almost = torch.full((3, 1, 1), 2 * 99.9 / 255 - 1)
    assert to_image(almost).getpixel((0, 0)) == (99, 99, 99)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_no_picture(value: float) -> None:
    x = torch.zeros(3, 4, 4)
    x[1, 2, 3] = value
    with pytest.raises(NotFiniteError, match="a picture came out as NaN or infinity"):
        to_image(x)
