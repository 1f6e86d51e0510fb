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

    Raises ConfigError where machines cannot have equally many GPUs.
    """

    kind: str
    gpus: int
    nodes: int

    def __post_init__(self) -> None:
        if self.gpus % self.nodes:
            raise ConfigError(f"--gpus must be a multiple of --nodes, {self.nodes}, got {self.gpus}")

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
