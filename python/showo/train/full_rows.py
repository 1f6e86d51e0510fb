"""Rows that nobody has data for yet: full of text, so that a plan made with them is none too small."""

from __future__ import annotations

import torch

from showo.batch import Batch
from showo.data.corruption import Corrupted, corrupt, draw_corruption
from showo.data.rows import CorruptedRows
from showo.dialogue import Dialogue
from showo.prompting import Prompting
from showo.seeds import seeded_random
from showo.train.config import ShowoTraining
from showo.train.row_streams import TowerSizes, code_side

SYSTEM_PLACES = 28  # of `showo.dialogue.SYSTEM_PROMPT` with the text tokenizer of the released models


def full_rows(config: ShowoTraining, name: str, tower: TowerSizes, count: int) -> tuple[Batch, int]:
    """Padded rows of a stream whose texts fill their places, and how many pictures each has.

    Rows of pictures and texts in turn, and of videos, have as many pictures as fit them.
    """
    sizes = config.model
    prompting = Prompting.for_model(sizes, eot=0)
    if name == "lm":
        return prompting.lm([[0] * sizes.sequence_length] * count, sizes.sequence_length), 0
    if name == "mmu":
        codes = torch.full((count, sizes.num_vq_tokens), sizes.vocabulary.image_offset)
        return prompting.mmu(codes, [[0] * prompting.mmu_text_len] * count), 1
    if name == "mmu_vit":
        answer = Dialogue([([], [0] * prompting.mmu_vit_text_len)])
        features = torch.zeros(count, tower.image_tokens, 1)
        system = [0] * SYSTEM_PLACES
        return prompting.mmu_vit([answer] * count, system, features, image_tokens=tower.image_tokens), 1
    caption = [0] * sizes.max_text_len
    if name == "t2i":
        hidden = _hidden(config, count)
        return prompting.t2i([caption] * count, hidden.inputs, hidden.targets, image_weights=hidden.weights), 1
    if name == "lvg":
        pictures = (sizes.max_positions - 1) // (sizes.num_vq_tokens + 2 + sizes.max_text_len)
        found = _hidden_by_row(config, count, pictures, whole=pictures - 1 if config.objective.keep_earlier else 0)
        texts = [[caption] * pictures] * count
        return prompting.lvg(texts, found.inputs, found.targets, image_weights=found.weights), pictures
    if name == "t2v":
        frames = (sizes.max_positions - sizes.max_text_len - 3) // sizes.num_vq_tokens
        found = _hidden_by_row(config, count, frames)
        return prompting.t2v([caption] * count, found.inputs, found.targets, frame_weights=found.weights), frames
    frames = max(2, (sizes.max_positions - sizes.max_text_len - 5) // sizes.num_vq_tokens)
    given = torch.full((count, 1, sizes.num_vq_tokens), sizes.vocabulary.image_offset)
    found = _hidden_by_row(config, count, frames - 1)
    drawn = (found.inputs, found.targets)
    return prompting.v2v(given, [caption] * count, *drawn, frame_weights=found.weights), frames


def _hidden_by_row(config: ShowoTraining, rows: int, pictures: int, whole: int = 0) -> CorruptedRows:
    return CorruptedRows.of(_hidden(config, rows * pictures, whole), [pictures] * rows)


def _hidden(config: ShowoTraining, pictures: int, whole: int = 0) -> Corrupted:
    """Pictures of which as much is hidden as the objective says, but for `whole` before each of these."""
    sizes, grid = config.model, (code_side(config), code_side(config))
    codes = torch.full((pictures, sizes.num_vq_tokens), sizes.vocabulary.image_offset)
    drawn = [
        draw_corruption(
            config.objective,
            grid,
            seeded_random(config.seed, number),
            ratio=0.0 if number % (whole + 1) < whole else None,
        )
        for number in range(pictures)
    ]
    return corrupt(codes, drawn, config.objective, sizes.vocabulary, grid)
