"""What a session's rows end in while it comes into being: a picture whose codes still change, a text that grows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from showo.errors import NotFiniteError
from showo.model.graphs import Forward, Graph, Key, Step
from showo.model.kv_cache import KVCache
from showo.model.transformer import Showo
from showo_ext import OmniMask, sample_tokens

MOST_VERSIONS = 32  # that torch.compile makes of a step: those of `compiled_steps`, of three models or dtypes


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


def image_logits(model: Showo, step: Step, rows: slice | Tensor = slice(1, -1)) -> Tensor:
    """[B, N, codes], of the places between soi and eoi, or of `rows`."""
    hidden = _hidden_states(model, step, rows)
    return model.logits(hidden, model.config.vocabulary.image_range)


def text_logits(model: Showo, step: Step) -> Tensor:
    """[B, V] of the next id, after steps of one place: a text id, the head's other rows are not computed."""
    return _of_text(model, _hidden_states(model, step))


def _hidden_states(model: Showo, step: Step, rows: slice | Tensor | None = None) -> Tensor:
    ids, positions, slots, mask, cache = step
    return model.hidden_states(ids, mask=mask, positions=positions, cache=cache, slots=slots, rows=rows)


def _of_text(model: Showo, hidden: Tensor) -> Tensor:
    return model.logits(hidden[:, 0], (0, model.config.vocabulary.text_vocab_size))


def compiled_steps() -> dict[Forward, Forward]:
    """The steps above as torch.compile makes them, for `Showo.compiled`: for any length, with as few versions as torch
    needs: one for a single row and one for more; on a GPU, of drawing, for each way to divide a picture's places among
    tiles of attention: up to 16 places, up to 64, more in few tiles, and in many an even or an odd number of blocks.
    """
    # An older torch cannot be told a limit here: it makes 8 versions, and then runs a step as without.
    limited = "recompile_limit" in inspect.signature(torch.compile).parameters
    limit: dict[str, Any] = {"recompile_limit": MOST_VERSIONS} if limited else {}
    return {step: torch.compile(step, dynamic=True, **limit) for step in (image_logits, text_logits)}


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
        self._cache = cache
        self._slots = cache.row_slots(slots, places + 2).expand(self.rows, -1).contiguous()
        self._positions = positions.expand(self.rows, -1).contiguous()
        self._logits = model.compiled.get(image_logits, image_logits)
        ends = torch.tensor(lengths, dtype=torch.int32) + places + 2
        intervals = torch.stack((torch.zeros_like(ends), ends), dim=-1)[:, None, None]
        self._intervals = intervals.expand(-1, places + 2, 1, 2).contiguous().to(model.device)
        self._read, self._columns = max(lengths), max(lengths) + places + 2
        self._masks: dict[int, OmniMask] = {}  # a mask keeps its plan, so each is made once
        self._soi = torch.full((1, 1), model.config.vocabulary.soi, device=model.device)
        self._eoi = torch.full((1, 1), model.config.vocabulary.eoi, device=model.device)

    @torch.inference_mode()
    def logits(self, canvas: Tensor, rows: int | None = None, places: Tensor | None = None) -> Tensor:
        """Logits [rows, N, codes] of pictures [P, N] (vocabulary ids), which rows 0..P, P..2P and so on show.

        rows: how many of the first rows are wanted; None is all. places: int64 [rows, n], those whose logits are
        wanted, N then being n; the last layer computes nothing else, unless the step is a CUDA graph or compiled.
        """
        rows = self.rows if rows is None else rows
        marks = [mark.expand(len(canvas), 1) for mark in (self._soi, self._eoi)]
        ids = torch.cat((marks[0], canvas, marks[1]), dim=1).repeat(rows // len(canvas), 1)
        if (graph := self._graph(rows)) is not None:
            graph.write(ids=ids)
            logits = graph.replay(rows)
        else:
            step = Step(ids, self._positions[:rows], self._slots[:rows], self._mask(rows), self._cache.first(rows))
            if places is not None and self._logits is image_logits:
                return image_logits(self.model, step, places + 1)
            logits = self._logits(self.model, step)  # compiled: chosen places would take more versions
        return logits if places is None else logits[torch.arange(rows, device=logits.device)[:, None], places]

    def _mask(self, rows: int) -> OmniMask:
        if rows not in self._masks:
            self._masks[rows] = OmniMask(self._intervals[:rows], self._columns)
        return self._masks[rows]

    # ---- as a user of a CUDA graph -------------------------------------------------------------------------------

    def _graph(self, rows: int) -> Graph | None:
        if self.model.graphs is None:
            return None
        return self.model.graphs.find(self, Key.of(self._logits, rows, self.places + 2, self._columns))

    def load(self, graph: Graph) -> None:
        rows = graph.rows
        graph.write(positions=self._positions[:rows], slots=self._slots[:rows], intervals=self._intervals[:rows])
        graph.cache.overwrite(self._cache, 0, self._read)

    def write_back(self, graph: Graph) -> None:
        """Nothing: the picture's own keys and values are made anew in every step."""


class GrowingText:
    """One id after the other, at the end of every row.

    drawn: how many ids every row has got. unseen: how many of them have not been looked at. read_steps: how many of
    them the model has read. With CUDA graphs, what has been read is in the cache that was given after `keep` alone.
    """

    def __init__(
        self, model: Showo, cache: KVCache, last: Tensor, lengths: Sequence[int], offsets: Sequence[int]
    ) -> None:
        """last: hidden states [B, 1, hidden] of every row's last place."""
        self.drawn = self.read_steps = 0
        self._model, self._cache = model, cache
        self._step = model.compiled.get(text_logits, text_logits)
        self._last = last
        self._logits: Tensor | None = None
        self._shortest, self._columns = min(lengths), max(lengths)
        self._slots = torch.tensor(lengths, device=model.device)[:, None]
        self._offsets = torch.tensor(offsets, device=model.device)[:, None]
        self._unseen: list[Tensor] = []
        self._ids = self._slots
        self._finite = torch.ones((), dtype=torch.bool, device=model.device)
        self._in_graph: Graph | None = None  # the one whose cache holds what has been read

    @property
    def unseen(self) -> int:
        return len(self._unseen)

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Logits [B, V] of the next id of every row: a text id."""
        if self._logits is None:
            self._logits = _of_text(self._model, self._last)
        return self._logits

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
        ends = (self._slots + 1).to(torch.int32)
        intervals = torch.stack((torch.zeros_like(ends), ends), dim=-1)[:, None]
        positions = self._offsets + self._slots
        if (graph := self._graph()) is not None:
            graph.write(ids=self._ids, positions=positions, slots=self._slots, intervals=intervals)
            self._logits = graph.replay(len(self._ids))
        else:
            self.keep()  # there may have been a graph before
            mask = OmniMask(intervals, self._columns + self.read_steps + 1)
            self._logits = self._step(self._model, Step(self._ids, positions, self._slots, mask, self._cache))
        self._slots = self._slots + 1
        self.read_steps += 1

    # ---- as a user of a CUDA graph -------------------------------------------------------------------------------

    def _graph(self) -> Graph | None:
        if self._model.graphs is None:
            return None
        return self._model.graphs.find(self, Key.of(self._step, len(self._slots), 1, self._cache.slots))

    def load(self, graph: Graph) -> None:
        self.keep()  # from the graph before, where the step has become another's
        graph.cache.overwrite(self._cache, 0, self._columns + self.read_steps)
        self._in_graph = graph

    @torch.inference_mode()
    def write_back(self, graph: Graph) -> None:
        self._cache.overwrite(graph.cache, self._shortest, self._columns + self.read_steps)
        self._in_graph = None

    def keep(self) -> None:
        """Puts what has been read into the cache that was given, where it is not yet."""
        if self._in_graph is not None:
            self._in_graph.give_to(None)
