"""Sequences: from text ids and image ids to rows of input ids, targets, positions and the omni-attention mask.

Formats (T = max_text_len, N image places; every padded t2i and lm row is T + 1 + N + 2 long):

    t2i      [PAD]* t2i sot text eot | soi image eoi              text part T + 1 places, left padded
    lm       sot text eot [PAD]*                                  cut without eot when too long
    mmu      mmu (soi image eoi)* | sot text eot [PAD]*           text part mmu_text_len places, right padded
    mmu_vit  mmu system? soi features eoi | text eot [PAD]*       text part mmu_vit_text_len places, no sot
    lvg      [PAD]* t2i sot text eot | soi image eoi (sot text eot soi image eoi)* [PAD]*
    t2v      [PAD]* t2v sot text eot | sov frame frame ... eov [PAD]*
    v2v      v2v sov frame frame ... eov sot text eot sov frame frame ... eov [PAD]*

sot and eot are the same id, `<|endoftext|>`; sot is added only where a text does not begin with it. Text too long for
its part keeps its first places and ends in eot. Positions are places in the padded row, padding included, as the
released weights know them: a row that drops its padding (`Batch.packed`) keeps them. The first text part of lvg and t2v
is padded like that of t2i, so that the first picture or video of a row stands where t2i has taught the model to draw.

Of mmu rows the picture may be missing, or there may be several; a picture sees those before it, the text sees all. A
dialogue (`showo.dialogue`) may take the place of the text: `question answer eot question answer eot ...`, in mmu rows
after a sot. One that is too long is cut without an eot, so that no answer is taught to end where it does not.

For t2v and v2v the published ids exist, and nothing else. Here a frame is the N codes of a picture, frames follow each
other without marks, and the mask is that of lvg: a video is bidirectional inside its own sov .. eov, all else causal.

Targets are what the logits of that very place are to predict: image places carry their own code (soi and eoi of t2i
too), text places the next id, everything else -100. Image ids are ids of the vocabulary (code + `image_offset`); ids
behind the vocabulary may stand for codes that are put in later. Batches are made on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from showo.batch import Batch, FeatureSpans
from showo.config import ShowoConfig
from showo.dialogue import Dialogue
from showo.errors import UserError
from showo.row import Image, Images, Row, padded, read_images
from showo.tokens import Vocabulary
from showo_ext import OmniMask

TextIds = Sequence[int]
MaskBuilder = Callable[..., OmniMask]


class Prompting:
    """Builds batches for one vocabulary.

    eot: id of `<|endoftext|>`, which both begins and ends texts.
    max_text_len, mmu_text_len, mmu_vit_text_len: text places of the formats; None is as many as max_text_len.
    max_positions: how long a row may be; None is any length.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        eot: int,
        max_text_len: int,
        mmu_text_len: int | None = None,
        mmu_vit_text_len: int | None = None,
        max_positions: int | None = None,
    ) -> None:
        if not 0 <= eot < vocabulary.text_vocab_size:
            raise ValueError(f"Prompting: eot {eot} is not one of the {vocabulary.text_vocab_size} text ids")
        self.vocabulary = vocabulary
        self.eot = eot
        self.max_text_len = max_text_len
        self.mmu_text_len = mmu_text_len or max_text_len
        self.mmu_vit_text_len = mmu_vit_text_len or max_text_len
        self.max_positions = max_positions
        for name in ("max_text_len", "mmu_text_len", "mmu_vit_text_len"):
            if getattr(self, name) < 3:
                raise ValueError(f"Prompting: {name} must be at least 3, got {getattr(self, name)}")

    @classmethod
    def for_model(cls, config: ShowoConfig, *, eot: int) -> Prompting:
        """With the vocabulary and the lengths of a model."""
        return cls(
            config.vocabulary,
            eot=eot,
            max_text_len=config.max_text_len,
            mmu_text_len=config.mmu_text_len,
            mmu_vit_text_len=config.mmu_vit_text_len,
            max_positions=config.max_positions,
        )

    # ---- text parts ----------------------------------------------------------------------------------------------

    def frame(self, text: TextIds) -> list[int]:
        """sot text (sot only where the text does not begin with it). Raises ValueError for what is no text id."""
        self._check_text(text)
        return list(text) if len(text) and text[0] == self.eot else [self.eot, *text]

    def t2i_text(self, text: TextIds) -> list[int]:
        """`t2i sot text eot` without padding, at most max_text_len + 1 places."""
        return _cut([self.vocabulary.t2i, *self.frame(text), self.eot], self.max_text_len + 1, self.eot)

    def t2i_places(self, text: TextIds) -> int:
        """Places that a text takes in the t2i text part, marks included, where it is not cut."""
        return len(self.frame(text)) + 2

    def is_cut(self, text: TextIds) -> bool:
        """Whether a text is too long for the t2i text part."""
        return self.t2i_places(text) > self.max_text_len + 1

    def _left_padded(self, text: list[int]) -> list[int]:
        """The t2i text part, max_text_len + 1 places."""
        return [self.vocabulary.pad] * (self.max_text_len + 1 - len(text)) + text

    def _text_part(self, text: TextIds | Dialogue, length: int, *, sot: bool) -> tuple[list[int], list[bool]]:
        """Ids of an mmu row's text part without padding, and which of them are learned."""
        ids, learned = self._whole_text(text, sot=sot)
        if isinstance(text, Dialogue):
            return ids[:length], learned[:length]
        return _cut(ids, length, self.eot), learned[:length]

    def answer_places(self, text: TextIds | Dialogue, *, sot: bool) -> int:
        """Places that a text takes in a row of understanding, marks included, where it is not cut."""
        return len(self._whole_text(text, sot=sot)[0])

    def _whole_text(self, text: TextIds | Dialogue, *, sot: bool) -> tuple[list[int], list[bool]]:
        if not isinstance(text, Dialogue):
            self._check_text(text)
            ids = [*(self.frame(text) if sot else text), self.eot]
            return ids, [True] * len(ids)
        ids, learned = ([self.eot], [False]) if sot else ([], [])
        for question, answer in text.turns:
            self._check_text([*question, *answer])
            ids += [*question, *answer, self.eot]
            learned += [False] * len(question) + [True] * (len(answer) + 1)
        return ids, learned

    def _check_text(self, text: TextIds) -> None:
        if len(text) and not 0 <= min(text) <= max(text) < self.vocabulary.text_vocab_size:
            raise ValueError(
                f"text ids must lie in 0..{self.vocabulary.text_vocab_size - 1}, got {min(text)}..{max(text)}"
            )

    # ---- formats -------------------------------------------------------------------------------------------------

    def t2i(
        self,
        texts: Sequence[TextIds],
        image_ids: Tensor,
        image_targets: Tensor | None = None,
        *,
        image_weights: Tensor | None = None,
    ) -> Batch:
        """Text to image. The empty text is what rows without a condition have (classifier-free guidance).

        image_ids [B, N]: codes and mask tokens. image_targets [B, N]: the true codes where they are to be predicted,
        -100 elsewhere; None gives no targets at all (generation). image_weights: float32 [B, N], of the targets.
        """
        each = (None if images is None else images[:, None] for images in (image_targets, image_weights))
        rows = []
        for text, (image,) in zip(texts, read_images("t2i", self.vocabulary, len(texts), image_ids[:, None], *each)):
            row = Row(self._left_padded(self.t2i_text(text)))
            row.add_image(self.vocabulary.soi, image, self.vocabulary.eoi)
            rows.append(row)
        return self._drawn("t2i", rows, OmniMask.t2i, weighed=image_weights is not None)

    def lm(self, texts: Sequence[TextIds], length: int) -> Batch:
        """Text alone, cut or right padded to `length` places."""
        rows = []
        for text in texts:
            first, *rest = [*self.frame(text), self.eot][:length]
            row = Row([first])
            row.add_text(rest, [True] * len(rest))
            rows.append(row)
        ids, targets, _ = self._padded("lm", rows, length)
        return Batch.of_rows("lm", ids, targets, OmniMask.lm(ids))

    def mmu(self, image_ids: Images, texts: Sequence[TextIds | Dialogue]) -> Batch:
        """Understanding. image_ids [B, N]: one picture a row; or as `Images`, also none or several."""
        vocab = self.vocabulary
        if isinstance(image_ids, Tensor) and image_ids.dim() == 2:
            image_ids = image_ids[:, None]
        rows, head = [], 0
        for text, images in zip(texts, read_images("mmu", vocab, len(texts), image_ids)):
            row = Row([vocab.mmu])
            for image in images:
                row.add_image(vocab.soi, image, vocab.eoi)
            head = max(head, len(row.ids))
            row.add_text(*self._text_part(text, self.mmu_text_len, sot=True))
            rows.append(row)
        ids, targets, _ = self._padded("mmu", rows, head + self.mmu_text_len)
        return Batch.of_rows("mmu", ids, targets, OmniMask.mmu(ids, soi_id=vocab.soi, eoi_id=vocab.eoi))

    # Rows as far as an answer, which follows. Image places hold mask tokens: nobody has to know the codes here.

    def asked(self, questions: Sequence[TextIds], codes: int, pictures: Sequence[int] | None = None) -> Batch:
        """`mmu (soi image eoi)* sot question`, of each row so many pictures (None: one), of `codes` places each."""
        vocab, image = self.vocabulary, Image([self.vocabulary.mask_id] * codes, None, None)
        rows = []
        for question, count in zip(questions, pictures or [1] * len(questions), strict=True):
            row = Row([vocab.mmu])
            for _ in range(count):
                row.add_image(vocab.soi, image, vocab.eoi)
            row.ids += self.frame(question)
            rows.append(row)
        ids = _right_padded([row.ids for row in rows], vocab.pad)
        return Batch.of_rows("mmu", ids, None, OmniMask.mmu(ids, soi_id=vocab.soi, eoi_id=vocab.eoi))

    def asked_vit(self, questions: Sequence[TextIds], system: TextIds, features: Tensor) -> Batch:
        """`mmu system? soi features eoi question`, with features [B, P, clip_width].

        A row without a question, which asks for a caption, has no system prompt, as in training.
        """
        vocab, (_, count, _) = self.vocabulary, features.shape
        heads = [[vocab.mmu, *(system if len(question) else ()), vocab.soi] for question in questions]
        image = [vocab.mask_id] * count
        rows = [[*head, *image, vocab.eoi, *question] for head, question in zip(heads, questions, strict=True)]
        ids, starts = _right_padded(rows, vocab.pad), torch.tensor([len(head) for head in heads])
        mask = OmniMask.mmu_vit(len(rows), ids.shape[1], image_start=starts, image_tokens=count)
        spans = FeatureSpans(features, (ids.flatten() == vocab.mask_id).nonzero().squeeze(1))
        return Batch.of_rows("mmu_vit", ids, None, mask, features=spans)

    def mmu_vit(
        self,
        texts: Sequence[TextIds | Dialogue],
        system: TextIds,
        features: Tensor | Sequence[Tensor],
        *,
        image_tokens: int = 576,
    ) -> Batch:
        """Understanding with features of a vision tower, which the model puts in place of `image_tokens` mask tokens.

        system: ids of `showo.dialogue.SYSTEM_PROMPT`, which dialogues begin with and captions do not (as officially).
        features [B, image_tokens, clip_width], or what `Batch.with_features` is to make them from, [B, ...]; as a
            sequence, of every row [M, ...] with M 0 or 1 pictures: the mask of the format knows no second one.
        """
        vocab = self.vocabulary
        if len(features) != len(texts):
            raise ValueError(f"mmu_vit: {len(texts)} texts need as many rows of features, got {len(features)}")
        if isinstance(features, Tensor):
            features = features[:, None].unbind()
        self._check_text(system)
        image = Image([vocab.mask_id] * image_tokens, None, None)
        rows, head = [], 0
        for b, (text, values) in enumerate(zip(texts, features)):
            if len(values) > 1:
                raise ValueError(f"mmu_vit: row {b} has {len(values)} pictures, expected one or none")
            row = Row([vocab.mmu, *(system if isinstance(text, Dialogue) else ())])
            if len(values):
                row.add_image(vocab.soi, image, vocab.eoi)
            head = max(head, len(row.ids))
            row.add_text(*self._text_part(text, self.mmu_vit_text_len, sot=False))
            rows.append(row)
        ids, targets, _ = self._padded("mmu_vit", rows, head + self.mmu_vit_text_len)
        marks = {"pad_id": vocab.pad, "soi_id": vocab.soi, "eoi_id": vocab.eoi}
        mask = OmniMask.packed(ids, torch.zeros_like(ids), [["mmu_vit"]] * len(rows), **marks)
        places = (ids.flatten() == vocab.mask_id).nonzero().squeeze(1)
        spans = FeatureSpans(torch.cat(list(features)), places) if len(places) else None
        return Batch.of_rows("mmu_vit", ids, targets, mask, features=spans)

    def lvg(
        self,
        texts: Sequence[Sequence[TextIds]],
        image_ids: Images,
        image_targets: Images | None = None,
        *,
        image_weights: Images | None = None,
        learn_text: bool = True,
        see_images: bool = True,
    ) -> Batch:
        """Text and images in turn: texts[b][m] precedes image m of row b. Targets and weights as for t2i.

        Each text is cut like a t2i text. The last one may have no image: one is to be drawn there. learn_text: text
        ids are next-token targets, the first of a run from the place before it, an eoi. see_images: whether text rows
        see earlier images (mask lvg) or not (lvg_v2).
        """
        vocab = self.vocabulary
        rows = []
        for b, images in enumerate(read_images("lvg", vocab, len(texts), image_ids, image_targets, image_weights)):
            if not 0 <= len(texts[b]) - len(images) <= 1 or not texts[b]:
                raise ValueError(f"lvg: row {b} has {len(texts[b])} texts for {len(images)} images")
            runs = [self.t2i_text(text)[1:] for text in texts[b]]
            row = Row(self._left_padded([vocab.t2i, *runs[0]])[: -len(runs[0])])
            for run, image in zip_longest(runs, images):
                row.add_text(run, [learn_text] * len(run))
                if image is not None:
                    row.add_image(vocab.soi, image, vocab.eoi)
            rows.append(row)
        build = OmniMask.lvg if see_images else OmniMask.lvg_v2
        return self._drawn("lvg", rows, build, weighed=image_weights is not None)

    def told(self, texts: Sequence[TextIds], begins: Sequence[bool]) -> Batch:
        """Rows of lvg as far as a text, or from a picture on to the next text; the picture to be drawn follows.

        begins: whether a row begins with its text, as `t2i sot text eot`, or goes on with it, as `sot text eot`.
        """
        parts = [self.t2i_text(text)[0 if first else 1 :] for text, first in zip(texts, begins, strict=True)]
        ids, vocab = torch.tensor([self._left_padded(part) for part in parts]), self.vocabulary
        mask = OmniMask.lvg(ids, pad_id=vocab.pad, soi_id=vocab.soi, eoi_id=vocab.eoi)
        return Batch.of_rows("told", ids, None, mask)

    def t2v(
        self,
        texts: Sequence[TextIds],
        frame_ids: Images,
        frame_targets: Images | None = None,
        *,
        frame_weights: Images | None = None,
    ) -> Batch:
        """Text to video: a text like that of t2i, then the frames of each row's video, with targets as for lvg."""
        vocab = self.vocabulary
        rows = []
        for text, frames in zip(texts, read_images("t2v", vocab, len(texts), frame_ids, frame_targets, frame_weights)):
            row = Row(self._left_padded([vocab.t2v, *self.t2i_text(text)[1:]]))
            row.add_image(vocab.sov, Image.joined(frames), vocab.eov)
            rows.append(row)
        return self._drawn("t2v", rows, OmniMask.lvg, weighed=frame_weights is not None, video=True)

    def v2v(
        self,
        given_ids: Images,
        texts: Sequence[TextIds],
        frame_ids: Images,
        frame_targets: Images | None = None,
        *,
        frame_weights: Images | None = None,
    ) -> Batch:
        """Video to video: frames that are given, what is to become of them, and the frames of that."""
        vocab = self.vocabulary
        given = read_images("v2v", vocab, len(texts), given_ids)
        wanted = read_images("v2v", vocab, len(texts), frame_ids, frame_targets, frame_weights)
        rows = []
        for text, before, after in zip(texts, given, wanted):
            row = Row([vocab.v2v])
            row.add_image(vocab.sov, Image.joined(before), vocab.eov)
            ids = self.t2i_text(text)[1:]
            row.add_text(ids, [False] * len(ids))
            row.add_image(vocab.sov, Image.joined(after), vocab.eov)
            rows.append(row)
        return self._drawn("v2v", rows, OmniMask.lvg, weighed=frame_weights is not None, video=True)

    def _padded(self, name: str, rows: Sequence[Row], length: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """`padded`; UserError for a row with more places than the model has positions."""
        for b, row in enumerate(rows):
            if self.max_positions is not None and len(row.ids) > self.max_positions:
                raise UserError(f"{name}: row {b} takes {len(row.ids)} positions; the model has {self.max_positions}")
        return padded(rows, self.vocabulary.pad, length)

    def _drawn(
        self, name: str, rows: Sequence[Row], build: MaskBuilder, *, weighed: bool, video: bool = False
    ) -> Batch:
        """Rows of a format in which images, or videos, are drawn."""
        vocab = self.vocabulary
        ids, targets, weights = self._padded(name, rows)
        start, end = (vocab.sov, vocab.eov) if video else (vocab.soi, vocab.eoi)
        mask = build(ids, pad_id=vocab.pad, soi_id=start, eoi_id=end)
        return Batch.of_rows(name, ids, targets, mask, weights=weights if weighed else None)


def _right_padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])


def _cut(ids: list[int], length: int, eot: int) -> list[int]:
    return ids if len(ids) <= length else [*ids[: length - 1], eot]
