"""The streams of a training: how the rows of each format are made, and the sources that they are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from showo.data.code_shards import Encoding
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
from showo.data.sources.codes import Codes
from showo.data.streams import STREAMS, RowStream
from showo.data.video_rows import TextToVideo, VideoToVideo
from showo.errors import ConfigError
from showo.model.clip import ClipTower
from showo.model.image_tokenizer import ImageTokenizer
from showo.prompting import Prompting
from showo.seeds import hashed_words
from showo.tokens import TextTokenizer
from showo.train.config import ShowoTraining
from showo.train.pools import check_apart, open_samples

FORMATS: dict[str, type[Format]] = {
    "t2i": TextToImage,
    "lm": Texts,
    "mmu": Understanding,
    "lvg": PicturesAndTexts,
    "mmu_vit": FeatureUnderstanding,
    "t2v": TextToVideo,
    "v2v": VideoToVideo,
}


@dataclass(frozen=True)
class TowerSizes:
    """Of a vision tower: the side of its pictures in pixels, and the features of each; here of CLIP-ViT-L/14 at 336."""

    side: int = 336
    image_tokens: int = 576

    @classmethod
    def of(cls, tower: ClipTower | None) -> TowerSizes:
        """Where there is none, any sizes do: no row is made with them."""
        return cls() if tower is None else cls(tower.side, tower.image_tokens)


@dataclass(frozen=True)
class RowStreams:
    """Opens the streams of a training. Of the encoders of pictures, rows need no more than some sizes.

    side: of the square grid of codes of a picture.
    """

    config: ShowoTraining
    texts: TextTokenizer
    side: int
    tower: TowerSizes

    def open(self, name: str, *, held_out: bool) -> RowStream:
        """The rows of a stream, which is to have sources. Raises as `open_samples`; held out, as `check_apart`."""
        stream, form = getattr(self.config, name), self._format(name, held_out)
        seed = int(hashed_words(self.config.seed, STREAMS.index(name))[0])
        sources = stream.held_out if held_out else stream.data
        if held_out:
            learned = {f"{name}.data": stream.data for name, stream in self.config.streams.items()}
            check_apart(learned, {f"{name}.held_out": sources})
        pool = open_samples(f"{name}.{'held_out' if held_out else 'data'}", sources, form.kinds, seed)
        return RowStream(name, form, pool, stream.batch, seed)

    def open_training(self) -> list[RowStream]:
        return [self.open(name, held_out=False) for name in self.config.streams]

    def open_held_out(self) -> list[RowStream]:
        return [self.open(name, held_out=True) for name, stream in self.config.streams.items() if stream.held_out]

    def _format(self, name: str, held_out: bool) -> Format:
        """How rows of a stream are made. Held-out rows keep their captions, and are asked no questions."""
        config = self.config
        pictures = PictureReader(config.resolution, self.side, config.model.codebook_size)
        prompting = Prompting.for_model(config.model, eot=self.texts.eos)
        making = Making(prompting, self.texts, pictures, config.objective, held_out)
        questions = tuple(config.questions), 0.0 if held_out else config.question_share
        dropout = 0.0 if held_out else config.condition_dropout
        if name == "t2i":
            return TextToImage(making, dropout)
        if name == "t2v":
            return TextToVideo(making, dropout)
        if name == "v2v":
            return VideoToVideo(making)
        if name == "lm":
            return Texts(making, config.model.sequence_length)
        if name == "lvg":
            return PicturesAndTexts(making)
        if name == "mmu":
            return Understanding(making, *questions)
        return FeatureUnderstanding(making, *questions, self.tower.side, self.tower.image_tokens)


def code_side(config: ShowoTraining) -> int:
    """Of the square grid of codes that the model draws. Raises ConfigError where their number is no square."""
    side = math.isqrt(config.model.num_vq_tokens)
    if side**2 != config.model.num_vq_tokens:
        raise ConfigError(f"model.num_vq_tokens must be a square, got {config.model.num_vq_tokens}")
    return side


def check_codes(config: ShowoTraining, streams: Iterable[RowStream], images: ImageTokenizer) -> None:
    """Raises DataError for shards of codes that another image tokenizer, or another resolution, has made."""
    here: Encoding | None = None
    for source in (source for stream in streams for source in stream.pool.sources):
        if isinstance(source, Codes):
            here = here or Encoding.of(images, config.image_tokenizer, config.resolution)
            source.check_encoding(here)
