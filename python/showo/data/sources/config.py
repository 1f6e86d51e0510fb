"""Which files a source reads, and how: what a training's YAML says of each."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from showo.errors import ConfigError
from showo.intervals import COUNT, NOT_NEGATIVE, POSITIVE, within

LAYOUTS = {
    "webdataset": "WebDataset",
    "imagenet": "ImageNet",
    "codes": "Codes",
    "tar_text": "TarText",
    "parquet_text": "ParquetText",
    "llava": "Llava",
    "llava_captions": "LlavaCaptions",
    "sequences": "Sequences",
}  # modules of this package, and their classes
CLEANINGS = ("persons", "prefixes", "first_sentence")


@dataclass
class SourceConfig:
    """One source of samples; docs/data.md shows every layout.

    layout: webdataset, imagenet, codes, llava_captions (captioned pictures), tar_text, parquet_text (documents), llava
        (conversations), or sequences (pictures that follow one another).
    files: paths, or patterns with *, {0000..0009} and {a,b}; "bundled:" begins what the package itself holds.
    weight: share of the samples that are drawn from here, beside the weights of the other sources of a stream.
    captions: webdataset: files of captions by key (json, jsonl, parquet) in place of those in the tars.
    class_names: imagenet: a file of lines "n01440764 tench, Tinca tinca".
    images: llava, llava_captions, sequences: the folder that the paths of pictures begin in; else that of the json.
    column: parquet_text: the column of texts; else "content" or "text", whichever is there.
    clean: what is done to captions beyond `clean_text`; see `showo.data.captions`.
    block, window: read `block` samples after one another, and mix those of `window` such blocks, for disks on which
        reading at random is slow; block 0 mixes all.
    """

    layout: str = MISSING
    files: list[str] = field(default_factory=list)
    weight: float = within(POSITIVE, 1.0)
    captions: list[str] = field(default_factory=list)
    class_names: str = ""
    images: str = ""
    column: str = ""
    clean: list[str] = field(default_factory=list)
    block: int = within(NOT_NEGATIVE, 0)
    window: int = within(COUNT, 4)

    def describe(self) -> str:
        """The source in messages and tables, e.g. "webdataset emoji/train-*.tar"."""
        return f"{self.layout} {self.files[0]}" + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")

    def check(self, key: str) -> None:
        """Raises ConfigError, which names `key`, where a layout or cleaning is unknown, or nothing is to be read."""
        if self.layout not in LAYOUTS:
            raise ConfigError(f"{key}.layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if not self.files:
            raise ConfigError(f"{key}.files must be at least one file, got []")
        if unknown := [name for name in self.clean if name not in CLEANINGS]:
            raise ConfigError(f"{key}.clean must be of {', '.join(CLEANINGS)}, got {unknown[0]!r}")
