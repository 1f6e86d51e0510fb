"""Micro-batches of pictures with their captions, for a vision tower's training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from showo.data.picture_batches import PictureBatch, PictureBatches
from showo.data.rows import stacked
from showo.data.sample import CaptionedPicture, Sample
from showo.errors import SampleError
from showo.model.clip import clip_pixels
from showo.seeds import seeded_random
from showo.tokens import TextTokenizer


@dataclass(frozen=True)
class PairBatch(PictureBatch):
    """texts: int64 [B, L], each a caption and `<|endoftext|>`, which also fills the row. lengths: int64 [B].

    L: of the longest text.
    """

    texts: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class PairBatches(PictureBatches):
    """make(position) for `showo.data.loader.Loader`: micro-batches of `size` pairs.

    places: of a text with its end, at most. seed: of the choice among several captions of a picture.
    """

    tokenizer: TextTokenizer
    places: int
    seed: int

    def __call__(self, position: int) -> PairBatch:
        return self.of(self.numbers(position))

    def of(self, numbers: range) -> PairBatch:
        drawn = self.pool.draw(numbers, self._pair)
        pixels = stacked([each.value[0] for each in drawn], self.resolution)
        captions = [torch.tensor(each.value[1]) for each in drawn]
        texts = pad_sequence(captions, batch_first=True, padding_value=self.tokenizer.eos)
        lengths = torch.tensor([len(caption) for caption in captions])
        return PairBatch(pixels, [each.facts() for each in drawn], texts, lengths)

    def _pair(self, number: int, sample: Sample) -> tuple[np.ndarray, list[int]]:
        """Pixels uint8 [3, side, side] and ids with the end. Raises SampleError where the sample cannot be used."""
        assert isinstance(sample, CaptionedPicture)
        ids = self.tokenizer.encode(seeded_random(self.seed, 0, number).choice(sample.captions))
        if len(ids) >= self.places:
            raise SampleError(f"{sample.key}: a caption of {len(ids)} ids, at most {self.places - 1}", "long caption")
        pixels = clip_pixels(sample.picture.open(), self.resolution).contiguous().numpy()
        return pixels, [*ids, self.tokenizer.eos]
