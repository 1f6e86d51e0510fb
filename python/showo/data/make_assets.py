"""Make the bundled data: emoji pictures with their names, and a small text, as WebDataset tar shards.

    apt-get install fonts-noto-color-emoji unicode-data
    python -m showo.data.make_assets python/showo/assets

Pictures are the glyphs of Noto Color Emoji (SIL Open Font License 1.1), drawn on white; captions are the CLDR short
names of Unicode's emoji-test.txt (Unicode licence). Skin tones, and the gendered, hair and family variants of a
person who is there already, are left out: they are near copies of another picture. Every 20th picture by the hash of
its code points is held out. The text is the standard library's `pydoc_data.topics` (PSF License 2). Needs Pillow with
raqm (its wheels have it) to shape emoji sequences.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from showo.data.tar import write_tar
from showo.pictures import encode_png
from showo.pieces import pieces

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_TEST = Path("/usr/share/unicode/emoji/emoji-test.txt")
STRIKE = 109  # the font's only bitmap size, in pixels per em; glyphs are 136 x 128
SIZE = 64
HELD_OUT = 20  # one in so many

_LINE = re.compile(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (.+)")
_SKIN = range(0x1F3FB, 0x1F400)
_PERSON_VARIANT = re.compile(r"(man|woman|men|women|boy|girl)\b.*")


def emoji_names(emoji_test: Path) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yields (code points, CLDR short name) of the emoji that the set keeps."""
    for line in emoji_test.read_text(encoding="utf-8").splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        codes = tuple(int(code, 16) for code in match[1].split())
        joined = 0x200D in codes
        if any(code in _SKIN for code in codes) or (joined and _is_variant(codes, match[2])):
            continue
        yield codes, match[2]


def _is_variant(codes: tuple[int, ...], name: str) -> bool:
    gendered = 0x2640 in codes or 0x2642 in codes or _PERSON_VARIANT.fullmatch(name) is not None
    return gendered or name.startswith(("person: ", "family", "kiss", "couple"))


def draw(codes: tuple[int, ...], font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """One glyph, centred on white, SIZE x SIZE RGB; None where the font has no single glyph for the sequence."""
    text = "".join(map(chr, codes))
    if font.getlength(text) > 1.5 * STRIKE:
        return None
    canvas = Image.new("RGBA", (160, 160), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((12, 12), text, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        return None
    glyph = canvas.crop(box)
    side = 136
    square = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    square.alpha_composite(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return square.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def make_emoji(folder: Path, font_path: Path, emoji_test: Path, shard_size: int = 400) -> None:
    font = ImageFont.truetype(str(font_path), STRIKE, layout_engine=ImageFont.Layout.RAQM)
    splits: dict[str, list[tuple[str, bytes, str]]] = {"train": [], "val": []}
    seen: set[bytes] = set()
    for codes, name in emoji_names(emoji_test):
        image = draw(codes, font)
        if image is None or image.tobytes() in seen:
            continue
        seen.add(image.tobytes())
        key = "-".join(f"{code:04x}" for code in codes)
        held_out = int(hashlib.sha256(key.encode()).hexdigest(), 16) % HELD_OUT == 0
        splits["val" if held_out else "train"].append((key, encode_png(image, optimize=True), name))
    folder.mkdir(parents=True, exist_ok=True)
    for split, samples in splits.items():
        samples.sort(key=lambda sample: hashlib.sha256(b"order" + sample[0].encode()).digest())
        for shard, part in enumerate(pieces(samples, shard_size)):
            files = [f for key, png, name in part for f in ((f"{key}.png", png), (f"{key}.txt", name.encode()))]
            write_tar(folder / f"{split}-{shard:04d}.tar", files)
        print(f"{split}: {len(samples)} pictures")


def make_text(folder: Path) -> None:
    from pydoc_data.topics import topics

    folder.mkdir(parents=True, exist_ok=True)
    documents = [(f"{key}.txt", " ".join(text.split()).encode()) for key, text in sorted(topics.items())]
    write_tar(folder / "train-0000.tar", documents)
    print(f"text: {len(documents)} documents, {sum(len(d) for _, d in documents)} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--emoji-test", type=Path, default=EMOJI_TEST)
    arguments = parser.parse_args()
    for needed in (arguments.font, arguments.emoji_test):
        if not needed.is_file():
            parser.error(f"{needed} does not exist; apt-get install fonts-noto-color-emoji unicode-data")
    if not features.check("raqm"):
        parser.error("this Pillow has no raqm, which draws emoji sequences; install Pillow's own wheel and libfribidi0")
    make_emoji(arguments.folder / "emoji", arguments.font, arguments.emoji_test)
    make_text(arguments.folder / "text")


if __name__ == "__main__":
    main()
