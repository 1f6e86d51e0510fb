"""Copies to a GPU, told without one from what torch is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor


@contextmanager
def copies_to_gpu() -> Iterator[list[bool]]:
    """Of every copy to "cuda", whether it leaves the GPU to its work: from page-locked memory, not blocking.

    Nothing is copied. Torch waits for the GPU in every other copy to it.
    """
    locked: list[Tensor] = []
    seen: list[bool] = []
    to = Tensor.to

    def pin_memory(tensor: Tensor) -> Tensor:
        locked.append(tensor.clone())
        return locked[-1]

    def spied(tensor: Tensor, *arguments: Any, non_blocking: bool = False, **options: Any) -> Tensor:
        if not arguments or isinstance(arguments[0], torch.dtype) or torch.device(arguments[0]).type != "cuda":
            return to(tensor, *arguments, non_blocking=non_blocking, **options)
        seen.append(non_blocking and any(tensor is copy for copy in locked))
        return tensor

    with patch.object(Tensor, "pin_memory", pin_memory), patch.object(Tensor, "to", spied):
        yield seen
