"""Sequences: from text ids and image ids to rows of input ids, targets, positions and the omni-attention mask.

Formats (T = max_text_len, N image places; every padded training row is T + 1 + N + 2 long):

    t2i      [PAD]* t2i sot text eot | soi image eoi              text part T + 1 places, left padded
    lm       sot text eot [PAD]*                                  cut without eot when too long
    mmu      mmu soi image eoi | sot text eot [PAD]*              text part T places, right padded
    mmu_vit  mmu system soi features eoi | text eot [PAD]*        features are embeddings, no sot
    lvg      [PAD]* t2i sot text eot soi image eoi sot text eot soi image eoi ...

sot and eot are the same id, `<|endoftext|>`; sot is added only where a text does not begin with it. Text too long for
its part keeps its first places and ends in eot. Positions are places in the padded row, padding included, as the
released weights know them: a row that drops its padding (`Batch.packed`) keeps them.

Targets are what the logits of that very place are to predict: image places carry their own code (soi and eoi of t2i
too), text places the next id, everything else -100. Image ids are ids of the vocabulary (code + `image_offset`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from showo.batch import IGNORE, Batch, FeatureSpans
from showo.text import clean_text
from showo.tokens import Vocabulary
from showo_ext import OmniMask

TextIds = Sequence[int]


class Prompting:
    """Builds batches for one vocabulary and one text length.

    eot: id of `<|endoftext|>`, which both begins and ends texts.
    """

    def __init__(self, vocabulary: Vocabulary, *, eot: int, max_text_len: int) -> None:
        if not 0 <= eot < vocabulary.text_vocab_size:
            raise ValueError(f"Prompting: eot {eot} is not one of the {vocabulary.text_vocab_size} text ids")
        if max_text_len < 3:
            raise ValueError(f"Prompting: max_text_len must be at least 3, got {max_text_len}")
        self.vocabulary = vocabulary
        self.eot = eot
        self.max_text_len = max_text_len

    # ---- text parts ----------------------------------------------------------------------------------------------

    def frame(self, text: TextIds) -> list[int]:
        """sot text (sot only where the text does not begin with it)."""
        return list(text) if len(text) and text[0] == self.eot else [self.eot, *text]

    def t2i_text(self, text: TextIds) -> list[int]:
        """`t2i sot text eot` without padding, at most max_text_len + 1 places."""
        return _cut([self.vocabulary.t2i, *self.frame(text), self.eot], self.max_text_len + 1, self.eot)

    def mmu_text(self, text: TextIds) -> list[int]:
        """`sot text eot` without padding, at most max_text_len places."""
        return _cut([*self.frame(text), self.eot], self.max_text_len, self.eot)

    def is_cut(self, text: TextIds) -> bool:
        """Whether a text is too long for the t2i text part."""
        return len(self.frame(text)) + 2 > self.max_text_len + 1

    # ---- training formats ----------------------------------------------------------------------------------------

    def t2i(
        self,
        texts: Sequence[TextIds],
        image_ids: Tensor,
        image_targets: Tensor | None = None,
        *,
        drop: Tensor | None = None,
    ) -> Batch:
        """Text to image.

        image_ids [B, N]: codes and mask tokens. image_targets [B, N]: the true codes where they are to be predicted,
        -100 elsewhere; None gives no targets at all (generation).
        drop [B] bool: rows that get the empty text instead (classifier-free guidance); see `condition_dropout`.
        """
        image_ids = self._image("image_ids", image_ids, len(texts))
        device, vocab = image_ids.device, self.vocabulary
        if drop is not None:
            if drop.shape != (len(texts),):
                raise ValueError(f"t2i: drop must be [{len(texts)}], got {list(drop.shape)}")
            texts = [[] if dropped else text for text, dropped in zip(texts, drop.tolist(), strict=True)]
        rows = [self.t2i_text(text) for text in texts]
        text = _padded(rows, self.max_text_len + 1, vocab.pad, left=True, device=device)
        soi, eoi = _column(len(rows), vocab.soi, device), _column(len(rows), vocab.eoi, device)
        ids = torch.cat((text, soi, image_ids, eoi), dim=1)
        targets = None
        if image_targets is not None:
            if image_targets.shape != image_ids.shape:
                raise ValueError(f"t2i: image_targets must be {list(image_ids.shape)}, got {list(image_targets.shape)}")
            targets = torch.cat((torch.full_like(text, IGNORE), soi, image_targets, eoi), dim=1)
        mask = OmniMask.t2i(ids, pad_id=vocab.pad, soi_id=vocab.soi, eoi_id=vocab.eoi)
        return Batch.of_rows("t2i", ids, targets, mask)

    def lm(self, texts: Sequence[TextIds], length: int) -> Batch:
        """Text alone, cut or right padded to `length` places."""
        rows = [[*self.frame(text), self.eot][:length] for text in texts]
        ids = _padded(rows, length, self.vocabulary.pad, left=False)
        return Batch.of_rows("lm", ids, self._next(ids), OmniMask.lm(ids))

    def mmu(self, image_ids: Tensor, texts: Sequence[TextIds], *, unlabelled: Sequence[int] | None = None) -> Batch:
        """Understanding. unlabelled: per row, how many first places of the text part are given, not learned."""
        image_ids = self._image("image_ids", image_ids, len(texts))
        device, vocab, batch = image_ids.device, self.vocabulary, len(texts)
        text = _padded([self.mmu_text(text) for text in texts], self.max_text_len, vocab.pad, left=False, device=device)
        mmu, soi, eoi = (_column(batch, mark, device) for mark in (vocab.mmu, vocab.soi, vocab.eoi))
        head = torch.cat((mmu, soi, image_ids, eoi), dim=1)
        ids = torch.cat((head, text), dim=1)
        targets = self._next(ids, first=head.shape[1], unlabelled=unlabelled)
        mask = OmniMask.mmu(ids, soi_id=vocab.soi, eoi_id=vocab.eoi)
        return Batch.of_rows("mmu", ids, targets, mask)

    def mmu_vit(
        self,
        texts: Sequence[TextIds],
        system: TextIds,
        features: Tensor,
        *,
        image_tokens: int = 576,
        unlabelled: Sequence[int] | None = None,
    ) -> Batch:
        """Understanding with features of a vision tower, which the model puts in place of `image_tokens` mask tokens.

        features [B, image_tokens, clip_width], or what `Batch.with_features` is to make them from, [B, ...].
        """
        vocab, batch = self.vocabulary, len(texts)
        if features.shape[0] != batch:
            raise ValueError(f"features must be [{batch}, ...] for {batch} texts, got {list(features.shape)}")
        rows = [_cut([*text, self.eot], self.max_text_len, self.eot) for text in texts]
        text = _padded(rows, self.max_text_len, vocab.pad, left=False)
        head = torch.tensor([vocab.mmu, *system, vocab.soi] + [vocab.mask_id] * image_tokens + [vocab.eoi])
        ids = torch.cat((head.expand(batch, -1), text), dim=1)
        targets = self._next(ids, first=head.numel(), unlabelled=unlabelled)
        start = len(system) + 2
        mask = OmniMask.mmu_vit(batch, ids.shape[1], image_start=start, image_tokens=image_tokens)
        places = torch.arange(ids.numel()).view_as(ids)[:, start : start + image_tokens].flatten()
        return Batch.of_rows("mmu_vit", ids, targets, mask, features=FeatureSpans(features, places))

    def lvg(
        self,
        texts: Sequence[Sequence[TextIds]],
        image_ids: Tensor,
        image_targets: Tensor | None = None,
        *,
        length: int | None = None,
        learn_text: bool = True,
        see_images: bool = True,
    ) -> Batch:
        """Text and images in turn: texts[b][m] precedes image m of image_ids [B, M, N]; rows are left padded.

        Each text is cut like a t2i text. learn_text: text ids are next-token targets, the first of a run from the
        place before it. see_images: whether text rows see earlier images (mask lvg) or not (lvg_v2).
        length: row length; None takes the longest row.
        """
        vocab, device = self.vocabulary, image_ids.device
        if image_ids.dim() != 3 or image_ids.shape[0] != len(texts):
            raise ValueError(f"lvg: image_ids must be [{len(texts)}, M, N], got {list(image_ids.shape)}")
        self._check_ids("image_ids", image_ids)
        if image_targets is not None and image_targets.shape != image_ids.shape:
            raise ValueError(f"lvg: image_targets must be {list(image_ids.shape)}, got {list(image_targets.shape)}")
        pictures = image_ids.tolist()
        answers = image_targets.tolist() if image_targets is not None else None
        rows: list[list[int]] = []
        labels: list[list[int]] = []
        for b, runs in enumerate(texts):
            if len(runs) != image_ids.shape[1]:
                raise ValueError(f"lvg: row {b} has {len(runs)} texts for {image_ids.shape[1]} images")
            row: list[int] = []
            label: list[int] = []
            for m, run in enumerate(runs):
                text = self.t2i_text(run)[0 if m == 0 else 1 :]
                if learn_text and row:
                    label[-1] = text[0]  # eoi predicts the next run's sot
                row += [*text, vocab.soi, *pictures[b][m], vocab.eoi]
                learned = text[1:] if learn_text else [IGNORE] * (len(text) - 1)
                label += [*learned, IGNORE]
                label += [vocab.soi, *answers[b][m], vocab.eoi] if answers else [IGNORE] * (len(pictures[b][m]) + 2)
            rows.append(row)
            labels.append(label)
        longest = max((len(row) for row in rows), default=0)
        if length is None:
            length = longest
        elif longest > length:
            raise ValueError(f"lvg: a row of {longest} places does not fit length {length}")
        ids = _padded(rows, length, vocab.pad, left=True, device=device)
        targets = _padded(labels, length, IGNORE, left=True, device=device)
        build = OmniMask.lvg if see_images else OmniMask.lvg_v2
        return Batch.of_rows("lvg", ids, targets, build(ids, pad_id=vocab.pad, soi_id=vocab.soi, eoi_id=vocab.eoi))

    # ---- pieces --------------------------------------------------------------------------------------------------

    def _next(self, ids: Tensor, *, first: int = 1, unlabelled: Sequence[int] | None = None) -> Tensor:
        """Next-token targets; ids from place `first` on are learned, padding never."""
        labels = torch.where(ids == self.vocabulary.pad, IGNORE, ids)
        labels[:, :first] = IGNORE
        if unlabelled is not None:
            if len(unlabelled) != ids.shape[0]:
                raise ValueError(f"unlabelled must have {ids.shape[0]} entries, got {len(unlabelled)}")
            given = first + torch.tensor(list(unlabelled), device=ids.device)[:, None]
            labels[torch.arange(ids.shape[1], device=ids.device) < given] = IGNORE
        return torch.cat((labels[:, 1:], labels.new_full((ids.shape[0], 1), IGNORE)), dim=1)

    def _image(self, name: str, image_ids: Tensor, batch: int) -> Tensor:
        if image_ids.dim() != 2 or image_ids.shape[0] != batch:
            raise ValueError(f"{name} must be [{batch}, N] for {batch} texts, got {list(image_ids.shape)}")
        self._check_ids(name, image_ids)
        return image_ids

    def _check_ids(self, name: str, image_ids: Tensor) -> None:
        if image_ids.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {image_ids.dtype}")
        if image_ids.device.type == "cpu" and image_ids.numel():  # elsewhere it would wait for the device
            low, high = int(image_ids.min()), int(image_ids.max())
            vocab = self.vocabulary
            if low < vocab.image_offset or high > vocab.mask_id:
                raise ValueError(
                    f"{name} must lie in {vocab.image_offset}..{vocab.mask_id} (code + image_offset, or the mask "
                    f"token), got {low}..{high}"
                )


def question_text(question: str | None) -> str:
    """The prompt the released model was tuned with, the question cleaned; no question at all asks for a caption."""
    return "" if question is None else f"USER: \n{clean_text(question)} ASSISTANT:"


def condition_dropout(batch: int, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Which rows lose their text: bool [batch], each with the given probability."""
    return torch.rand(batch, generator=generator) < probability


def _cut(ids: list[int], length: int, eot: int) -> list[int]:
    return ids if len(ids) <= length else [*ids[: length - 1], eot]


def _column(batch: int, value: int, device: torch.device | str) -> Tensor:
    return torch.full((batch, 1), value, dtype=torch.int64, device=device)


def _padded(
    rows: Sequence[Sequence[int]], length: int, value: int, *, left: bool, device: torch.device | str = "cpu"
) -> Tensor:
    filled = [
        [*[value] * (length - len(row)), *row] if left else [*row, *[value] * (length - len(row))] for row in rows
    ]
    return torch.tensor(filled, dtype=torch.int64, device=device).reshape(len(rows), length)
