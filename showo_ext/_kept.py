"""What is made of a mask and kept with it, as long as the mask lives: its plans, and masks of some of its rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from showo_ext.mask import OmniMask

MAX_SELECTIONS = 8


class Kept:
    """plans: by kind of kernel, made by `showo_ext.ops._mask_plan`; a few kinds at most.
    selections: masks of rows, `MAX_SELECTIONS` at most, with the index tensor that each was made with.
    traced: whether the mask was made inside a graph that torch.compile or torch.export traces.
    """

    def __init__(self) -> None:
        self.plans: dict[tuple[int, int], Any] = {}
        self.selections: dict[Hashable, tuple[OmniMask, Tensor | tuple[Tensor, ...] | None]] = {}
        self.traced = torch.compiler.is_compiling()

    def selection(
        self, key: Hashable, make: Callable[[], OmniMask], index: Tensor | tuple[Tensor, ...] | None = None
    ) -> OmniMask:
        """The mask that was made for this key before, else a new one; the selection used longest ago makes room.

        index: tensors whose ids are part of the key; as long as they are kept no other tensor gets such an id.
        """
        found = self.selections.pop(key, None) or (make(), index)
        self.selections[key] = found
        if len(self.selections) > MAX_SELECTIONS:
            del self.selections[next(iter(self.selections))]
        return found[0]
