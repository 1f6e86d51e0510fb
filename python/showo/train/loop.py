"""The training loop both trainers share: steps, logging, validation, checkpoints, exact resume.

A step is a pure function of (weights, optimizer state, seed, step): data order and every random draw derive from
them, so a run that is resumed from a checkpoint continues bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

from showo.errors import NotFiniteError, OutputError, UserError
from showo.files import atomic_write_text
from showo.train.checkpoint import checkpoints, load_checkpoint, prune_checkpoints, save_checkpoint
from showo.train.config import LoopConfig, to_yaml
from showo.train.lock import run_lock
from showo.train.log import RunLog
from showo.train.optimizer import make_optimizer
from showo.train.progress import TrainProgress
from showo.train.step import LossFunction, train_step
from showo.train.stop import StopRequest


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
        """Continues from the newest whole checkpoint of the run folder; False where there is none."""
        step = load_checkpoint(self.run_folder, self.model, self.optimizer, self.config, self.tell)
        if step is None:
            return False
        self.step = step
        return True

    def save(self) -> Path:
        path = save_checkpoint(self.run_folder, self.step, self.model, self.optimizer, self.config, self.attach)
        prune_checkpoints(self.run_folder, self.config.keep_checkpoints)
        return path

    def tell(self, text: str) -> None:
        """A line for the person who watches, as it is: file names may hold what rich takes for markup."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def run(self) -> None:
        """Trains to the end (or for max_seconds), then saves. SIGINT (Ctrl-C) and SIGTERM end it after the step they
        fall into, saved too, with KeyboardInterrupt and SystemExit(143).
        """
        config = self.config
        if self.step >= config.steps:
            self.tell(f"{self.run_folder} is finished: all {config.steps} steps are done")
            return
        atomic_write_text(self.run_folder / "config.yaml", to_yaml(config))
        began = time.monotonic()
        with (
            RunLog(self.run_folder, self.step) as log,
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
                    log.scalars("train", figures, self.step)
                    bar.report(self.step, figures)
                if self.step % config.validate_every == 0 or done:
                    self._validate(log)
                stopping = bool(stop)  # asked once: a signal that comes later waits for the next step
                if self.step % config.checkpoint_every == 0 or done or stopping:
                    path = self.save()
                if done:
                    break
                if stopping:
                    self.tell(f"interrupted at step {self.step}; saved {path}; continue with --resume")
                    stop.act()

    def _validate(self, log: RunLog) -> None:
        self.model.eval()
        with torch.no_grad():
            scalars, pictures = self.validate(self.step)
        self.model.train()
        log.scalars("val", scalars, self.step)
        line = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        if line:
            self.console.print(f"step {self.step}: validation  {line}")
        for name, picture in pictures.items():
            log.picture(name, picture, self.step)


def train(build: Callable[[], TrainLoop], run: Path, *, resume: bool = False) -> TrainLoop:
    """Runs the loop that `build` makes, from its beginning or on from its newest checkpoint, and returns it finished.

    Meanwhile the run folder belongs to this process.

    Raises:
        RunInUseError: the folder belongs to another process.
        UserError: it holds checkpoints and is not to be resumed, or holds none and is.
        OutputError: the disk is full, or refuses for another reason; the message names the last whole checkpoint.
        NotFiniteError: a loss, a gradient or a drawn picture became NaN or infinite; the message names it likewise.
    """
    if resume and not checkpoints(run):
        raise UserError(f"--resume: {run} has no checkpoint")
    with run_lock(run) as left_behind:
        if checkpoints(run) and not resume:
            raise UserError(f"{run} holds a run already; add --resume to continue it, or choose another folder (--run)")
        loop = build()
        if left_behind is not None:
            loop.tell(f"{run}: the lock of {left_behind}, which has ended, is taken over")
        if resume:
            loop.resume()
        loop.model.train()
        try:
            loop.run()
        except (OutputError, NotFiniteError) as error:
            whole = checkpoints(run)
            last = f"the last whole checkpoint is {whole[-1]}" if whole else "there is no checkpoint of this run yet"
            raise type(error)(f"{error}; {last}") from error
    return loop
