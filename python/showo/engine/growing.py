"""What a session's rows end in while it comes into being: a picture whose codes still change, a text that grows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from showo.errors import NotFiniteError
from showo.model.kv_cache import KVCache
from showo.model.transformer import Showo
from showo_ext import OmniMask, sample_tokens


def all_finite(logits: Tensor, dim: int | None = None) -> Tensor:
    """bool, without waiting for the device: whether no number of all, or along `dim`, is NaN or infinite.

    A sum tells it at the price of reading once, since whatever is added to these stays one of them. That the sum of
    finite logits is too large for fp32 takes such as nothing can be drawn from either.
    """
    return logits.sum(dim, dtype=torch.promote_types(logits.dtype, torch.float32)).isfinite()


def check_finite(finite: Tensor) -> None:
    """NotFiniteError where logits were NaN or infinite, of which any choice would be an arbitrary one."""
    if not finite:
        raise NotFiniteError(
            "the logits are NaN or infinite: the weights are damaged, or too large for the dtype (try float32)"
        )


class OpenImage:
    """Logits of a picture's places in every row, from `soi codes eoi` alone: all that is before them is cached.

    rows: those of the session. Several may show the same picture, under different conditions.
    """

    def __init__(
        self,
        model: Showo,
        cache: KVCache,
        lengths: Sequence[int],
        slots: int | Tensor,
        positions: Tensor,
        places: int,
    ) -> None:
        self.model, self.rows, self.places = model, len(lengths), places
        self._cache, self._slots, self._positions = cache, slots, positions
        ends = torch.tensor(lengths, dtype=torch.int32) + places + 2
        intervals = torch.stack((torch.zeros_like(ends), ends), dim=-1)[:, None, None]
        self._intervals = intervals.expand(-1, places + 2, 1, 2).contiguous().to(model.device)
        self._columns = max(lengths) + places + 2
        self._masks: dict[int, OmniMask] = {}  # a mask keeps its plan, so each is made once
        self._soi = torch.full((1, 1), model.config.vocabulary.soi, device=model.device)
        self._eoi = torch.full((1, 1), model.config.vocabulary.eoi, device=model.device)

    @torch.inference_mode()
    def logits(self, canvas: Tensor, rows: int | None = None, places: Tensor | None = None) -> Tensor:
        """Logits [rows, N, codes] of pictures [P, N] (vocabulary ids), which rows 0..P, P..2P and so on show.

        rows: how many of the first rows are wanted; None is all. places: int64 [rows, n], those whose logits are
        wanted, N then being n; the last layer computes nothing else.
        """
        rows = self.rows if rows is None else rows
        marks = [mark.expand(len(canvas), 1) for mark in (self._soi, self._eoi)]
        embeds = self.model.embed(torch.cat((marks[0], canvas, marks[1]), dim=1))
        hidden = self.model.hidden_states(
            inputs_embeds=embeds.repeat(rows // len(canvas), 1, 1),
            mask=self._mask(rows),
            positions=self._positions if self._positions.dim() == 1 else self._positions[:rows],
            cache=self._cache.first(rows),
            slots=self._slots if isinstance(self._slots, int) else self._slots[:rows],
            rows=slice(1, -1) if places is None else places + 1,
        )
        return self.model.logits(hidden, self.model.config.vocabulary.image_range)

    def _mask(self, rows: int) -> OmniMask:
        if rows not in self._masks:
            self._masks[rows] = OmniMask(self._intervals[:rows], self._columns)
        return self._masks[rows]


class GrowingText:
    """One id after the other, at the end of every row.

    drawn: how many ids every row has got. unseen: how many of them have not been looked at. read_steps: how many of
    them the model has read.
    """

    def __init__(
        self, model: Showo, cache: KVCache, last: Tensor, lengths: Sequence[int], offsets: Sequence[int]
    ) -> None:
        """last: hidden states [B, 1, hidden] of every row's last place."""
        self.drawn = self.read_steps = 0
        self._model, self._cache, self._hidden = model, cache, last
        self._columns = max(lengths)
        self._slots = torch.tensor(lengths, device=model.device)[:, None]
        self._offsets = torch.tensor(offsets, device=model.device)[:, None]
        self._unseen: list[Tensor] = []
        self._ids = self._slots
        self._finite = torch.ones((), dtype=torch.bool, device=model.device)

    @property
    def unseen(self) -> int:
        return len(self._unseen)

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Logits [B, V] of the next id of every row: a text id, the head's other rows are not computed."""
        return self._model.logits(self._hidden[:, 0], (0, self._model.config.vocabulary.text_vocab_size))

    def give(self, ids: Tensor) -> None:
        """The next id of every row, int64 [B]."""
        self._ids = ids[:, None].to(self._slots.device)
        self.drawn += 1

    @torch.inference_mode()
    def draw(self, seeds: Tensor, temperature: float, top_k: int, top_p: float) -> None:
        """Chooses the next id of every row."""
        logits = self.logits()
        self._finite = self._finite & all_finite(logits)
        if logits.device.type == "cpu":  # nothing is waited for there
            check_finite(self._finite)
        ids, _ = sample_tokens(logits, temperature=temperature, top_k=top_k, top_p=top_p, seed=seeds, step=self.drawn)
        self._unseen.append(ids)
        self.give(ids)

    def look(self) -> list[list[int]]:
        """The ids [steps][B] that have not been looked at yet. This waits for the device; nothing else here does."""
        check_finite(self._finite)
        unseen, self._unseen = self._unseen, []
        return torch.stack(unseen).tolist()

    @torch.inference_mode()
    def read(self) -> None:
        """The ids that were drawn last."""
        self.read_steps += 1
        ends = (self._slots + 1).to(torch.int32)
        intervals = torch.stack((torch.zeros_like(ends), ends), dim=-1)[:, None]
        self._hidden = self._model.hidden_states(
            self._ids,
            mask=OmniMask(intervals, self._columns + self.read_steps),
            positions=self._offsets + self._slots,
            cache=self._cache,
            slots=self._slots,
        )
        self._slots = self._slots + 1
