"""Tars in which the files of a sample follow one another: key.png, .jpg or .webp, and key.txt or key.json.

The caption is the .txt, else "caption" or "captions" of the .json; or it comes from files beside, by key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from showo.data.caption_files import CaptionFiles, captions_of
from showo.data.captions import usable_captions
from showo.data.json_scan import VALUE, parse_entry
from showo.data.open_files import decode_text
from showo.data.patterns import find_paths
from showo.data.sample import CaptionedPicture, Picture
from showo.data.sources.config import SourceConfig
from showo.data.sources.tar_samples import TarSamples
from showo.data.tar_scan import CAPTION_TYPES, IMAGE_TYPES, scan_pairs
from showo.errors import SampleError


class WebDataset:
    kind = CaptionedPicture

    def __init__(self, config: SourceConfig, cache: Path) -> None:
        self.name, self.clean = config.describe(), config.clean
        self.tars = TarSamples(find_paths(config.files), scan_pairs, cache)
        self.captions = CaptionFiles(find_paths(config.captions, "captions"), cache) if config.captions else None

    def __len__(self) -> int:
        return len(self.tars)

    def __getitem__(self, index: int) -> CaptionedPicture:
        path, key, files = self.tars.read(index, (*IMAGE_TYPES, *CAPTION_TYPES))
        origin = f"{path}: {key}"
        images = [kind for kind in IMAGE_TYPES if kind in files]
        if not images:
            raise SampleError(f"{origin}: no picture; expected one of .{', .'.join(IMAGE_TYPES)}", "no picture")
        if len(images) > 1:
            raise SampleError(f"{origin}: pictures of several types, .{', .'.join(images)}", "several pictures")
        written = self.captions.find(key, origin) if self.captions else _captions_in(files, origin)
        picture = Picture(f"{origin}.{images[0]}", data=files[images[0]])
        return CaptionedPicture(key, picture, usable_captions(written, self.clean, origin))


def _captions_in(files: dict[str, bytes], origin: str) -> Any:
    if "txt" in files:
        return decode_text(files["txt"], f"{origin}.txt")
    if "json" in files:
        return captions_of(parse_entry(files["json"], VALUE, f"{origin}.json"))
    return None
