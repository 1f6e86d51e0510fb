"""Rows of different contents that grow side by side: texts and pictures are appended, pictures drawn, texts continued.

A session keeps the keys and values of all that its rows hold, each row without padding: its n-th place is slot n of the
cache, at position offset + n, where the offset is the padding that the row's first part began with. What has been read
is never computed again. A later place sees all of it, and of its own part what the mask of that part says.

session = Session(model, len(pictures))
session.append(prompting.asked(questions, places), pictures)   # mmu soi codes eoi sot question
for ids in session.generate_text(eot=eot, max_new_tokens=100): ...
session.append_image(others)                                   # what follows sees the picture
session.append_text(more_questions)
image = session.open_image(places)                             # a picture to be drawn: image.logits(canvas)
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from showo.batch import Batch, FeatureSpans
from showo.engine.growing import GrowingText, OpenImage
from showo.errors import UserError
from showo.model.kv_cache import KVCache
from showo.model.transformer import Showo
from showo.seeds import row_seeds
from showo_ext import OmniMask


def _unseen_at_most(device: torch.device) -> int:
    """The ids of so many steps are looked at together: with a GPU, looking means to wait for the device."""
    return 1 if device.type == "cpu" else 8


class Session:
    """lengths: how many places each row holds."""

    def __init__(self, model: Showo, rows: int) -> None:
        self.model = model
        self.lengths = [0] * rows
        self._offsets = [0] * rows
        self._cache = KVCache(model.config, rows, 0, dtype=model.dtype, device=model.device)
        self._last = torch.zeros(rows, 1, model.config.hidden_size, dtype=model.dtype, device=model.device)
        self._unread: list[list[int]] = [[] for _ in range(rows)]  # the end of a generated text, which nothing has seen

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def cache_bytes(self) -> int:
        """Of keys and values."""
        return self._cache.nbytes

    def room(self, row: int) -> int:
        """Positions of the model that a row has not taken."""
        taken = self._offsets[row] + self.lengths[row] + len(self._unread[row])
        return self.model.config.max_positions - taken

    @torch.inference_mode()
    def taken(self, rows: Sequence[int]) -> Session:
        """A session of its own with these rows as they are now, some of them several times or not at all."""
        return Session.joined([(self, rows)])

    @staticmethod
    @torch.inference_mode()
    def joined(parts: Sequence[tuple[Session, Sequence[int]]]) -> Session:
        """`taken` of several sessions of one model, one after the other, with the slots of the one that has most."""
        model = parts[0][0].model
        other = Session(model, 0)
        other.lengths = [session.lengths[row] for session, rows in parts for row in rows]
        other._offsets = [session._offsets[row] for session, rows in parts for row in rows]
        other._unread = [list(session._unread[row]) for session, rows in parts for row in rows]
        chosen = [(session, torch.tensor(rows, dtype=torch.int64, device=model.device)) for session, rows in parts]
        slots = max(session._cache.slots for session, _ in parts)
        other._cache = KVCache.joined([(session._cache, index) for session, index in chosen], slots)
        other._last = torch.cat([session._last[index] for session, index in chosen])
        return other

    # ---- what rows are given -------------------------------------------------------------------------------------

    @torch.inference_mode()
    def append(self, batch: Batch, image_ids: Tensor | None = None) -> None:
        """Rows of a format, as `Prompting` makes them on the CPU, without their padding.

        image_ids: vocabulary ids [n, N] that take the places of mask tokens, in the order of the rows; where they lie
            on the model's device, nothing waits for them.

        Raises ValueError for more or fewer rows, UserError where a row takes more positions than the model has.
        """
        if len(batch.input_ids) != self.rows:
            raise ValueError(f"a session of {self.rows} rows was given {len(batch.input_ids)}")
        self._read_generated()
        vocab = self.model.config.vocabulary
        keep = batch.input_ids != vocab.pad
        counts = keep.sum(1)
        for row, (first, count) in enumerate(zip(keep.int().argmax(1).tolist(), counts.tolist(), strict=True)):
            if self.lengths[row] == 0:
                self._offsets[row] = first
            self._check_room(row, count)
        if image_ids is None and batch.features is None and not any(self.lengths):
            kinds: dict[tuple[int, ...], int] = {}
            alike = [kinds.setdefault(tuple(ids), row) for row, ids in enumerate(batch.input_ids.tolist())]
            if len(kinds) < self.rows:
                self._read_once(batch, list(kinds.values()), alike)
                return
        compact = _compact(batch, keep, torch.tensor(self.lengths), vocab.pad)
        ids = compact.input_ids.to(self.model.device)
        if image_ids is not None:
            ids[compact.input_ids == vocab.mask_id] = image_ids.flatten()
        self._read(ids, compact.mask, counts, compact.features)

    def append_text(self, texts: Sequence[Sequence[int]]) -> None:
        """Ids of every row, marks included, each of which sees what is before it; none for rows that get nothing."""
        rows = [[*unread, *text] for unread, text in zip(self._unread, texts, strict=True)]
        longest = max(map(len, rows), default=0)
        if longest == 0:
            return
        self._unread = [[] for _ in rows]
        pad = self.model.config.vocabulary.pad
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
        self.append(Batch.of_rows("text", ids, None, OmniMask.causal(len(rows), longest)))

    def append_image(self, images: Tensor, rows: Sequence[int] | None = None) -> None:
        """A picture between its marks: vocabulary ids [n, N], or features [n, P, clip_width] of a vision tower.

        rows: the rows that get one of the n pictures, in ascending order; None is all.
        """
        vocab, count = self.model.config.vocabulary, images.shape[1]
        ids = torch.full((self.rows, count + 2), vocab.pad)
        chosen = list(range(self.rows) if rows is None else rows)
        ids[chosen] = torch.tensor([vocab.soi, *[vocab.mask_id] * count, vocab.eoi])
        if images.dim() == 2:
            self.append(Batch.of_rows("image", ids, None, OmniMask.full(self.rows, count + 2)), images)
            return
        mask = OmniMask.mmu_vit(self.rows, count + 2, image_start=1, image_tokens=count)
        spans = FeatureSpans(images, (ids.flatten() == vocab.mask_id).nonzero().squeeze(1))
        self.append(Batch.of_rows("image", ids, None, mask, features=spans))

    def _check_room(self, row: int, count: int) -> None:
        taken, room = self._offsets[row] + self.lengths[row] + count, self.model.config.max_positions
        if taken > room:
            raise UserError(f"row {row} takes {taken} positions; the model has {room}")

    def _read_once(self, batch: Batch, firsts: list[int], alike: list[int]) -> None:
        """Of rows that begin alike, the first ones; the others take over what these have come to."""
        mask = OmniMask(batch.mask.intervals[firsts], batch.mask.kv_length)
        once = Session(self.model, len(firsts))
        once.append(Batch.of_rows("alike", batch.input_ids[firsts], None, mask))
        copies = once.taken([firsts.index(row) for row in alike])
        self.lengths, self._cache, self._last = copies.lengths, copies._cache, copies._last

    def _read(self, ids: Tensor, mask: OmniMask, counts: Tensor, features: FeatureSpans | None) -> None:
        """New places [B, S], of which each row has its first `counts`; what lies behind these is never seen."""
        device, length = self.model.device, ids.shape[1]
        self.reserve(length)
        hidden = self.model.hidden_states(
            ids,
            features=features and features.to(device),
            mask=mask.to(device),
            positions=self._positions(length),
            cache=self._cache,
            slots=self._slots(length),
            rows=(counts - 1).clamp(min=0)[:, None].to(device),
        )
        self._last = torch.where((counts > 0)[:, None, None].to(device), hidden, self._last)
        self.lengths = [before + count for before, count in zip(self.lengths, counts.tolist(), strict=True)]

    def reserve(self, more: int) -> None:
        """Makes the cache long enough for so many places after those of the longest row."""
        slots = max(self.lengths) + more
        if slots > self._cache.slots:
            self._cache = self._cache.taken(torch.arange(self.rows, device=self.model.device), slots)

    def _slots(self, length: int) -> int | Tensor:
        """The slots of the next `length` places of every row."""
        if len(set(self.lengths)) == 1:
            return self.lengths[0]
        return (torch.tensor(self.lengths)[:, None] + torch.arange(length)).to(self.model.device)

    def _positions(self, length: int) -> Tensor:
        """Their rotary positions, [S] where those of all rows are the same."""
        starts = [offset + before for offset, before in zip(self._offsets, self.lengths, strict=True)]
        if len(set(starts)) == 1:
            return torch.arange(starts[0], starts[0] + length, device=self.model.device)
        return (torch.tensor(starts)[:, None] + torch.arange(length)).to(self.model.device)

    # ---- what rows give ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def open_image(self, places: int) -> OpenImage:
        """A picture of so many codes that is to be drawn at the end of every row. The rows stay as they are."""
        self._read_generated()
        for row in range(self.rows):
            self._check_room(row, places + 2)
        self.reserve(places + 2)
        return OpenImage(
            self.model, self._cache, self.lengths, self._slots(places + 2), self._positions(places + 2), places
        )

    @torch.inference_mode()
    def open_text(self) -> GrowingText:
        """A text that is to grow at the end of every row, in the slots that are reserved. The rows stay as they are."""
        self._read_generated()
        return GrowingText(self.model, self._cache, self._last, self.lengths, self._offsets)

    def keep_text(self, text: GrowingText) -> None:
        """Takes over the ids that an `open_text` of this session has read, and no others."""
        text.keep()
        self.lengths = [before + text.read_steps for before in self.lengths]

    def generate_text(
        self,
        *,
        eot: int,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
    ) -> Generator[list[int | None]]:
        """Yields the next id of every row (None once a row has ended), until all have ended.

        A row ends at `eot`; all end after max_new_tokens, or where the positions of the longest row end. temperature 0
        is greedy. Afterwards the rows hold what was taken from the iterator, and `eot` where they have ended.

        Raises NotFiniteError where the model gave NaN or infinity.
        """
        self._read_generated()
        furthest = max(offset + length for offset, length in zip(self._offsets, self.lengths, strict=True))
        steps = min(max_new_tokens, self.model.config.max_positions - furthest)
        self.reserve(steps)
        text = self.open_text()
        seeds = row_seeds(seed, self.rows).to(self.model.device)
        unseen_at_most = _unseen_at_most(self.model.device)
        taken: list[list[int]] = [[] for _ in range(self.rows)]
        ended = [False] * self.rows
        try:
            while text.drawn < steps:
                text.draw(seeds, temperature, top_k, top_p)
                if text.unseen == unseen_at_most or text.drawn == steps:
                    for ids in text.look():
                        ended = [done or id_ == eot for done, id_ in zip(ended, ids, strict=True)]
                        if all(ended):
                            return
                        found = [None if done else id_ for done, id_ in zip(ended, ids, strict=True)]
                        for row, id_ in zip(taken, found, strict=True):
                            row += [] if id_ is None else [id_]
                        yield found
                if text.drawn < steps:
                    text.read()
        finally:
            text.keep()
            self._keep(taken, ended, eot, text.read_steps)

    def _keep(self, taken: Sequence[list[int]], ended: Sequence[bool], eot: int, read_steps: int) -> None:
        """The last id of every text is left to be read with what follows it, whatever has been read."""
        for row, (ids, done) in enumerate(zip(taken, ended, strict=True)):
            read = min(len(ids) if done else max(0, len(ids) - 1), read_steps)
            self.lengths[row] += read
            self._unread[row] = [*ids[read:], *([eot] if done else [])]

    def _read_generated(self) -> None:
        self.append_text([[]] * self.rows)


def _compact(batch: Batch, keep: Tensor, before: Tensor, pad: int) -> Batch:
    """Rows without padding, but at their ends; columns of the mask are slots of a cache that holds `before` places."""
    rows, length = keep.shape
    longest = int(keep.sum(1).max())
    order = (~keep).int().argsort(dim=1, stable=True)[:, :longest]  # the places that stay, then padding
    inside = torch.arange(longest) < keep.sum(1)[:, None]
    number = torch.cat((keep.new_zeros(rows, 1, dtype=torch.int64), keep.cumsum(1)), dim=1)  # of every old column
    intervals = batch.mask.intervals.long().expand(rows, length, -1, 2)
    kept = intervals.gather(1, order[:, :, None, None].expand(-1, -1, *intervals.shape[2:]))
    first, end = number.gather(1, kept.flatten(1)).view_as(kept).unbind(-1)
    seen = (first < end) & inside[:, :, None]
    shift = before[:, None, None]
    first = torch.where(first == 0, 0, first + shift)  # from the part's beginning on is from that of the row on
    moved = torch.stack((torch.where(seen, first, 0), torch.where(seen, end + shift, 0)), dim=-1)
    features = batch.features
    if features is not None:
        row, column = features.places // length, features.places % length
        features = FeatureSpans(features.values, row * longest + number[row, column])
    ids = batch.input_ids.gather(1, order)
    mask = OmniMask(moved.to(torch.int32).contiguous(), int(before.max()) + longest)
    return Batch.of_rows("rows", torch.where(inside, ids, pad), None, mask, features=features)
