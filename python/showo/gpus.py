"""GPUs and their links, by what their makers publish, and how much of it programs reach."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Gpu:
    """A GPU, and the machine it usually sits in.

    bf16, tf32, fp32: peaks in FLOP/s, of tensor cores and, in fp32, of the ordinary units. memory: bytes/s. capacity:
    bytes of memory. multiprocessors, clock: Hz, boost. nvlink: bytes/s that it sends to the others of its machine while
    it receives as many. network: bytes/s that a machine of eight sends to others. host_memory: bytes/s, an eighth of
    what the memory of such a machine's CPUs has.

    products: share of the peak that the matrix products of a training reach. Calibrated, not chosen: with it, the plan
    of llm-foundry's 3B model at 512 tokens, on eight of these, has the published throughput (docs/scaling.md).
    mma: share of the peak that kernels for compute capability 8.0 can reach. On Hopper 62.9% of it (arXiv 2402.13499).
    """

    bf16: float
    tf32: float
    fp32: float
    memory: float
    capacity: float
    multiprocessors: int
    clock: float
    nvlink: float
    network: float
    host_memory: float
    products: float
    mma: float = 1.0


# Data sheets and whitepapers of NVIDIA: A100 (SXM), H100 and H200 (dense products, without sparsity); DGX A100 and DGX
# H100, of whose eight network cards each sends 200 or 400 Gbit/s, and whose two processors (EPYC 7742, Xeon 8480C) have
# eight channels each, of DDR4-3200 or DDR5-4800. A PCIe card reaches the others through its slot.
_A100 = Gpu(
    bf16=312e12,
    tf32=156e12,
    fp32=19.5e12,
    memory=2.0e12,
    capacity=80 * 2**30,
    multiprocessors=108,
    clock=1.41e9,
    nvlink=300e9,
    network=200e9,
    host_memory=2 * 8 * 25.6e9 / 8,
    products=0.73,
)
_H100 = Gpu(
    bf16=989e12,
    tf32=495e12,
    fp32=67e12,
    memory=3.35e12,
    capacity=80 * 2**30,
    multiprocessors=132,
    clock=1.83e9,
    nvlink=450e9,
    network=400e9,
    host_memory=2 * 8 * 38.4e9 / 8,
    products=0.56,
    mma=0.629,
)
GPUS = {
    "a100-40": replace(_A100, memory=1.555e12, capacity=40 * 2**30),
    "a100-80": _A100,
    "h100": _H100,
    "h100-pcie": replace(
        _H100,
        bf16=756e12,
        tf32=378e12,
        fp32=51e12,
        memory=2.0e12,
        multiprocessors=114,
        clock=1.62e9,
        nvlink=64e9,
        network=200e9,
    ),
    "h200": replace(_H100, memory=4.8e12, capacity=141e9),
}
