"""CUDA graphs without a GPU: a step is recorded as its Python, and runs again on the same buffers.

    recorder = Recorder()
    model.graphs = Graphs(model, capture=recorder)

While a step is recorded or replayed every operator is looked at. A step fails that waits for the device, that brings
data from the host, or that reads memory which is neither the model's, nor the graph's, nor made in the step: a real
graph could not be recorded, or would read at its next replay what nobody has put there.
"""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from showo.model.graphs import Step
from showo.model.transformer import Showo
from showo_ext import OmniMask

WAITING = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "equal",
    "unique",
    "repeat_interleave.Tensor",
)
FROM_HOST = ("lift_fresh", "scalar_tensor", "_pin_memory")


class Recorder:
    """capture of `Graphs`. recorded: how many steps. failing: raises in the place of a recording that cannot be.
    room: how many results there is memory for. watched: whether operators are looked at."""

    def __init__(self, *, failing: bool = False, room: int | None = None, watched: bool = True) -> None:
        self.recorded = self.replayed = 0
        self.failing, self.room, self.watched = failing, room, watched
        self.results: list[weakref.ref[Tensor]] = []

    def __call__(self, step: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], object], Tensor]:
        self.recorded += 1
        try:
            self._record()
        except RuntimeError:  # torch.cuda.graph ends the capture all the same, and that fails too
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        step()  # as `showo.model.graphs.capture`
        names = inspect.getclosurevars(step).nonlocals
        known = [*tensors_of_model(names["model"]), *tensors_of_step(names["step"])]

        def watch() -> contextlib.AbstractContextManager[object]:
            return Watch(known, device) if self.watched else contextlib.nullcontext()

        with watch():
            result = step()
        self.results.append(weakref.ref(result))

        def replay() -> None:
            self.replayed += 1
            with watch():
                made = step()
            result.copy_(made)

        return replay, result

    def _record(self) -> None:
        if self.failing:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        if self.room is not None and sum(result() is not None for result in self.results) >= self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")


def tensors_of_model(model: Showo) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def tensors_of_step(step: Step) -> list[Tensor]:
    ids, positions, slots, mask, cache = step
    return [ids, positions, slots, *tensors_of_mask(mask), *cache.keys, *cache.values]


def tensors_of_mask(mask: OmniMask) -> list[Tensor]:
    """With what is kept with the mask, which `overwrite_mask` writes too."""
    plans = [x for plan in mask._kept.plans.values() for x in plan if isinstance(x, Tensor)]
    return [mask.intervals, *plans, *(x for other, _ in mask._kept.selections.values() for x in tensors_of_mask(other))]


class Watch(TorchDispatchMode):
    def __init__(self, known: list[Tensor], device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.known = known  # and what is made here, which is kept, lest its memory be given to something else
        self.addresses = set(map(address, known))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().partition("::")[2]
        if name in WAITING or name.partition(".")[0] in WAITING:
            raise AssertionError(f"{name} waits for the device")
        if name.partition(".")[0] in FROM_HOST:
            raise AssertionError(f"{name} brings data from the host")
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and x.numel() > 0:
                assert x.device.type == self.device.type, f"{name} reads a tensor on {x.device}"
                assert address(x) in self.addresses, f"{name} reads {list(x.shape)}, which is no memory of the graph"
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                assert x.device.type == self.device.type, f"{name} makes a tensor on {x.device}"
                self.known.append(x)
                self.addresses.add(address(x))
        return result


def address(x: Tensor) -> int:
    """Of its storage; of one without memory, a number of its own."""
    storage = x.untyped_storage()
    return storage._cdata if x.device.type == "meta" else storage.data_ptr()
