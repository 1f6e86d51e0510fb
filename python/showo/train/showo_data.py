"""The data of `showo train`: sources opened, rows of every stream, micro-batches complete and on the device."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from torch import Tensor

from showo.data.code_shards import Encoding
from showo.data.encoded import EncodedSource, encode_source
from showo.data.loader import Loader
from showo.data.micro_batch import RowBatch
from showo.data.rows import (
    FeatureUnderstanding,
    Format,
    Making,
    PictureReader,
    PicturesAndTexts,
    Texts,
    TextToImage,
    Understanding,
)
from showo.data.sample import Document
from showo.data.sources.codes import Codes
from showo.data.streams import STREAMS, MicroBatches, RowStream
from showo.model.clip import ClipTower
from showo.model.image_tokenizer import ImageTokenizer
from showo.pieces import pieces
from showo.prompting import Prompting
from showo.seeds import hashed_words
from showo.tokens import TextTokenizer
from showo.train.config import ShowoTraining
from showo.train.pools import open_samples


@dataclass(frozen=True)
class Encoders:
    """What turns texts and pictures into what the model reads; all frozen.

    side: of the square grid of codes of a picture. tower: of the rows of mmu_vit.
    """

    texts: TextTokenizer
    images: ImageTokenizer
    side: int
    tower: ClipTower | None = None

    def encode(self, pixels: Tensor) -> Tensor:
        """Codes int64 [pictures, N] of pixels uint8 [pictures, 3, H, W] on the tokenizer's device."""
        return self.images.encode_pixels(pixels)


class ShowoData:
    """Micro-batches of a training and of its validation, on a device that the encoders are on too."""

    def __init__(self, config: ShowoTraining, encoders: Encoders, device: torch.device, console: Console) -> None:
        self.config, self.encoders, self.device = config, encoders, device
        training = [_open_stream(config, encoders, name, held_out=False) for name in config.streams]
        held_out = [
            _open_stream(config, encoders, name, held_out=True)
            for name, stream in config.streams.items()
            if stream.held_out
        ]
        self.pools = {stream.name: stream.pool for stream in training}
        self._check_codes([*training, *held_out])
        self._encode_first([*training, *held_out], console)
        vocabulary, codes = config.model.vocabulary, config.model.num_vq_tokens
        self._held_out = MicroBatches(held_out, vocabulary, codes, config.accumulate)
        make = MicroBatches(training, vocabulary, codes, config.accumulate)
        self._loader = Loader(make, workers=config.workers, prefetch=config.prefetch)

    @property
    def seconds_waited(self) -> float:
        return self._loader.seconds_waited

    def between(self, start: int, end: int) -> Generator[RowBatch, None, None]:
        for rows in self._loader.between(start, end):
            yield self._complete(rows)

    def held_out(self) -> Iterator[RowBatch]:
        """The same rows in every validation: the first ones of every stream, as many as a micro-batch has at once."""
        for stream in self._held_out.streams:
            count = min(self.config.validation_samples, len(stream.pool))
            at_once = stream.rows_per_step // self.config.accumulate
            for numbers in pieces(range(count), at_once):
                yield self._complete(self._held_out.of({stream.name: numbers}))

    def _complete(self, rows: RowBatch) -> RowBatch:
        encoders = self.encoders
        return rows.completed(encoders.encode, encoders.tower, self.config.model.vocabulary, self.device)

    def _check_codes(self, streams: list[RowStream]) -> None:
        """Raises DataError for shards of codes that another image tokenizer, or another resolution, has made."""
        here: Encoding | None = None
        for source in (source for stream in streams for source in stream.pool.sources):
            if isinstance(source, Codes):
                images, name = self.encoders.images, self.config.image_tokenizer
                here = here or Encoding.of(images, name, self.config.resolution)
                source.check_encoding(here)

    def _encode_first(self, streams: list[RowStream], console: Console) -> None:
        """Puts the codes of small sources in their place; a source that several streams have is encoded once."""
        done: dict[str, EncodedSource] = {}
        for pool in (stream.pool for stream in streams if stream.name != "mmu_vit"):
            for number, (source, config) in enumerate(zip(pool.sources, pool.configs, strict=True)):
                has_pictures = config.layout != "codes" and not issubclass(source.kind, Document)
                if not has_pictures or len(source) > self.config.encode_first:
                    continue
                key = repr(replace(config, weight=1.0))
                if key not in done:
                    done[key] = encode_source(source, self.config.resolution, self._codes, self.config.workers, console)
                pool.sources[number] = done[key]

    def _codes(self, pixels: Tensor) -> Tensor:
        return self.encoders.encode(pixels.to(self.device))


def _open_stream(config: ShowoTraining, encoders: Encoders, name: str, *, held_out: bool) -> RowStream:
    """The rows of a stream. Raises as `open_samples`."""
    stream, form = config.streams[name], _row_format(config, encoders, name, held_out=held_out)
    seed = int(hashed_words(config.seed, STREAMS.index(name))[0])
    sources = stream.held_out if held_out else stream.data
    pool = open_samples(f"{name}.{'held_out' if held_out else 'data'}", sources, form.kinds, seed)
    return RowStream(name, form, pool, stream.batch, seed)


def _row_format(config: ShowoTraining, encoders: Encoders, name: str, *, held_out: bool) -> Format:
    """How rows of a stream are made. Held-out rows keep their captions, and are asked no questions."""
    pictures = PictureReader(config.resolution, encoders.side, config.model.codebook_size)
    prompting = Prompting.for_model(config.model, eot=encoders.texts.eos)
    making = Making(prompting, encoders.texts, pictures, config.objective, held_out)
    questions = tuple(config.questions), 0.0 if held_out else config.question_share
    if name == "t2i":
        return TextToImage(making, 0.0 if held_out else config.condition_dropout)
    if name == "lm":
        return Texts(making, config.model.sequence_length)
    if name == "lvg":
        return PicturesAndTexts(making)
    if name == "mmu":
        return Understanding(making, *questions)
    assert encoders.tower is not None
    return FeatureUnderstanding(making, *questions, encoders.tower.side, encoders.tower.image_tokens)
