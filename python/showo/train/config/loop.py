"""What every training shares: steps, optimizer, logging, validation, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec

from omegaconf import MISSING

from showo.data.sources.config import SourceConfig
from showo.errors import ConfigError
from showo.intervals import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, SHARE_BELOW_ONE, check_intervals, within


@dataclass
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to `final_lr_ratio * lr`.

    Grouping as officially: only biases are not decayed.
    """

    lr: float = within(NOT_NEGATIVE, 1e-4)
    final_lr_ratio: float = within(SHARE, 0.0)
    warmup_steps: int = within(NOT_NEGATIVE, 5000)
    betas: tuple[float, float] = within(SHARE_BELOW_ONE, (0.9, 0.999))
    eps: float = within(POSITIVE, 1e-8)
    weight_decay: float = within(NOT_NEGATIVE, 0.01)
    max_grad_norm: float = within(NOT_NEGATIVE, 0.0)  # 0: no clipping


@dataclass
class LoopConfig:
    """What every training shares.

    `accumulate`: a step's rows go through the model in so many micro-batches, one after the other. `max_seconds` > 0
    ends a run early (with a checkpoint); the schedule still follows `steps`. `max_skipped_steps`: a step whose loss or
    gradient is not finite changes nothing, and so many of them may follow each other before the run ends.
    `step_timeout`, `pause_timeout`: seconds in which a step, and what comes between steps (start, validation, saving),
    must have ended where torchrun has started the training; else a rank ends that hangs (`showo.train.watchdog`).
    `workers` processes read data ahead, `prefetch` micro-batches each; 0 reads them when they are needed.
    `data_root` and `sources` do nothing by themselves: `${data_root}` and `${sources.NAME}` stand for them in other
    keys, so that a folder or a data set that several streams read is said, and changed, in one place.
    """

    steps: int = within(COUNT, MISSING)
    seed: int = 10086
    precision: str = "fp32"  # or bf16 (autocast)
    accumulate: int = within(COUNT, 1)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_skipped_steps: int = within(NOT_NEGATIVE, 10)
    ema_decay: float = within(SHARE_BELOW_ONE, 0.0)  # of an average of the weights; 0: none
    validate_ema: bool = True  # with that average, where there is one
    log_every: int = within(COUNT, 10)
    validate_every: int = within(COUNT, 500)
    validation_samples: int = within(COUNT, 256)  # of each stream, at most
    checkpoint_every: int = within(COUNT, 500)
    keep_checkpoints: int = within(COUNT, 2)
    keep_every: int = within(NOT_NEGATIVE, 0)  # checkpoints of steps that are multiples of it stay; 0: of no step
    max_seconds: float = within(NOT_NEGATIVE, 0.0)
    step_timeout: int = within(COUNT, 600)
    pause_timeout: int = within(COUNT, 3600)
    broken_share: float = within(SHARE, 0.01)  # of a source's samples; where more cannot be used, the run ends
    data_root: str = "data"
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    workers: int = within(NOT_NEGATIVE, 2)
    prefetch: int = within(COUNT, 2)
    wandb: str = ""  # a project of Weights & Biases that gets the log too
    device: str = "cpu"

    def check(self) -> None:
        """Raises ConfigError, which names the key, for values out of range or that make no sense together."""
        check_intervals(self)
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision must be fp32 or bf16, got {self.precision!r}")
        if self.wandb and find_spec("wandb") is None:
            raise ConfigError("wandb is not installed: pip install wandb, or leave the option out")

    def check_batch(self, key: str, batch: int) -> None:
        """Raises ConfigError where the rows of a step are no multiple of its micro-batches."""
        if batch % self.accumulate:
            raise ConfigError(f"{key} must be a multiple of accumulate, {self.accumulate}, got {batch}")
