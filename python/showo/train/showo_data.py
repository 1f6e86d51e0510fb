"""The data of `showo train`: sources opened, rows of every stream, micro-batches complete and on the device."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from torch import Tensor

from showo.data.encoded import EncodedSource, encode_source
from showo.data.loader import Loader
from showo.data.micro_batch import RowBatch
from showo.data.sample import Document
from showo.data.streams import MicroBatches, RowStream
from showo.model.clip import ClipTower
from showo.model.image_tokenizer import ImageTokenizer
from showo.pieces import pieces
from showo.tokens import TextTokenizer
from showo.train.config import ShowoTraining
from showo.train.ranks import Ranks
from showo.train.row_streams import RowStreams, TowerSizes, check_codes


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

    def __init__(
        self, config: ShowoTraining, encoders: Encoders, device: torch.device, console: Console, ranks: Ranks
    ) -> None:
        """Of the training, the rows of one of the ranks; of the validation, all. Raises as the readers do."""
        self.config, self.encoders, self.device = config, encoders, device
        streams = RowStreams(config, encoders.texts, encoders.side, TowerSizes.of(encoders.tower))
        training, held_out = streams.open_training(), streams.open_held_out()
        self.pools = {stream.name: stream.pool for stream in training}
        check_codes(config, [*training, *held_out], encoders.images)
        self._encode_first([*training, *held_out], console)
        vocabulary, codes = config.model.vocabulary, config.model.num_vq_tokens
        self._held_out = MicroBatches(held_out, vocabulary, codes, config.accumulate)
        make = MicroBatches(training, vocabulary, codes, config.accumulate, rank=ranks.rank, ranks=ranks.count)
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
