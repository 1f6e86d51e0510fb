"""Building a model no larger than is meant, and without filling weights that are about to be replaced."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from showo.errors import UserError


class Building(TorchFunctionMode):
    """Inside this context modules are built from a configuration that nobody has checked against anything.

    room: how many numbers the weights may have in all. What would be more raises `error` before it is allocated, and
        so before a million layers are made.
    fill: False leaves out torch.nn.init: the weights stay untouched, unwritten memory. (Building on the meta device
        saves that memory's addresses too, but its operators load torch's compiler: 1.5 s.)
    """

    def __init__(self, room: int, error: UserError, *, fill: bool) -> None:
        super().__init__()
        self.room, self.error, self.fill = room, error, fill

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.fill and getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if func is torch.empty and args:
            self.room -= math.prod(args if isinstance(args[0], int) else args[0])
            if self.room < 0:
                raise self.error
        return func(*args, **(kwargs or {}))
