"""How long kernels take on a GPU: what docs/performance.md counts of ours, and memory traffic of torch's.

A kernel is predicted from what an emulator has counted of it; benchmarks/a100.py does that for any launch, and here are
the counts of attention at two shapes, between which work grows with pairs and with places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from showo.gpus import Gpu

LAUNCH = 2e-6  # seconds between the ends of two dependent kernels of a CUDA graph, assumed
ISSUE = 4.0  # warp-instructions per cycle and multiprocessor
WAVEFRONTS = 1.0  # of shared memory, per cycle and multiprocessor
L2_BYTES = 5120  # bytes a cycle
SECTOR = 32  # bytes
MMA_FLOPS = 4096  # of an mma.m16n8k16

# What of these peaks well-tuned kernels reach. TENSOR: FlashAttention-2 in bf16 with heads of 64 runs forward and
# backward at 153 TFLOP/s at length 1,024 (its published table), where its counted instructions (1,015,776 a head) and
# products (229,376) alone, one after the other, would take 4.68 us a head and do take 6.14.
TENSOR_SLOWDOWN = 6.14 / 4.68
MEMORY_SHARE = 0.85  # of 2.0 TB/s: what copies reach
L2_SHARE = 0.7


def kernel_seconds(terms: Mapping[str, float]) -> float:
    """Of a launch, from the seconds that each resource would take at its peak if nothing else took time: "tensor",
    "issue", "memory", "L2", and others that overlap with them.
    """
    issue_bound = terms["tensor"] + terms["issue"]  # an mma keeps its warp's slot: hardly any overlap in practice
    others = max((seconds for name, seconds in terms.items() if name not in _NAMED), default=0.0)
    return LAUNCH + max(TENSOR_SLOWDOWN * issue_bound, others, terms["memory"] / MEMORY_SHARE, terms["L2"] / L2_SHARE)


_NAMED = ("tensor", "issue", "memory", "L2")


@dataclass(frozen=True)
class Counts:
    """What a kernel does for 32 heads of 64, in numbers that are linear in pairs and in places.

    instructions: of warps. products: mma among them. wavefronts: of shared memory. sectors: of L2. bytes: of memory.
    """

    instructions: float
    products: float
    wavefronts: float
    sectors: float
    bytes: float

    def seconds(self, gpu: Gpu) -> float:
        cycles = gpu.multiprocessors * gpu.clock
        return kernel_seconds(
            {
                "tensor": MMA_FLOPS * self.products / (gpu.mma * gpu.bf16),
                "issue": self.instructions / ISSUE / cycles,
                "shared": self.wavefronts / WAVEFRONTS / cycles,
                "L2": SECTOR * self.sectors / (L2_BYTES * gpu.clock),
                "memory": self.bytes / gpu.memory,
            }
        )


# (pairs, places) of the two shapes, and what the kernels were counted to do at them: docs/performance.md, t2i B16 S387
# and t2i B4 S1155, H32 D64 bfloat16, forward and backward.
SHAPES = ((1_261_536, 16 * 387), (4_358_660, 4 * 1155))
_ACROSS = 32 * 64  # heads times their size, of both
COUNTED = {
    "omni_forward_kernel": (
        Counts(24_241_152, 2_899_968, 4_981_248, 6_433_920, 102.4e6),
        Counts(47_477_944, 9_016_832, 10_728_512, 11_785_504, 76.4e6),
    ),
    "omni_backward_stats_kernel": (
        Counts(6_021_632, 0, 64_000, 1_701_760, 54.2e6),
        Counts(4_264_064, 0, 43_648, 1_263_712, 40.4e6),
    ),
    "omni_backward_dkdv_kernel": (
        Counts(45_678_336, 7_249_920, 19_780_608, 11_067_264, 259.8e6),
        Counts(92_951_680, 22_542_080, 57_556_416, 23_085_312, 192.0e6),
    ),
    "omni_backward_convert_kernel": (
        Counts(4_511_744, 0, 0, 2_627_584, 84.0e6),
        Counts(3_087_872, 0, 0, 1_836_544, 58.8e6),
    ),
}
_FORWARD = ("omni_forward_kernel",)


def attention_seconds(gpu: Gpu, hidden: int, places: float, pairs: float) -> tuple[float, float]:
    """Of a forward pass of attention, in bf16, and of a backward pass. hidden: heads times their size."""
    seconds = {name: counts_at(name, hidden, places, pairs).seconds(gpu) for name in COUNTED}
    forward = sum(seconds[name] for name in _FORWARD)
    return forward, sum(seconds.values()) - forward


def counts_at(kernel: str, hidden: int, places: float, pairs: float) -> Counts:
    """What a kernel does for other rows: a share for every pair and a share for every place, which together give the
    counts at both shapes; for what no pair adds to, the mean share of a place.
    """
    found = {}
    for field in Counts.__dataclass_fields__:
        one, two = (getattr(counts, field) for counts in COUNTED[kernel])
        (pairs_1, places_1), (pairs_2, places_2) = SHAPES
        determinant = pairs_1 * places_2 - pairs_2 * places_1
        of_pair = (one * places_2 - two * places_1) / determinant
        of_place = (pairs_1 * two - pairs_2 * one) / determinant
        if of_pair < 0 or of_place < 0 or field == "bytes":
            of_pair, of_place = 0.0, (one / places_1 + two / places_2) / 2
        found[field] = (of_pair * pairs + of_place * places) * hidden / _ACROSS
    return Counts(**found)


def memory_seconds(gpu: Gpu, size: float) -> float:
    """Of kernels that read and write so many bytes, and do little else."""
    return size / (MEMORY_SHARE * gpu.memory)


def product_seconds(gpu: Gpu, half: bool, rows: float, inner: int, outer: int) -> float:
    """Of a matrix product, [rows, inner] times [inner, outer]: its FLOPs, or the bytes of its three matrices."""
    size, peak = (2, gpu.bf16) if half else (4, gpu.fp32)
    traffic = size * (rows * inner + inner * outer + rows * outer)
    return max(2 * rows * inner * outer / (gpu.products * peak), memory_seconds(gpu, traffic))
