"""What an operation must cost: its FLOPs and bytes against the peaks of a device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Peaks:
    """Published peaks of a device: FLOP/s of tensor cores in bf16 and of fp32 units, bytes/s of memory."""

    bf16: float
    fp32: float
    memory: float


UNKNOWN = Peaks(math.nan, math.nan, math.nan)
A100_80GB = Peaks(312e12, 19.5e12, 2.0e12)

_BY_NAME = (  # parts of the name that the driver gives, the more special ones first
    (("A100", "80GB"), A100_80GB),
    (("A100",), Peaks(312e12, 19.5e12, 1.555e12)),
    (("H200",), Peaks(989e12, 67e12, 4.8e12)),
    (("H100", "PCIe"), Peaks(756e12, 51e12, 2.0e12)),
    (("H100",), Peaks(989e12, 67e12, 3.35e12)),
)


def peaks_of(name: str) -> Peaks:
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

    def floor(self, peaks: Peaks) -> float:
        """Seconds that a perfect implementation would take."""
        rate = peaks.fp32 if self.dtype == torch.float32 else peaks.bf16
        return max(self.flops / rate, self.bytes / peaks.memory)
