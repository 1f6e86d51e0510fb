"""What an operation must cost: its FLOPs and bytes against the peaks of a device."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from showo.gpus import GPUS, Gpu

UNKNOWN = Gpu(**dict.fromkeys((f.name for f in fields(Gpu)), math.nan))
A100_80GB = GPUS["a100-80"]

_BY_NAME = (  # parts of the name that the driver gives, the more special ones first
    (("A100", "80GB"), A100_80GB),
    (("A100",), GPUS["a100-40"]),
    (("H200",), GPUS["h200"]),
    (("H100", "PCIe"), GPUS["h100-pcie"]),
    (("H100",), GPUS["h100"]),
)


def peaks_of(name: str) -> Gpu:
    """The peaks of the device that the driver calls `name`; NaN where they are not listed here."""
    return next((peaks for parts, peaks in _BY_NAME if all(part in name for part in parts)), UNKNOWN)


@dataclass(frozen=True)
class Work:
    """What an operation has to do, however it is done: products only where the result needs them, each input byte read
    and each output byte written once. `dtype` is that of the products: 16-bit ones run on tensor cores.
    """

    flops: float
    bytes: float
    dtype: torch.dtype

    def floor(self, peaks: Gpu) -> float:
        """Seconds that a perfect implementation would take."""
        rate = peaks.fp32 if self.dtype == torch.float32 else peaks.bf16
        return max(self.flops / rate, self.bytes / peaks.memory)
