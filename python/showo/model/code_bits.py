"""Rows of image codes that share what their bits mean, for the time of a training.

A code of the lookup-free quantizer is a word of bits, and codes that differ in one bit draw pictures that differ in one
respect. The official tables (`embed_tokens` and `lm_head`) know nothing of that: 8192 unrelated rows, each of which
learns only from the places where that very code stands. With `add_code_bits` the row of a code becomes

    row(code) = table[code] + sum over the bits b of the code of  (+1 if b is set, else -1) * W[b]

with a learned W of [bits, hidden_size] for each of the two tables. What one code teaches about a bit, all codes with
that bit know. The sum has the shape of the plain table, so `save_pretrained` writes the official layout, and a model
that is loaded again is a plain one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from showo.errors import ConfigError
from showo.model.linear import Linear
from showo.model.transformer import Showo
from showo.tokens import Vocabulary


class CodeBits(nn.Module):
    """A parametrization: a table [vocabulary, width] with the sum over bits added to the rows of codes.

    The most significant bit of a code is the first row of `weight` [bits, width], as channel 0 of the latent is.
    """

    signs: Tensor

    def __init__(self, vocabulary: Vocabulary, width: int, std: float) -> None:
        super().__init__()
        bits = vocabulary.codebook_size.bit_length() - 1
        if vocabulary.codebook_size != 2**bits:
            raise ConfigError(f"code_bits: codebook_size must be a power of two, got {vocabulary.codebook_size}")
        self.first, self.count = vocabulary.image_offset, vocabulary.codebook_size
        codes = torch.arange(self.count)[:, None] >> torch.arange(bits - 1, -1, -1)
        self.register_buffer("signs", (codes & 1) * 2.0 - 1.0, persistent=False)
        self.weight = nn.Parameter(torch.empty(bits, width).normal_(0, std))

    def forward(self, table: Tensor) -> Tensor:
        end = self.first + self.count
        codes = torch.addmm(table[self.first : end], self.signs.to(table.dtype), self.weight)
        return torch.cat([table[: self.first], codes, table[end:]])


def add_code_bits(model: Showo, *, keep_tables: bool = False) -> None:
    """Gives both tables of `model` the shared part, drawn from torch's global generator as the tables were.

    keep_tables: the shared part begins at zero, so that a trained model computes what it did.

    Within `parametrize.cached()` (torch.nn.utils) the two sums are made once, not for every use of a table.

    Raises ConfigError where the number of codes is no power of two.
    """
    vocabulary, width = model.config.vocabulary, model.config.hidden_size
    for module in (model.showo.model.embed_tokens, model.showo.lm_head):
        std = 0.0 if keep_tables else Linear.std
        parametrize.register_parametrization(module, "weight", CodeBits(vocabulary, width, std))
