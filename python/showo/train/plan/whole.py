"""The plan of a training on GPUs that share its model in one way: all that `showo plan` prints, as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from showo.errors import ConfigError
from showo.gpus import GPUS, Gpu
from showo.train.dry_run import DryRun
from showo.train.plan.flops import Flops, Rows, step_flops
from showo.train.plan.kernels import MEMORY_SHARE
from showo.train.plan.memory import ON_CPU, activation_memory, logits_memory, state_memory, workspace_memory
from showo.train.plan.network import HOST_COPY, Links
from showo.train.plan.running import Failures, checkpoint_bytes
from showo.train.plan.sharing import Sharing
from showo.train.plan.step_time import StepTime, step_time


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind, in machines (nodes) with equally many, and what is around them.

    storage: bytes/s that all of them together write. hours_of_gpu: between failures of one GPU, or of what belongs to
    it. restart: seconds from a failure to the next step.
    """

    name: str
    gpus: int
    nodes: int
    links: Links
    storage: float
    hours_of_gpu: float
    restart: float

    @property
    def gpu(self) -> Gpu:
        return GPUS[self.name]


@dataclass(frozen=True)
class Plan:
    """A training, opened as far as it is here, on a cluster. sharing: of the model. mfu: the share of their peak that
    the GPUs reach, where it is stated; 0: it is what comes out.

    Raises ConfigError where a micro-batch has fewer rows than there are GPUs.
    """

    run: DryRun
    cluster: Cluster
    sharing: Sharing
    mfu_stated: float = 0.0

    @cached_property
    def rows(self) -> list[Rows]:
        """What the rows of each stream hold, in a micro-batch of the GPU that has most of them: rows are dealt to the
        GPUs like cards.
        """
        config = self.run.config
        whole = sum(stream.rows for stream in self.run.streams) // config.accumulate
        if whole < self.sharing.gpus:
            raise ConfigError(
                f"a micro-batch has {whole} rows for {self.sharing.gpus} GPUs: more rows, or a smaller accumulate"
            )
        share = math.ceil(whole / self.sharing.gpus) / whole / config.accumulate
        return [rows.times(share) for rows in self.run.rows]

    @cached_property
    def flops(self) -> dict[str, Flops]:
        """Of a step, by part of the model."""
        return step_flops(self.run.model, sum(self.run.rows, Rows()))

    @cached_property
    def memory(self) -> dict[str, float]:
        """Bytes on each GPU, and for it in the memory of the CPU (ON_CPU), but for activations."""
        run, rows = self.run, sum(self.rows, Rows())
        found = state_memory(run.model, run.config, self.sharing)
        encoder = run.encoder_sizes if rows.encoded else None
        found["logits"] = logits_memory(run.model, self.rows)
        found["workspaces"] = workspace_memory(run.model, rows, run.config.resolution, encoder)
        return found

    @cached_property
    def activations(self) -> dict[str, float]:
        """Bytes of them, by what is computed again."""
        places = sum(rows.places for rows in self.rows)
        return activation_memory(self.run.model, self.run.config.precision, places, autocast=self.sharing.whole)

    def together(self, recompute: str) -> float:
        """Bytes on each GPU, with so much computed again."""
        there = sum(size for name, size in self.memory.items() if not name.endswith(ON_CPU))
        return there + self.activations[recompute]

    @cached_property
    def time(self) -> StepTime:
        run, cluster = self.run, self.cluster
        if self.mfu_stated:
            flops = sum(each.total for each in self.flops.values())
            return StepTime({"at the stated MFU": flops / (cluster.gpus * self.mfu_stated * self._peak)})
        rows = sum(self.rows, Rows())
        return step_time(run.model, run.config, cluster.gpu, rows, self.sharing, cluster.links, self._encoders(rows))

    def _encoders(self, rows: Rows) -> Mapping[str, float]:
        """FLOPs of the frozen networks, as far as they are known."""
        encoding, seeing = self.run.picture_flops()
        found = {"image tokenizer": rows.encoded * (encoding or 0), "vision tower": rows.seen * (seeing or 0)}
        return {name: flops for name, flops in found.items() if flops}

    @property
    def _peak(self) -> float:
        return self.cluster.gpu.bf16 if self.run.config.precision == "bf16" else self.cluster.gpu.fp32

    @property
    def mfu(self) -> float:
        flops = sum(each.total for each in self.flops.values())
        return flops / (self.time.seconds * self.cluster.gpus * self._peak)

    @property
    def tokens_a_second(self) -> float:
        return sum(self.run.rows, Rows()).places / self.time.seconds

    @property
    def days(self) -> float:
        """Of the whole training, if nothing breaks."""
        return self.run.config.steps * self.time.seconds / 86_400

    @property
    def pictures_a_second(self) -> float:
        """That rows have, as codes or as features."""
        rows = sum(self.run.rows, Rows())
        coded = (rows.image - rows.features) / self.run.config.model.num_vq_tokens
        return (coded + rows.seen) / self.time.seconds

    @cached_property
    def checkpoint(self) -> float:
        """Bytes."""
        return checkpoint_bytes(self.run.model, self.run.config)

    @cached_property
    def failures(self) -> Failures:
        """Steps stand still while each GPU's part is copied, to the CPU's memory or within it, to be written later."""
        cluster = self.cluster
        copying = MEMORY_SHARE * cluster.gpu.host_memory / 2 if self.sharing.offload else HOST_COPY  # read and written
        return Failures(
            saving=self.checkpoint / self.sharing.shards / copying,
            writing=self.checkpoint / cluster.storage,
            between=3600 * cluster.hours_of_gpu / cluster.gpus,
            restart=cluster.restart,
        )
