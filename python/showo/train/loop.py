"""The training loop both trainers share: steps, logging, validation, checkpoints, exact resume.

A step is a pure function of (weights, optimizer state, seed, step): data order and every random draw derive from
them, so a run that is resumed from a checkpoint continues bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from ..files import atomic_write_text
from ..pictures import save_image
from .checkpoint import load_checkpoint, prune_checkpoints, save_checkpoint
from .config import LoopConfig, to_yaml
from .optimizer import make_optimizer
from .progress import TrainProgress
from .step import LossFunction, train_step
from .stop import StopRequest


class TrainLoop:
    """Runs `loss(step, micro, generator)` for every micro-batch until the configured number of steps.

    Args:
        loss: see `LossFunction`
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
        loss: LossFunction,
        validate: Callable[[int], tuple[Mapping[str, float], Mapping[str, Image.Image]]],
        units: Mapping[str, float],
        attach: Callable[[Path], object] | None = None,
        console: Console | None = None,
    ) -> None:
        self.config, self.model, self.run_folder = config, model, run
        self.loss, self.validate, self.units, self.attach = loss, validate, units, attach
        self.console = console or Console(stderr=True)
        self.optimizer = make_optimizer(model, config.optimizer)
        self.step = 0
        self.history: list[float] = []

    def resume(self) -> bool:
        """Continues from the newest complete checkpoint of the run folder; False where there is none."""
        state = load_checkpoint(self.run_folder, self.model, self.config)
        if state is None:
            return False
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])
        return True

    def save(self) -> Path:
        state = {"optimizer": self.optimizer.state_dict(), "step": self.step}
        path = save_checkpoint(self.run_folder, self.step, self.model, state, self.config, self.attach)
        prune_checkpoints(self.run_folder, self.config.keep_checkpoints)
        return path

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
                figures = train_step(self.model, self.optimizer, self.loss, self.step, config)
                self.step += 1
                self.history.append(figures["loss"])
                figures.update(bar.update(self.step, figures["loss"], figures["lr"]))
                late = 0 < config.max_seconds <= time.monotonic() - began
                done = late or self.step == config.steps
                if self.step % config.log_every == 0 or done:
                    for name, value in figures.items():
                        writer.add_scalar(f"train/{name}", value, self.step)
                    bar.report(self.step, figures)
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
