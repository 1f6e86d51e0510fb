"""The configuration of `showo train`."""

from __future__ import annotations

from dataclasses import dataclass, field

from showo.config import ShowoConfig
from showo.data.corruption import ObjectiveConfig
from showo.data.streams import STREAMS
from showo.engine.sampling import Sampling
from showo.errors import ConfigError
from showo.intervals import COUNT, NOT_NEGATIVE, SHARE, within
from showo.train.config.loop import LoopConfig
from showo.train.config.lora import LoraOptions
from showo.train.config.shards import PARALLEL, ShardOptions
from showo.train.config.streams import Stream, check_sources, refuse_codes

RECOMPUTE = ("none", "selective", "full")


@dataclass
class ShowoTraining(LoopConfig):
    """`showo train`. resolution: sides of the pictures, in pixels.

    `encode_first`: sources of at most so many samples go through the image tokenizer once, before the first step, and
    stay in memory as codes; others do so whenever a row needs them. 0 encodes nothing ahead.
    """

    model: ShowoConfig = field(default_factory=ShowoConfig)
    image_tokenizer: str = "bundled:tiny/image_tokenizer"  # a checkpoint folder, a run, or a hub id
    text_tokenizer: str = "bundled:tiny/showo"
    code_bits: bool = False  # rows of codes share what their bits mean: see `showo.model.code_bits`
    lora: LoraOptions = field(default_factory=LoraOptions)  # adapters that learn in place of the weights
    frozen: list[str] = field(default_factory=list)  # patterns of names of parameters that learn nothing
    recompute: str = "none"  # activations that the backward pass computes again: none, selective, full
    compile: str = ""  # a backend of torch.compile, such as inductor, that compiles every block
    parallel: str = "ddp"  # what several ranks do: each has the model (ddp), or a part of it (fsdp); none: one rank
    fsdp: ShardOptions = field(default_factory=ShardOptions)
    vision_tower: str = ""  # folder or hub id of the CLIP that rows of mmu_vit see with, or the run that made it
    init_from: str = ""  # a checkpoint folder, a run, or a Phi language model, whose weights start this one
    resolution: int = within(COUNT, 64)
    encode_first: int = within(NOT_NEGATIVE, 0)
    t2i: Stream = field(default_factory=Stream)
    lm: Stream = field(default_factory=lambda: Stream(weight=0.1))
    mmu: Stream = field(default_factory=Stream)
    lvg: Stream = field(default_factory=Stream)
    mmu_vit: Stream = field(default_factory=Stream)
    t2v: Stream = field(default_factory=Stream)
    v2v: Stream = field(default_factory=Stream)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)  # what of a picture is hidden, and learned
    condition_dropout: float = within(SHARE, 0.1)
    questions: list[str] = field(default_factory=list)  # mmu rows may ask one of these before the caption
    question_share: float = within(SHARE, 0.0)
    validation_prompts: list[str] = field(default_factory=list)
    sampling: Sampling = field(default_factory=Sampling)  # of the validation's pictures, and the checkpoint's default

    @property
    def streams(self) -> dict[str, Stream]:
        """Those that have rows, in the order of a batch's parts."""
        return {name: getattr(self, name) for name in STREAMS if getattr(self, name).batch}

    def check(self) -> None:
        super().check()
        if not self.streams:
            keys = ", ".join(f"{name}.batch" for name in STREAMS)
            raise ConfigError(f"one of {keys} must be at least 1, got 0 for each")
        for name, stream in self.streams.items():
            self.check_batch(f"{name}.batch", stream.batch)
            check_sources(f"{name}.", stream.data, stream.held_out)
        if self.recompute not in RECOMPUTE:
            raise ConfigError(f"recompute must be one of {', '.join(RECOMPUTE)}, got {self.recompute!r}")
        if self.parallel not in PARALLEL:
            raise ConfigError(f"parallel must be one of {', '.join(PARALLEL)}, got {self.parallel!r}")
        if self.parallel != "fsdp" and self.fsdp != ShardOptions():
            raise ConfigError(f"parallel must be fsdp where fsdp has options, got {self.parallel!r}")
        if self.mmu_vit.batch:
            refuse_codes("mmu_vit.", self.mmu_vit.data, self.mmu_vit.held_out)
        if self.mmu_vit.batch and not self.vision_tower:
            raise ConfigError("vision_tower must be a folder or hub id where there are rows of mmu_vit, got ''")
        self.objective.check()
        self.lora.check(init_from=self.init_from, code_bits=self.code_bits)
        if self.question_share and not self.questions:
            raise ConfigError(f"questions must be at least one where question_share is {self.question_share}, got []")
