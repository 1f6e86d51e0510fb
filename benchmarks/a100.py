"""How long the work that an emulator has counted takes on an A100-80GB, by the model of showo.train.plan.kernels.

Sources: NVIDIA A100 whitepaper and CUDA programming guide, "Arithmetic Instructions" and "Technical Specifications per
Compute Capability", for 8.0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from benchmarks.roofline import A100_80GB
from showo.train.plan.kernels import ISSUE, L2_BYTES, SECTOR, WAVEFRONTS, kernel_seconds

LANES = {"fp32": 64, "integer": 64, "half": 256, "special": 16, "convert": 16, "fp64": 32}  # results a cycle and mp
L2_RATE = L2_BYTES * A100_80GB.clock  # bytes/s
ATOMIC_RATE = L2_RATE / 2  # assumed: a reduction reads and writes its sector in the L2 cache


@dataclass(frozen=True)
class Occupancy:
    """How many blocks of a kernel a multiprocessor holds, and what it lacks for one more."""

    blocks: int
    warps: int  # of 64
    limit: str


def occupancy(threads: int, registers: int, shared: int) -> Occupancy:
    """Registers are given to warps by 256, shared memory to blocks by 128 bytes, 1 KiB of it to the system."""
    warps = math.ceil(threads / 32)
    registers_of_warp = math.ceil(max(registers, 1) * 32 / 256) * 256
    warps_by_registers = 65536 // registers_of_warp // 4 * 4  # every quarter has a file of its own
    limits = {
        "threads": 2048 // (warps * 32),
        "registers": warps_by_registers // warps,
        "shared memory": 164 * 1024 // (math.ceil((shared + 1024) / 128) * 128),
        "blocks": 32,
    }
    limit = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[limit], limits[limit] * warps, limit)


@dataclass(frozen=True)
class Prediction:
    """Seconds of each resource if nothing else took time, the one that binds, and what to expect."""

    terms: dict[str, float]
    seconds: float

    @property
    def binds(self) -> str:
        return max(self.terms, key=lambda name: self.terms[name])

    @property
    def best(self) -> float:
        """All resources overlap perfectly."""
        return max(self.terms.values())


def predict(record: Any) -> Prediction:
    """From the counters of one launch (tests.ptx.device.Counters)."""
    blocks = math.prod(record.grid)
    # The busiest multiprocessor has ceil(blocks / 108) blocks to run, the average one fewer.
    uneven = math.ceil(blocks / A100_80GB.multiprocessors) * A100_80GB.multiprocessors / blocks
    per_cycle = uneven / (A100_80GB.multiprocessors * A100_80GB.clock)
    threads_of = {name: 32 * warps for name, (warps, _) in record.classes.items()}
    terms = {
        "tensor": record.mma_flops / A100_80GB.bf16 * uneven,
        "issue": record.warp_instructions / ISSUE * per_cycle,
        "shared": record.shared_wavefronts[0] / WAVEFRONTS * per_cycle,
        "L2": record.global_sectors[0] * SECTOR / L2_RATE + 4 * threads_of.get("atomic", 0) / ATOMIC_RATE,
        "memory": sum(t["read"] + t["written"] for t in record.tensors) / A100_80GB.memory,
        **{name: threads_of.get(name, 0) / lanes * per_cycle for name, lanes in LANES.items()},
    }
    return Prediction(terms, kernel_seconds(terms))
