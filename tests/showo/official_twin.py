"""The official formulas written out, eager and padded, in fp64: no code of the package takes part.

From the description of showlab/Show-o: models/phi.py, models/modeling_showo.py and training/prompting_utils.py. One row
at a time, the whole sequence and the whole vocabulary in every step, no cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from showo.config import ShowoConfig

State = Mapping[str, Tensor]
Noise = Callable[[int], tuple[Tensor, Tensor]]  # step -> uniforms [N, codes] and [N]


def forward(state: State, config: ShowoConfig, ids: Tensor, dense: Tensor, positions: Tensor) -> Tensor:
    """Logits [S, V] of one row, in fp64. dense: bool [S, S], which column a row may look at."""
    state = {name: tensor.double() for name, tensor in state.items()}
    heads, size = config.num_heads, config.hidden_size // config.num_heads
    turned = size // 2

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * state[name + ".weight"] + state[name + ".bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    def turn(x: Tensor) -> Tensor:
        out = x.clone()
        for i in range(turned // 2):
            angle = positions.double() * 10000 ** (-2 * i / turned)
            a, b = x[:, i], x[:, i + turned // 2]
            out[:, i] = a * angle.cos() - b * angle.sin()
            out[:, i + turned // 2] = b * angle.cos() + a * angle.sin()
        return out

    x = state["showo.model.embed_tokens.weight"][ids]
    for n in range(config.num_layers):
        prefix = f"showo.model.layers.{n}."
        h = norm(x, prefix + "input_layernorm")
        q, k, v = (linear(h, f"{prefix}self_attn.{c}_proj") for c in "qkv")
        outs = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            qh = turn(norm(q[:, part], prefix + "self_attn.q_layernorm"))
            kh = turn(norm(k[:, part], prefix + "self_attn.k_layernorm"))
            scores = (qh @ kh.T / math.sqrt(size)).masked_fill(~dense, -math.inf)
            outs.append(scores.softmax(-1) @ v[:, part])
        attention = linear(torch.cat(outs, -1), prefix + "self_attn.dense")
        z = linear(h, prefix + "mlp.fc1")
        z = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        x = x + attention + linear(z, prefix + "mlp.fc2")
    return linear(norm(x, "showo.model.final_layernorm"), "showo.lm_head")


def _t2i_row(config: ShowoConfig, text: Sequence[int], eot: int, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask of `[PAD]* t2i sot text eot soi codes eoi`: text causal, the picture sees all but the padding."""
    vocab = config.vocabulary
    words = [vocab.t2i, eot, *text, eot]
    pads = config.max_text_len + 1 - len(words)
    ids = torch.tensor([*[vocab.pad] * pads, *words, vocab.soi, *codes.tolist(), vocab.eoi])
    column = torch.arange(len(ids))
    dense = column <= column[:, None]
    dense[pads:, :pads] = False
    dense[pads + len(words) :, pads:] = True
    return ids, dense


def generate(
    state: State, config: ShowoConfig, text: Sequence[int], *, eot: int, steps: int, guidance: float, noise: Noise
) -> Tensor:
    """Codes [N] of one picture: cosine schedule, noise on the confidences that cools by (1 - ratio) every step."""
    vocab, places = config.vocabulary, config.num_vq_tokens
    canvas = torch.full((places,), vocab.mask_id)
    temperature, codes = 1.0, canvas
    for step in range(steps):

        def logits(words: Sequence[int], canvas: Tensor = canvas) -> Tensor:
            ids, dense = _t2i_row(config, words, eot, canvas)
            found = forward(state, config, ids, dense, torch.arange(len(ids)))
            return found[-places - 1 : -1, vocab.image_offset : -1]

        guided = (1 + guidance) * logits(text) - guidance * logits([])
        probabilities = guided.softmax(-1)
        choice, order = (uniform.double() for uniform in noise(step))
        drawn = (probabilities.log() - (-choice.log()).log()).argmax(-1)
        unknown = canvas == vocab.mask_id
        codes = torch.where(unknown, drawn, canvas - vocab.image_offset)
        ratio = (step + 1) / steps
        share = torch.cos(torch.tensor(ratio) * math.pi * 0.5)  # in fp32, as there: it decides what is rounded down
        masked = min(int(unknown.sum()) - 1, int((places * share).floor()))
        temperature *= 1 - ratio
        chosen = probabilities.gather(-1, codes[:, None])[:, 0].masked_fill(~unknown, math.inf)
        confidence = chosen.log() - temperature * (-order.log()).log()
        again = confidence < confidence.sort().values[max(1, masked)]
        canvas = torch.where(again, vocab.mask_id, codes + vocab.image_offset)
    return codes


def describe(
    state: State, config: ShowoConfig, codes: Tensor, question: Sequence[int], *, eot: int, tokens: int
) -> Tensor:
    """Greedy answer to `mmu soi codes eoi sot question`: all rows see the picture, text is causal behind it.

    Of text ids alone, unlike the official code, which could answer with marks and codes.
    """
    vocab = config.vocabulary
    ids = [vocab.mmu, vocab.soi, *(codes + vocab.image_offset).tolist(), vocab.eoi, eot, *question]
    seen, asked = len(codes) + 3, len(ids)
    for _ in range(tokens):
        column = torch.arange(len(ids))
        dense = (column <= column[:, None]) | (column < seen)
        logits = forward(state, config, torch.tensor(ids), dense, column)[-1]
        ids.append(int(logits[: vocab.text_vocab_size].argmax()))
    return torch.tensor(ids[asked:])
