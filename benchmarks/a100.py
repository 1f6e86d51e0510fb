"""An A100-80GB, as far as a model of kernels needs it, and how long counted work takes there at best.

Sources: NVIDIA A100 whitepaper and CUDA programming guide, "Arithmetic Instructions" and "Technical Specifications per
Compute Capability", for 8.0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from benchmarks.roofline import A100_80GB

MULTIPROCESSORS = 108
CLOCK = 1.41e9  # Hz, boost
ISSUE = 4.0  # warp-instructions per cycle and multiprocessor
WAVEFRONTS = 1.0  # of shared memory, per cycle and multiprocessor
LANES = {"fp32": 64, "integer": 64, "half": 256, "special": 16, "convert": 16, "fp64": 32}  # results a cycle and mp
L2_BYTES = 5120 * CLOCK  # bytes/s
ATOMIC_BYTES = L2_BYTES / 2  # assumed: a reduction reads and writes its sector in the L2 cache
LAUNCH = 2e-6  # seconds between the ends of two dependent kernels of a CUDA graph, assumed

# What of these peaks well-tuned kernels reach. TENSOR: FlashAttention-2 in bf16 with heads of 64 runs forward and
# backward at 153 TFLOP/s at length 1,024 (its published table), where its counted instructions (1,015,776 a head) and
# products (229,376) alone, one after the other, would take 4.68 us a head and do take 6.14.
TENSOR_SLOWDOWN = 6.14 / 4.68
MEMORY_SHARE = 0.85  # of 2.0 TB/s: what copies reach
L2_SHARE = 0.7


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
    uneven = math.ceil(blocks / MULTIPROCESSORS) * MULTIPROCESSORS / blocks
    per_cycle = uneven / (MULTIPROCESSORS * CLOCK)
    threads_of = {name: 32 * warps for name, (warps, _) in record.classes.items()}
    terms = {
        "tensor": record.mma_flops / A100_80GB.bf16 * uneven,
        "issue": record.warp_instructions / ISSUE * per_cycle,
        "shared": record.shared_wavefronts[0] / WAVEFRONTS * per_cycle,
        "L2": record.global_sectors[0] * 32 / L2_BYTES + 4 * threads_of.get("atomic", 0) / ATOMIC_BYTES,
        "memory": sum(t["read"] + t["written"] for t in record.tensors) / A100_80GB.memory,
        **{name: threads_of.get(name, 0) / lanes * per_cycle for name, lanes in LANES.items()},
    }
    issue_bound = terms["tensor"] + terms["issue"]  # an mma keeps its warp's slot: hardly any overlap in practice
    others = max(terms[name] for name in ("shared", *LANES))
    seconds = max(TENSOR_SLOWDOWN * issue_bound, others, terms["memory"] / MEMORY_SHARE, terms["L2"] / L2_SHARE)
    return Prediction(terms, seconds + LAUNCH)
