"""How GPUs share a model, and what of it each of them has."""

from __future__ import annotations

from dataclasses import dataclass

from showo.errors import ConfigError

SHARINGS = ("ddp", "fsdp", "hybrid")
GPUS_OF_NODE = 8  # of the machines that A100, H100 and H200 come in


@dataclass(frozen=True)
class Sharing:
    """GPUs that train together. kind: one of SHARINGS: each GPU has a whole model; all share one; or those of a machine
    (node) share one, so that there are as many copies as machines.
    offload: whether what a GPU has of the model, and of the optimizer, waits in the memory of the CPU (`fsdp.offload`).

    Raises ConfigError where machines cannot have equally many GPUs, and for whole models that wait.
    """

    kind: str
    gpus: int
    nodes: int
    offload: bool = False

    def __post_init__(self) -> None:
        if self.gpus % self.nodes:
            raise ConfigError(f"--gpus must be a multiple of --nodes, {self.nodes}, got {self.gpus}")
        if self.offload and self.kind == "ddp":
            raise ConfigError("fsdp.offload: with ddp every GPU keeps the whole model; take fsdp or hybrid")

    @property
    def whole(self) -> bool:
        """Whether each GPU has all weights at all times: the way of autocast and DDP, else that of FSDP."""
        return self.shards == 1 and not self.offload

    @property
    def of_node(self) -> int:
        return self.gpus // self.nodes

    @property
    def shards(self) -> int:
        """How many GPUs share a copy of the model."""
        return {"ddp": 1, "fsdp": self.gpus, "hybrid": self.of_node}[self.kind]

    @property
    def copies(self) -> int:
        return self.gpus // self.shards


def nodes_of(gpus: int) -> int:
    """Machines of eight, or one that has fewer."""
    return -(-gpus // GPUS_OF_NODE)
