"""The training loop both trainers share: optimizer, schedule, accumulation, logging, checkpoints, exact resume.

A step is a pure function of (weights, optimizer state, seed, step): data order and every random draw derive from
them, so a run that is resumed from a checkpoint continues bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from ..errors import NotFiniteError
from ..files import atomic_write_text
from ..pictures import save_image
from ..seeds import seeded_generator
from .checkpoint import load_checkpoint, prune_checkpoints, save_checkpoint
from .config import LoopConfig, OptimizerConfig, to_yaml
from .progress import TrainProgress
from .stop import StopRequest

Losses = tuple[Tensor, Mapping[str, float]]


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Official grouping: whatever has "bias" in its name is not decayed, all else is, LayerNorm weights and
    embeddings included.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in named:
        if parameter.requires_grad:
            (free if "bias" in name else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear warm-up from 0 (the first step's rate is 0, as officially), then cosine to final_lr_ratio * lr."""
    if step < config.warmup_steps:
        return config.lr * step / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine)


def step_generator(seed: int, step: int, micro: int) -> torch.Generator:
    """The random source of one micro-batch: nothing to save, nothing to restore."""
    return seeded_generator((seed * 1_000_003 + step) * 1009 + micro)


class TrainLoop:
    """Runs `loss(step, micro, generator)` for every micro-batch until the configured number of steps.

    Args:
        loss: (step, micro-batch of the step, generator) -> (loss, metrics to log)
        validate: step -> (scalars, pictures), called every `validate_every` steps
        units: what one step processes, for the rates: {"images": 32, "tokens": 2048}
        attach: called with every checkpoint's folder, to write what belongs to the model besides (the text tokenizer)
    """

    def __init__(
        self,
        config: LoopConfig,
        model: Any,
        run: Path,
        *,
        loss: Callable[[int, int, torch.Generator], Losses],
        validate: Callable[[int], tuple[Mapping[str, float], Mapping[str, Image.Image]]],
        units: Mapping[str, float],
        attach: Callable[[Path], object] | None = None,
        console: Console | None = None,
    ) -> None:
        self.config, self.model, self.run_folder = config, model, run
        self.loss, self.validate, self.units, self.attach = loss, validate, units, attach
        self.console = console or Console(stderr=True)
        groups = parameter_groups(model.named_parameters(), config.optimizer.weight_decay)
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.optimizer.lr, betas=config.optimizer.betas, eps=config.optimizer.eps, fused=True
        )
        self.step = 0
        self.history: list[float] = []

    def resume(self) -> bool:
        """Continues from the newest complete checkpoint of the run folder; False where there is none."""
        state = load_checkpoint(self.run_folder, self.model, self.config)
        if state is None:
            return False
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.step = int(state["step"])
        return True

    def save(self) -> Path:
        state = {"optimizer": self.optimizer.state_dict(), "rng": torch.get_rng_state(), "step": self.step}
        path = save_checkpoint(self.run_folder, self.step, self.model, state, self.config, self.attach)
        prune_checkpoints(self.run_folder, self.config.keep_checkpoints)
        return path

    def train_step(self) -> tuple[Tensor, dict[str, float]]:
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, self.step, config.steps)
        total = torch.zeros(())
        metrics: dict[str, float] = {}
        for micro in range(config.accumulate):
            generator = step_generator(config.seed, self.step, micro)
            with torch.autocast(config.device, torch.bfloat16, enabled=config.precision == "bf16"):
                loss, parts = self.loss(self.step, micro, generator)
            (loss / config.accumulate).backward()
            total = total + loss.detach().cpu() / config.accumulate
            for name, value in parts.items():
                metrics[name] = metrics.get(name, 0.0) + value / config.accumulate
        limit = config.optimizer.max_grad_norm or math.inf
        metrics["grad_norm"] = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        if not math.isfinite(metrics["grad_norm"]):
            raise NotFiniteError(f"step {self.step}: loss {float(total)}, gradient norm {metrics['grad_norm']}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total, metrics

    def run(self) -> None:
        """Trains to the end (or for max_seconds), then saves. SIGINT (Ctrl-C) and SIGTERM end it after the step they
        fall into, saved too, with KeyboardInterrupt and SystemExit(143).
        """
        config = self.config
        self.run_folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self.run_folder / "config.yaml", to_yaml(config))
        began = time.monotonic()
        with (
            SummaryWriter(str(self.run_folder / "logs")) as writer,
            TrainProgress(config, self.units, self.console) as bar,
            StopRequest() as stop,
        ):
            while self.step < config.steps:
                loss, metrics = self.train_step()
                self.history.append(float(loss))
                lr = self.optimizer.param_groups[0]["lr"]
                rates = bar.update(self.step, float(loss), lr)
                late = 0 < config.max_seconds <= time.monotonic() - began
                done = late or self.step == config.steps
                if self.step % config.log_every == 0 or done:
                    scalars = {"loss": float(loss), "lr": lr, **metrics, **rates}
                    for name, value in scalars.items():
                        writer.add_scalar(f"train/{name}", value, self.step)
                    bar.report(self.step, scalars)
                if self.step % config.validate_every == 0 or done:
                    self._validate(writer)
                stopping = bool(stop)  # asked once: a signal that comes later waits for the next step
                if self.step % config.checkpoint_every == 0 or done or stopping:
                    path = self.save()
                if done:
                    break
                if stopping:
                    self.console.print(f"interrupted at step {self.step}; saved {path}; continue with --resume")
                    stop.act()

    def _validate(self, writer: SummaryWriter) -> None:
        self.model.eval()
        with torch.no_grad():
            scalars, pictures = self.validate(self.step)
        self.model.train()
        for name, value in scalars.items():
            writer.add_scalar(f"val/{name}", value, self.step)
        line = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        if line:
            self.console.print(f"step {self.step}: validation  {line}")
        folder = self.run_folder / "pictures"
        for name, picture in pictures.items():
            save_image(picture, folder / f"{name}-{self.step:06d}.png")
            writer.add_image(name, np.asarray(picture), self.step, dataformats="HWC")
