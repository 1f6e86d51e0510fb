"""What travels between GPUs, and how long that takes: NCCL's ring and tree over links of given speed.

A ring brings each GPU n - 1 parts of a message of n; adding up a message takes a ring twice (Patarasu and Yuan,
"Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009). Two trees that share a message pass it up
and down in a number of hops that grows with the logarithm of the machines (Sanders, Speck and Träff, "Two-tree
algorithms for full bandwidth broadcast, reduction and scan", 2009; in NCCL since 2.4). NCCL takes the faster one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from showo.gpus import Gpu
from showo.train.plan.sharing import Sharing

# What messages of some megabytes reach of a link: 232 of 300 GB/s within a machine of eight A100s, and 86 of 100 GB/s
# between such machines (github.com/NVIDIA/nccl-tests, issue 175).
NVLINK_SHARE = 0.775
NETWORK_SHARE = 0.86
# Seconds of a hop, of the protocol for large messages: constants by which NCCL itself chooses (src/graph/tuning.cc).
NVLINK_HOP, NETWORK_HOP = 3.4e-6, 14e-6
_TREE_HOP, _TREE_NETWORK_HOP = 4e-6, 14e-6
# Bytes/s between a GPU and the CPU's memory, one way, through PCIe 4.0 x16, of 32 GB/s. Assumed.
HOST_COPY = 25e9
# Of a message between two processes through gloo and TCP. Assumed.
GLOO_HOP = 50e-6


@dataclass(frozen=True)
class Links:
    """nvlink: bytes/s that a GPU sends within its machine. network: that a machine sends to others."""

    nvlink: float
    network: float

    @classmethod
    def of(cls, gpu: Gpu, nvlink: float | None = None, network: float | None = None) -> Links:
        return cls(nvlink or gpu.nvlink, network or gpu.network)


@dataclass(frozen=True)
class Group:
    """GPUs that exchange something: `of_node` of each of `nodes` machines. share: of the network of its machine that
    the group has, as other groups of the same GPUs' machine send at the same time.
    """

    nodes: int
    of_node: int
    links: Links
    share: float = 1.0

    @property
    def size(self) -> int:
        return self.nodes * self.of_node

    @property
    def bandwidth(self) -> float:
        """Bytes/s that pass each GPU, or all GPUs of a machine together on their way to another machine."""
        inside = NVLINK_SHARE * self.links.nvlink if self.of_node > 1 else math.inf
        outside = NETWORK_SHARE * self.links.network * self.share if self.nodes > 1 else math.inf
        return min(inside, outside)

    def gather(self, size: float) -> float:
        """Seconds in which all get a message of `size` bytes of which each has a part; or, which is the reverse, each
        gets its part of the sum of all messages.
        """
        n = self.size
        return 0.0 if n == 1 else (n - 1) / n * size / self.bandwidth + self._hops()

    def ring(self, size: float) -> float:
        """Seconds in which all get the sum of messages of `size` bytes, around a ring."""
        return 2 * self.gather(size)

    def tree(self, size: float) -> float:
        """The same, up and down two trees over the machines, within which a message goes through a chain."""
        hops = (self.of_node - 1) * _TREE_HOP + math.ceil(math.log2(self.nodes)) * _TREE_NETWORK_HOP
        return 0.0 if self.size == 1 else 2 * (size / self.bandwidth + hops)

    def sum(self, size: float) -> float:
        """By the faster of both."""
        return min(self.ring(size), self.tree(size))

    def _hops(self) -> float:
        outside = self.nodes if self.nodes > 1 else 0
        return outside * NETWORK_HOP + max(0, self.size - 1 - outside) * NVLINK_HOP


def shards_of(sharing: Sharing, links: Links) -> Group:
    """The GPUs that share a copy of the model with one of them."""
    return Group(sharing.nodes if sharing.kind == "fsdp" else 1, sharing.of_node, links)


def copies_of(sharing: Sharing, links: Links) -> Group:
    """Those that have the same part of a copy."""
    if sharing.kind == "hybrid":
        return Group(sharing.nodes, 1, links, share=1 / sharing.of_node)
    return Group(sharing.nodes, sharing.of_node, links)


def talk_seconds(ranks: int) -> float:
    """In which ranks tell each other what their rows hold, and whether to stop: four rounds on the CPU, each a ring."""
    return 4 * (ranks - 1) * GLOO_HOP
