"""Rows as the stages of a training mix them, of random ids: what benchmarks of whole steps compute with."""

from __future__ import annotations

import torch

from showo.batch import Batch
from showo.config import ShowoConfig
from showo.prompting import Prompting


def padded_rows(config: ShowoConfig, t2i: int, lm: int, mmu: int, caption: int, *, seed: int = 0) -> Batch:
    """So many rows of each format, padded to one length, that of t2i rows. caption: tokens of each caption and answer;
    documents (lm) fill their rows. Of the codes of t2i rows, 2 / pi are hidden, the mean of the cosine schedule.
    """
    random = torch.Generator().manual_seed(seed)
    prompting, ids = Prompting.for_model(config, eot=0), config.vocabulary

    def texts(count: int, length: int) -> list[list[int]]:
        return torch.randint(1, config.text_vocab_size, (count, length), generator=random).tolist()

    def codes(count: int) -> torch.Tensor:
        return torch.randint(*ids.image_range, (count, config.num_vq_tokens), generator=random)

    drawn = codes(t2i)
    hidden = torch.rand(drawn.shape, generator=random) < 2 / torch.pi
    pictures = drawn.masked_fill(hidden, ids.mask_id), drawn.masked_fill(~hidden, -100)
    batches = [
        prompting.t2i(texts(t2i, caption), *pictures),
        prompting.lm(texts(lm, config.sequence_length), config.sequence_length),
        prompting.mmu(codes(mmu), texts(mmu, caption)),
    ]
    return Batch.cat([batch for batch, count in zip(batches, (t2i, lm, mmu), strict=True) if count])
