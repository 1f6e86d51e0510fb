"""The three training streams of a small set held in memory: text-to-image, text, understanding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from showo.batch import Batch
from showo.data.shards import Shuffled
from showo.dialogue import Dialogue, encode_dialogue
from showo.model.image_tokenizer import ImageTokenizer
from showo.prompting import Prompting, condition_dropout
from showo.tokens import TextTokenizer
from showo_ext import corrupt_tokens


@torch.no_grad()
def encode_pictures(tokenizer: ImageTokenizer, images: Tensor, batch: int = 64) -> Tensor:
    """Codes int64 [pictures, codes] of pictures [pictures, 3, H, W] in [-1, 1]."""
    return torch.cat([tokenizer.encode(some) for some in images.split(batch)])


def cosine_mask_ratio(batch: int, generator: torch.Generator) -> Tensor:
    """cos(pi t / 2) with t uniform in [0, 1): the share of image tokens that is masked, float32 [batch]."""
    return torch.cos(torch.rand(batch, generator=generator) * (torch.pi / 2))


class PictureStream:
    """Pairs of image codes and captions in an endless shuffled order. codes are 0-based, [pictures, codes]."""

    def __init__(self, prompting: Prompting, codes: Tensor, captions: Sequence[Sequence[int]], seed: int) -> None:
        self.prompting, self.captions = prompting, captions
        self.image_ids = codes + prompting.vocabulary.image_offset
        self.order = Shuffled(len(codes), seed)

    def t2i(self, start: int, count: int, dropout: float, generator: torch.Generator) -> Batch:
        """Masked pictures after their captions; a share `dropout` of the captions is empty."""
        chosen = self.order.indices(start, count)
        ratio = cosine_mask_ratio(count, generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        inputs, labels, _ = corrupt_tokens(self.image_ids[chosen], ratio, self.prompting.vocabulary.mask_id, seed=seed)
        drop = condition_dropout(count, dropout, generator)
        return self.prompting.t2i([self.captions[i] for i in chosen], inputs, labels, drop=drop)

    def mmu(
        self, start: int, count: int, questions: Sequence[Question], share: float, generator: torch.Generator
    ) -> Batch:
        """Pictures before their captions; a share of the captions answers a question, which itself is not learned."""
        chosen = self.order.indices(start, count)
        texts: list[Sequence[int] | Dialogue] = []
        for i in chosen:
            asked = bool(questions) and float(torch.rand((), generator=generator)) < share
            if asked:
                question = questions[int(torch.randint(len(questions), (), generator=generator))]
                texts.append(question.answered[i])
            else:
                texts.append(self.captions[i])
        return self.prompting.mmu(self.image_ids[chosen], texts)


class Question:
    """A question, and the captions of the pictures as its answers."""

    def __init__(self, question: str, captions: Sequence[str], tokenizer: TextTokenizer) -> None:
        self.answered = [encode_dialogue([(question, caption)], tokenizer) for caption in captions]


class TextStream:
    """Documents cut into windows that fill a row of `length` places, in an endless shuffled order."""

    def __init__(self, prompting: Prompting, documents: Sequence[Sequence[int]], length: int, seed: int) -> None:
        window = length - 2  # begin and end marks
        self.prompting, self.length = prompting, length
        self.windows = [d[i : i + window] for d in documents for i in range(0, len(d), window)]
        self.order = Shuffled(len(self.windows), seed)

    def lm(self, start: int, count: int) -> Batch:
        return self.prompting.lm([self.windows[i] for i in self.order.indices(start, count)], self.length)
