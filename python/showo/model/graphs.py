"""Steps of a loop as CUDA graphs: a forward pass against a cache that the GPU runs by one launch.

model.graphs = Graphs(model)      # from now on pictures are drawn and texts continued by graphs

A graph is what was captured once: every replay launches the same kernels on the same memory. So each graph has buffers
of its own for all that a step reads beside the weights, keys and values included. Whoever wants a step (a user: an
`OpenImage`, a `GrowingText`) loads them once, and before every replay writes into them what has changed. No number of
a step is captured but its sizes, which are the graph's key.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from showo.model.kv_cache import KVCache
from showo_ext import OmniMask, overwrite_mask

if TYPE_CHECKING:
    from showo.model.transformer import Showo

COLUMNS = 256  # the slots of a graph's cache are a multiple of this, so that rows of many lengths share a graph
MOST_GRAPHS = 8

Replay = Callable[[], object]
# (step, device) -> what runs the step again, and the memory in which its result then lies.
Capture = Callable[[Callable[[], Tensor], torch.device], tuple[Replay, Tensor]]


def capture(step: Callable[[], Tensor], device: torch.device) -> tuple[Replay, Tensor]:
    """Makes a CUDA graph of a step. RuntimeError where there is no GPU, or the step cannot be captured."""
    if device.type != "cuda":
        raise RuntimeError(f"the model lies on {device}, and CUDA graphs are of GPUs")
    with torch.cuda.device(device):
        step()  # what the first call makes (plans of masks, compiled code, handles of libraries) is part of no graph
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        with _capturing():
            try:
                result = _record(step, graph, pool, device)
            except BaseException:
                _end_failed_capture(pool, device)
                raise
    return graph.replay, result


def _record(step: Callable[[], Tensor], graph: torch.cuda.CUDAGraph, pool: Any, device: torch.device) -> Tensor:
    # Where a capture fails, torch.cuda.graph leaves its own stream as the current one; the outer context does not.
    outer = torch.cuda.stream(torch.cuda.current_stream())
    # Other threads may use the GPU meanwhile: the error mode is not "global".
    with outer, torch.cuda.graph(graph, pool, _capture_stream(device), capture_error_mode="thread_local"):
        return step()


_ONE_CAPTURE = threading.Lock()


@contextlib.contextmanager
def _capturing() -> Iterator[None]:
    """What a capture needs of the process: no other capture, which torch forbids; no collection of garbage, since a
    graph that is destroyed during a capture may invalidate that; and no cuBLAS workspace from before.

    torch keeps one workspace for each stream. The first graph would allocate that of the capturing stream in its own
    memory, all later graphs would use it too, and the end of any graph (from torch 2.12 on) frees it. Cleared before
    and after, every graph has a workspace of its own, which lives as long as the graph. torch's own graphs
    (`torch._inductor.cudagraph_trees`) call the same private function, which torch 2.6 to 2.13 have where they are
    built for CUDA; without it there are no graphs, for they would share memory.
    """
    clear_workspaces = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear_workspaces is None:
        raise RuntimeError(f"torch {torch.__version__} cannot give a CUDA graph a cuBLAS workspace of its own")
    with _ONE_CAPTURE:
        collecting = gc.isenabled()
        gc.disable()
        clear_workspaces()
        try:
            yield
        finally:
            clear_workspaces()
            if collecting:
                gc.enable()


def _end_failed_capture(pool: Any, device: torch.device) -> None:
    """Does what torch before 2.12 leaves undone after a capture that failed: its allocator still allocates for that
    capture, so `torch.cuda.empty_cache` raises; and the device's random generator draws as in a capture until another
    capture has ended.

    These functions are private to torch. Where they are missing, nothing more can be done than to report the failure,
    and where torch has ended the capture itself, the first of them raises: then there is nothing left to do.
    """
    with contextlib.suppress(AttributeError, RuntimeError):
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        end = end or torch._C._cuda_endAllocateCurrentStreamToPool  # type: ignore[attr-defined]  # before torch 2.8
        index = torch.cuda.current_device()
        end(index, pool)
        torch._C._cuda_releasePool(index, pool)
        _record(lambda: torch.zeros(1, device=device), torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), device)


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device: torch's own belongs to the device that captured first, and libraries keep memory for each
    stream that they are called on.
    """
    return torch.cuda.Stream(device)


class Step(NamedTuple):
    """A forward pass of places [B, S] against a cache: arguments of `Showo.hidden_states`."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    mask: OmniMask
    cache: KVCache


# What is computed in a step: logits. A graph's key holds the function, so it must be one of a module.
Forward = Callable[..., Tensor]  # (model, step)


class User(Protocol):
    """What goes on at the end of a cache's rows, a step at a time."""

    def load(self, graph: Graph) -> None:
        """Puts all that its steps read into the buffers of a graph that another one may have used."""
        ...

    def write_back(self, graph: Graph) -> None:
        """Takes from the graph's cache what the user's own cache lacks: somebody else is to use the graph."""
        ...


class Key(NamedTuple):
    """rows, length: of the places [B, S]. slots: of the cache, a multiple of COLUMNS."""

    forward: Forward
    rows: int
    length: int
    slots: int

    @classmethod
    def of(cls, forward: Forward, rows: int, length: int, slots: int) -> Key:
        """The smallest graph that such a step fits. Rows are added, so that texts and pictures that come and go share
        a few graphs. A step of one place a row leaves a GPU idle: its rows become a power of two. A row of more places
        costs what it computes: several become an even number, from 16 on a multiple of an eighth of the power of two.
        With guidance they are even anyway.
        """
        power = 1 << (rows - 1).bit_length()
        multiple = power if length == 1 or rows == 1 else max(2, power // 8)
        rows = -(-rows // multiple) * multiple
        return cls(forward, rows, length, -(-slots // COLUMNS) * COLUMNS)


class Graph:
    """A captured step with its buffers. Of the rows only the first may be in use.

    user: whose state the buffers hold, as a weak reference.
    """

    def __init__(self, model: Showo, key: Key, capture: Capture) -> None:
        device, (forward, self.rows, length, slots) = model.device, key
        self._ids = torch.zeros(self.rows, length, dtype=torch.int64, device=device)
        self._positions = torch.arange(length, device=device).repeat(self.rows, 1)
        self._slots = self._positions.clone()
        self._mask = OmniMask(torch.zeros(self.rows, length, 1, 2, dtype=torch.int32, device=device), slots)
        self.cache = KVCache(model.config, self.rows, slots, dtype=model.dtype, device=device)
        self.user: Callable[[], User | None] = lambda: None
        step = Step(self._ids, self._positions, self._slots, self._mask, self.cache)
        self._replay, self._result = capture(lambda: forward(model, step), device)

    def write(
        self,
        *,
        ids: Tensor | None = None,
        positions: Tensor | None = None,
        slots: Tensor | None = None,
        intervals: Tensor | None = None,
    ) -> None:
        """What the next replay reads of the first rows: [b, S], intervals [b, S, 1, 2]."""
        for buffer, value in ((self._ids, ids), (self._positions, positions), (self._slots, slots)):
            if value is not None:
                buffer[: len(value)] = value
        if intervals is not None:
            overwrite_mask(self._mask, intervals)

    def replay(self, rows: int) -> Tensor:
        """The step's result for the first rows, which the next replay leaves alone."""
        self._replay()
        return self._result[:rows].clone()

    def give_to(self, user: User | None) -> None:
        """Loads the user's state, after the one before has taken what is its own; None is nobody."""
        if (previous := self.user()) is not None:
            previous.write_back(self)
        self.user = (lambda: None) if user is None else weakref.ref(user)
        if user is not None:
            user.load(self)


class Graphs:
    """The graphs of a model, captured when they are first wanted; the one used longest ago makes room for another.

    most: how many graphs are kept. Each holds a cache of its rows, and the memory that its step takes.
    A step that cannot be captured goes on without a graph, and so do all later ones like it; the first says so. Where
    memory runs out all graphs are freed for a new one, and if that does not help, its user goes on without.
    To be used from one thread at a time.
    """

    def __init__(self, model: Showo, *, most: int = MOST_GRAPHS, capture: Capture = capture) -> None:
        if most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        self._model, self.most, self._capture = weakref.ref(model), most, capture  # the model has these graphs itself
        self._graphs: dict[tuple[Key, object], Graph] = {}  # the one used last comes last
        self._failed: set[tuple[Key, object]] = set()
        self._without: weakref.WeakSet[User] = weakref.WeakSet()  # those for whose graphs there was too little memory
        self._said = False
        self._weights: tuple[int, ...] = ()

    @property
    def model(self) -> Showo:
        model = self._model()
        assert model is not None, "the model of these graphs is gone"
        return model

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def cache_bytes(self) -> int:
        """Of the keys and values of all graphs."""
        return sum(graph.cache.nbytes for graph in self._graphs.values())

    def find(self, user: User, key: Key) -> Graph | None:
        """The graph of a key with the user's state in it; None where there can be none."""
        full_key = (key, self._circumstances())
        if full_key in self._failed or user in self._without:
            return None
        graph = self._graphs.get(full_key)
        if graph is None or graph.user() is not user:
            if self._weights_have_moved():
                self.clear()
            graph = self._graphs.get(full_key) or self._new(full_key, user)
            if graph is None:
                return None
            graph.give_to(user)
        self._graphs.pop(full_key, None)
        self._graphs[full_key] = graph
        return graph

    def clear(self) -> None:
        """Frees all graphs; their users go on with others. Needed where layers are made to compute something else."""
        while self._graphs:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._graphs.pop(next(iter(self._graphs))).give_to(None)

    def _new(self, full_key: tuple[Key, object], user: User) -> Graph | None:
        while len(self._graphs) >= self.most:  # before another takes memory
            self._drop_oldest()
        key, handled = full_key[0], sys.exc_info()[1]
        while True:
            try:
                if _in_autocast(self.model.device):
                    raise RuntimeError("autocast keeps weights that it has cast outside of the graph")
                return Graph(self.model, key, self._capture)
            except RuntimeError as error:
                first = _first(error, handled)
                no_memory, reason = isinstance(first, torch.OutOfMemoryError), str(first).partition("\n")[0]
                del first  # its traceback holds the memory of the attempt
            if not (no_memory and self._graphs):
                break
            self.clear()
        if no_memory:
            self._without.add(user)
        else:
            self._failed.add(full_key)
        if not self._said:
            self._said = True
            warnings.warn(
                f"no CUDA graph of {key.rows}x{key.length} places with {key.slots} slots, nor of others that fail: "
                f"{reason}. Such steps run as without graphs",
                stacklevel=4,
            )
        return None

    def _circumstances(self) -> object:
        """What else a capture depends on."""
        model = self.model
        # From torch 2.9 on the general question raises where precision was set for CUDA alone.
        precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None) or torch.get_float32_matmul_precision()
        return model.attend, model.device, model.dtype, precision, _in_autocast(model.device)

    def _weights_have_moved(self) -> bool:
        """Whether weights lie elsewhere, or others are in their place, since the last call."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        # Tensors of other libraries, such as quantised ones, need not say where they lie.
        places = tuple(t.data_ptr() if type(t) in (Tensor, nn.Parameter) else id(t) for t in tensors)
        moved, self._weights = places != self._weights, places
        return moved


def _in_autocast(device: torch.device) -> bool:
    """Meta has no autocast, and torch raises where one asks for it."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def _first(error: BaseException, handled: BaseException | None) -> BaseException:
    """The error in whose handling all others up to this one were raised: where a step fails in a capture, the end of
    the capture fails too, and its error hides why. handled: what was being handled before any of them.
    """
    while error.__context__ not in (None, handled) and not error.__suppress_context__:
        error = error.__context__
    return error
