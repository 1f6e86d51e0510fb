"""GPUs, by what their makers publish."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Peaks: FLOP/s of tensor cores in bf16 and of fp32 units, bytes/s of memory. capacity: bytes of memory."""

    bf16: float
    fp32: float
    memory: float
    capacity: float


# Data sheets of NVIDIA: A100 (SXM), H100 and H200 (dense products, without sparsity).
GPUS = {
    "a100-40": Gpu(312e12, 19.5e12, 1.555e12, 40 * 2**30),
    "a100-80": Gpu(312e12, 19.5e12, 2.0e12, 80 * 2**30),
    "h100": Gpu(989e12, 67e12, 3.35e12, 80 * 2**30),
    "h100-pcie": Gpu(756e12, 51e12, 2.0e12, 80 * 2**30),
    "h200": Gpu(989e12, 67e12, 4.8e12, 141e9),
}
