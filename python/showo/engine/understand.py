"""Text about pictures: one pass over picture and question, then one token at a time from the key-value cache.

Rows are `mmu soi codes eoi sot question`, or `mmu system? soi features eoi question` of models with CLIP-ViT, and may
differ in length; each row continues at its own place.
Only text ids can be answered: the head's other rows (codes, task marks) are not computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from showo.batch import FeatureSpans
from showo.engine.generate import check_finite
from showo.errors import UserError
from showo.model.transformer import KVCache, Showo
from showo.prompting import Prompting, TextIds
from showo.seeds import row_seeds
from showo_ext import OmniMask, sample_tokens

MAX_NEW_TOKENS = 100


@dataclass(frozen=True)
class SeenPictures:
    """Pictures as a vision tower sees them.

    features: [B, P, clip_width]. system: ids that stand before the picture where something is asked about it; a row
    without a question, which asks for a caption, has none, as in training.
    """

    features: Tensor
    system: TextIds


@dataclass(frozen=True)
class _Prompts:
    """What answers follow. ids: int64 [B, S], with pads behind each row's own length."""

    ids: Tensor
    lengths: list[int]
    mask: OmniMask
    features: FeatureSpans | None = None


def answer(
    model: Showo,
    prompting: Prompting,
    pictures: Tensor | SeenPictures,
    questions: Sequence[TextIds],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
) -> list[list[int]]:
    """Text ids of each row's answer, without `<|endoftext|>`; arguments as for `stream`."""
    answers: list[list[int]] = [[] for _ in questions]
    for tokens in stream(
        model,
        prompting,
        pictures,
        questions,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    ):
        for row, token in zip(answers, tokens, strict=True):
            if token is not None:
                row.append(token)
    return answers


def stream(
    model: Showo,
    prompting: Prompting,
    pictures: Tensor | SeenPictures,
    questions: Sequence[TextIds],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
) -> Iterator[list[int | None]]:
    """Yield the next token of every row (None once a row has ended), until all have ended.

    pictures: ids [B, N], codes + image_offset; or, for a model with CLIP-ViT, features.
    questions: text ids (see `question_text`); sot is put before them where pictures are codes.
    temperature 0 is greedy. An answer ends at `<|endoftext|>`, after max_new_tokens, or where the positions end.
    """
    vocab, config = model.config.vocabulary, model.config
    batch = len(questions)
    if isinstance(pictures, Tensor) and (pictures.dim() != 2 or pictures.shape[0] != batch):
        raise ValueError(f"image_ids must be [{batch}, N] for {batch} questions, got {list(pictures.shape)}")
    check_options(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    if batch == 0:
        return
    device = model.device
    if isinstance(pictures, SeenPictures):
        prompts = _seen(prompting, pictures, questions)
    else:
        prompts = _encoded(prompting, pictures, questions)
    longest = max(prompts.lengths)
    check_length(model, longest)
    lengths = torch.tensor(prompts.lengths)
    max_new_tokens = min(max_new_tokens, config.max_positions - longest)
    with torch.inference_mode():
        cache = KVCache(config, batch, longest + max_new_tokens, dtype=model.dtype, device=device)
        hidden = model.hidden_states(
            prompts.ids.to(device),
            features=prompts.features and prompts.features.to(device),
            mask=prompts.mask.to(device),
            positions=torch.arange(longest, device=device),
            cache=cache,
            rows=lengths.to(device)[:, None] - 1,
        )
    seeds = row_seeds(seed, batch).to(device)
    places = lengths.to(device)
    ended = [False] * batch
    for step in range(max_new_tokens):
        with torch.inference_mode():
            logits = model.logits(hidden[:, 0], (0, vocab.text_vocab_size))
            check_finite(logits)
            tokens, _ = sample_tokens(logits, temperature=temperature, top_k=top_k, top_p=top_p, seed=seeds, step=step)
        chosen = tokens.tolist()
        ended = [done or token == prompting.eot for done, token in zip(ended, chosen, strict=True)]
        if all(ended):
            return
        yield [None if done else token for done, token in zip(ended, chosen, strict=True)]
        if step + 1 == max_new_tokens:
            return
        with torch.inference_mode():
            stop = (places + 1).to(torch.int32)
            intervals = torch.stack((torch.zeros_like(stop), stop), dim=-1)[:, None, None]
            hidden = model.hidden_states(
                tokens[:, None],
                mask=OmniMask(intervals, longest + step + 1),
                positions=places[:, None],
                cache=cache,
                slots=places,
            )
            places = places + 1


def check_options(*, max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    """UserError for options that make no sense, before any work."""
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 or more, got {temperature}")
    if top_k < 0:
        raise UserError(f"top_k must be 0 (all) or more, got {top_k}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must lie in (0, 1], got {top_p}")


def prompt_length(codes: int, text: TextIds) -> int:
    """Positions of `mmu soi codes eoi text`, where the text has its sot already."""
    return 3 + codes + len(text)


def seen_length(features: int, system: TextIds, question: TextIds) -> int:
    """Positions of `mmu system? soi features eoi question`."""
    return 3 + features + (len(system) + len(question) if len(question) else 0)


def check_length(model: Showo, length: int) -> None:
    """UserError where picture and question leave no position for an answer."""
    if length >= model.config.max_positions:
        raise UserError(f"picture and question take {length} positions; this model has {model.config.max_positions}")


def _encoded(prompting: Prompting, image_ids: Tensor, questions: Sequence[TextIds]) -> _Prompts:
    """On the device of the codes, which no step waits for. Marks and texts, and so the mask, are known without them."""
    vocab, codes = prompting.vocabulary, image_ids.shape[1]
    head = [vocab.mmu, vocab.soi, *[vocab.mask_id] * codes, vocab.eoi]
    rows = [[*head, *prompting.frame(question)] for question in questions]
    ids = _padded(rows, vocab.pad)
    mask = OmniMask.mmu(ids, soi_id=vocab.soi, eoi_id=vocab.eoi)
    ids = ids.to(image_ids.device)
    ids[:, 2 : 2 + codes] = image_ids
    return _Prompts(ids, [len(row) for row in rows], mask)


def _seen(prompting: Prompting, pictures: SeenPictures, questions: Sequence[TextIds]) -> _Prompts:
    vocab, (_, count, _) = prompting.vocabulary, pictures.features.shape
    heads = [[vocab.mmu, *(pictures.system if len(question) else ()), vocab.soi] for question in questions]
    rows = [
        [*head, *[vocab.mask_id] * count, vocab.eoi, *question] for head, question in zip(heads, questions, strict=True)
    ]
    ids, starts = _padded(rows, vocab.pad), torch.tensor([len(head) for head in heads])
    mask = OmniMask.mmu_vit(len(rows), ids.shape[1], image_start=starts, image_tokens=count)
    places = (ids.flatten() == vocab.mask_id).nonzero().squeeze(1)
    return _Prompts(ids, [len(row) for row in rows], mask, FeatureSpans(pictures.features, places))


def _padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
