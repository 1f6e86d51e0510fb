"""Text about pictures: one pass over picture and question, then one token at a time from the key-value cache.

Rows are `mmu soi codes eoi sot question`, or `mmu system? soi features eoi question` of models with CLIP-ViT, and may
differ in length; each row continues at its own place.
Only text ids can be answered: the head's other rows (codes, task marks) are not computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from showo.config import ShowoConfig
from showo.engine.session import Session
from showo.errors import UserError
from showo.model.transformer import Showo
from showo.prompting import Prompting, TextIds

MAX_NEW_TOKENS = 100


@dataclass(frozen=True)
class SeenPictures:
    """Pictures as a vision tower sees them.

    features: [B, P, clip_width]. system: ids that stand before the picture where something is asked about it; a row
    without a question, which asks for a caption, has none, as in training.
    """

    features: Tensor
    system: TextIds


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
    batch = len(questions)
    if isinstance(pictures, Tensor) and (pictures.dim() != 2 or pictures.shape[0] != batch):
        raise ValueError(f"image_ids must be [{batch}, N] for {batch} questions, got {list(pictures.shape)}")
    check_options(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    if batch == 0:
        return
    if isinstance(pictures, SeenPictures):
        asked, image_ids = prompting.asked_vit(questions, pictures.system, pictures.features), None
    else:
        asked, image_ids = prompting.asked(questions, pictures.shape[1]), pictures
    check_length(model.config, asked.input_ids.shape[1])
    session = Session(model, batch)
    session.append(asked, image_ids)
    yield from session.generate_text(
        eot=prompting.eot,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )


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


def check_length(config: ShowoConfig, length: int) -> None:
    """UserError where picture and question leave no position for an answer."""
    if length >= config.max_positions:
        raise UserError(f"picture and question take {length} positions; this model has {config.max_positions}")
