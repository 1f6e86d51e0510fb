"""What a training will see of its data: how long texts are, pictures with captions, a row of every stream."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from showo.data.draw_row import draw_row
from showo.data.faults import FaultLog
from showo.data.rows import PictureIds, RowParts
from showo.data.sources import kind_of
from showo.data.sources.config import SourceConfig
from showo.data.streams import STREAMS, RowStream
from showo.dialogue import Dialogue, bare_question
from showo.model.image_tokenizer import ImageTokenizer
from showo.pictures import to_image
from showo.tables import aligned
from showo.tokens import TextTokenizer
from showo.train.config import ShowoTraining
from showo.train.initial import newest_checkpoint
from showo.train.row_streams import FORMATS, RowStreams, TowerSizes, check_codes, code_side
from showo.train.showo import check_fit, open_tower

_QUANTILES = {"shortest": 0.0, "median": 0.5, "95%": 0.95, "longest": 1.0}


def with_data(config: ShowoTraining, sources: Sequence[SourceConfig]) -> ShowoTraining:
    """The configuration with these sources alone, in every stream whose rows can be made of them.

    Rows of mmu_vit are made only where the configuration has some, as they need a vision tower.

    Raises ConfigError where a source makes no sense.
    """
    for source in sources:
        source.check("data")
    streams = {}
    for name in STREAMS:
        stream = getattr(config, name)
        wanted = stream.batch or name != "mmu_vit"
        data = [source for source in sources if wanted and issubclass(kind_of(source.layout), FORMATS[name].kinds)]
        streams[name] = replace(stream, data=data, held_out=[], batch=max(stream.batch, config.accumulate) * bool(data))
    found = replace(config, **streams)
    found.check()
    return found


class Inspection:
    """The streams of a training, opened to be looked at.

    training: by name. Raises what the trainer raises where data, text tokenizer or vision tower cannot be used.
    """

    def __init__(self, config: ShowoTraining) -> None:
        self.config = config
        self.texts = TextTokenizer.from_file(config.text_tokenizer)
        tower = open_tower(config, self.texts, torch.device("cpu"))
        streams = RowStreams(config, self.texts, code_side(config), TowerSizes.of(tower))
        self.training = {stream.name: stream for stream in streams.open_training()}
        self.held_out = {stream.name: stream for stream in streams.open_held_out()}
        self._faults = {name: _fault_log(stream) for name, stream in self.training.items()}

    def text_table(self, samples: int) -> str:
        """A line for every source: its samples, its share of the rows, and how many places the texts of rows take.

        samples: rows of each stream whose texts are looked at, at most. A text that is longer than the room in its
        row is cut; a document is not, as rows take windows of it.
        """
        lines = [["stream", "source", "samples", "share", "texts", *_QUANTILES, "room", "longer"]]
        for name, stream in self.training.items():
            drawn = stream.draw_text_places(range(min(samples, len(stream.pool))))
            self._faults[name].add(drawn)
            for number, source in enumerate(stream.pool.sources):
                places = [count for each in drawn if each.source == number for count in each.value]
                lengths = _lengths(places, stream.format.text_room)
                lines.append([name, source.name, f"{len(source):,}", f"{stream.pool.shares[number]:.1%}", *lengths])
        for name, stream in self.held_out.items():
            for source, share in zip(stream.pool.sources, stream.pool.shares, strict=True):
                blank = [""] * (len(lines[0]) - 4)
                lines.append([f"{name} held out", source.name, f"{len(source):,}", f"{share:.1%}", *blank])
        return "\n".join(aligned(lines, right=range(2, len(lines[0]))))

    def captioned_pictures(self, rows: int) -> list[tuple[Image.Image, str]]:
        """The pictures of the first rows of every stream, resized and cropped, each with what its row says to it."""
        found = []
        for name, stream in self.training.items():
            drawn = stream.draw(range(min(rows, len(stream.pool))))
            self._faults[name].add(drawn)
            for parts in (each.value for each in drawn):
                for picture, said in zip(parts.pictures, _said(parts, self.texts), strict=True):
                    found.append((self._image(picture), f"{name}: {said}"))
        return found

    def faults(self) -> str:
        """A table of what was skipped on the way; "" where nothing was."""
        tables = (f"{name}:\n{table}" for name, log in self._faults.items() if (table := log.table()))
        return "\n".join(tables)

    def _image(self, picture: np.ndarray) -> Image.Image:
        """A picture of pixels uint8 [3, H, W] or codes int64 [N], `resolution` pixels wide and high."""
        if picture.dtype == np.uint8:
            image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
        else:
            side = math.isqrt(len(picture))
            image = to_image(self._image_tokenizer.decode(torch.from_numpy(picture)[None], side, side)[0])
        return image.resize((self.config.resolution, self.config.resolution))

    @functools.cached_property
    def _image_tokenizer(self) -> ImageTokenizer:
        """Only pictures that are codes need it."""
        images = ImageTokenizer.from_pretrained(newest_checkpoint(self.config.image_tokenizer))
        check_fit(self.config, images, self.texts)
        check_codes(self.config, self.training.values(), images)
        return images


def first_row(stream: RowStream, texts: TextTokenizer, config: ShowoTraining) -> str:
    """The first row of a stream as text, below a line that says which sample it is made of."""
    vocabulary = config.model.vocabulary
    (drawn,) = stream.draw([0])
    batch, _ = stream.format.batch([drawn.value], PictureIds(vocabulary, config.model.num_vq_tokens))
    source = stream.pool.sources[drawn.source]
    heading = f"{stream.name}: the first row, of {source[drawn.index].key} in {source.name}"
    return f"{heading}\n{draw_row(batch.packed(vocabulary.pad), texts, vocabulary)}"


def _lengths(places: list[int], room: int) -> list[str]:
    if not places:
        return ["0", *["-"] * len(_QUANTILES), str(room), "-"]
    quantiles = np.quantile(places, [*_QUANTILES.values()], method="inverted_cdf")
    longer = sum(count > room for count in places)
    return [str(len(places)), *map(str, quantiles.tolist()), str(room), f"{longer} ({longer / len(places):.1%})"]


def _fault_log(stream: RowStream) -> FaultLog:
    """Counts, and never stops: all faults are to be seen."""
    return FaultLog([source.name for source in stream.pool.sources], share=1.0)


def _said(parts: RowParts, texts: TextTokenizer) -> list[str]:
    """What a row says to each of its pictures: its own caption, or the one text of the row."""
    if not parts.pictures:
        return []
    if parts.texts:
        captions = [texts.decode(text) or "(caption dropped)" for text in parts.texts]
        return captions if len(captions) > 1 else captions * len(parts.pictures)
    answer = parts.answer
    if isinstance(answer, Dialogue):
        said = " ".join(bare_question(texts.decode(q)) + texts.decode(a) for q, a in answer.turns)
    else:
        said = texts.decode(answer)
    return [said] * len(parts.pictures)
