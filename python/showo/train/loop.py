"""The training loop both trainers share: steps, logging, validation, checkpoints, exact resume.

A step is a pure function of (weights, optimizer state, seed, step): data order and every random draw derive from
them, so a run that is resumed from a checkpoint continues bit for bit.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from PIL import Image
from rich.console import Console

from showo.data.faults import FaultLog, Pool
from showo.devices import multiplies_bf16
from showo.errors import DataError, NotFiniteError, OutOfMemoryError, OutputError, UserError
from showo.files import atomic_write_text
from showo.lock import run_lock
from showo.train.checkpoint import checkpoints, load_checkpoint
from showo.train.config import LoopConfig, to_yaml
from showo.train.ema import WeightAverage
from showo.train.facts import Facts
from showo.train.figures import Figures, StepFigures, mean_figures
from showo.train.log import RunLog
from showo.train.meter import Meter, peak_memory
from showo.train.optimizer import learning_rate, make_optimizer
from showo.train.out_of_memory import explained_lack_of_memory
from showo.train.parallel import Parallel
from showo.train.pools import facts_of
from showo.train.profile import profiled_steps
from showo.train.progress import TrainProgress
from showo.train.ranks import Ranks
from showo.train.restart import is_restart, sign_for_restarts
from showo.train.saving import Saver
from showo.train.step import B, LossFunction, train_step
from showo.train.stop import Stopped, StopRequest

B_co = TypeVar("B_co", covariant=True)


class Data(Protocol[B_co]):
    """The micro-batches of a training by number, from 0 on, as `showo.data.loader.Loader` makes them ahead."""

    @property
    def seconds_waited(self) -> float: ...

    def between(self, start: int, end: int) -> Generator[B_co, None, None]: ...


class TrainLoop(Generic[B]):
    """Trains on micro-batches until the configured number of steps.

    Args:
        parallel: the model, as the ranks share it; what the loop is given else is of this rank
        data: step s takes the micro-batches s * accumulate and the next ones
        pools: where the samples of each stream are from
        loss: see `LossFunction`
        validate: (model, step) -> (scalars, pictures), called every `validate_every` steps
        attach: called with every checkpoint's folder, to write what belongs to the model besides (the text tokenizer)
    """

    def __init__(
        self,
        config: LoopConfig,
        parallel: Parallel,
        run: Path,
        *,
        data: Data[B],
        pools: Mapping[str, Pool],
        loss: LossFunction[B],
        validate: Callable[[Any, int], tuple[Mapping[str, float], Mapping[str, Image.Image]]],
        attach: Callable[[Path], object] | None = None,
        console: Console | None = None,
    ) -> None:
        self.config, self.parallel, self.model, self.run_folder = config, parallel, parallel.model, run
        self.ranks = parallel.ranks
        self.data, self.loss, self.validate = data, loss, validate
        self.console = console or Console(stderr=True)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.average = WeightAverage(self.model, config.ema_decay) if config.ema_decay else None
        self.source_facts = facts_of(pools) if self.ranks.first else {}  # before anything can change under the run
        self.saver = Saver(run, parallel, self.optimizer, self.average, config, self.source_facts, attach)
        self.step = 0
        self.history: list[float] = []  # the loss of every step
        self._faults = {
            name: FaultLog([source.name for source in pool.sources], config.broken_share)
            for name, pool in pools.items()
        }
        self._figures = StepFigures(config.max_skipped_steps)
        self._unlogged: list[Figures] = []

    def resume(self) -> bool:
        """Continues from the newest whole checkpoint of the run folder; False where there is none."""
        step = load_checkpoint(
            self.run_folder, self.parallel, self.optimizer, self.average, self.config, self.source_facts, self.tell
        )
        if step is None:
            return False
        self.step = step
        return True

    def tell(self, text: str) -> None:
        """A line for the person who watches, as it is: file names may hold what rich takes for markup."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def run(self, profile: int = 0) -> None:
        """Trains to the end (or for max_seconds), then saves. SIGINT (Ctrl-C) and SIGTERM end it after the step they
        fall into, saved too, with Stopped.

        profile: of so many steps rank 0 writes a profile. Raises UserError where fewer are left (`profiled_steps`).
        """
        config, device = self.config, torch.device(self.config.device)
        if self.step >= config.steps:
            self.tell(f"{self.run_folder} is finished: all {config.steps} steps are done")
            return
        if config.precision == "bf16" and not multiplies_bf16(device):
            self.tell("precision: this processor has no AVX-512, so bf16 takes many times as long as precision=fp32")
        if self.ranks.first:
            atomic_write_text(self.run_folder / "config.yaml", to_yaml(config))
        began = time.monotonic()
        per_step = config.accumulate
        with (
            self._open_log() as log,
            TrainProgress(config, self.console) as bar,
            self._profiled(profile) as profile_step,
            StopRequest(silent=not self.ranks.first) as stop,
            closing(self.saver),
            closing(self.data.between(self.step * per_step, config.steps * per_step)) as micro_batches,
        ):
            self._expect("the first step", longer=True)  # for which the device and the data get going
            meter = Meter(lambda: self.data.seconds_waited, device)
            while self.step < config.steps:
                with meter.clock.part("data"):
                    rows = list(islice(micro_batches, per_step))
                self._do_step(rows, meter)
                profile_step()
                bar.update(self.step)
                # Asked once: a signal that comes later waits for the next step. What one rank is told, all do.
                with meter.clock.host_part("communication"):
                    asked = self.ranks.all_of((0 < config.max_seconds <= time.monotonic() - began, stop.signal))
                stop.signal = next((signal for _, signal in asked if signal is not None), None)
                done = any(late for late, _ in asked) or self.step == config.steps
                stopping = bool(stop)
                logging = self.step % config.log_every == 0 or done
                validating = self.step % config.validate_every == 0 or done
                saving = self.step % config.checkpoint_every == 0 or done or stopping
                if logging or validating or saving:
                    self._fetch_figures()
                if logging:
                    self._log(log, bar, meter)
                if validating or saving:
                    self._expect("validation or saving", longer=True)
                with meter.paused():
                    if validating:
                        self._validate(log)
                    if saving:
                        path = self._save(log, to_the_end=done or stopping)
                if done:
                    self._tell_faults()
                    break
                if stopping:
                    self.tell(f"stopped at step {self.step}; saved {path}")
                    raise Stopped
                self._expect(f"step {self.step + 1}")

    def _expect(self, what: str, *, longer: bool = False) -> None:
        """What comes next, which has to end before the time is up that the configuration has for it."""
        self.ranks.expect(what, self.config.pause_timeout if longer else self.config.step_timeout)

    def _open_log(self) -> AbstractContextManager[RunLog | None]:
        """Rank 0 writes it."""
        if not self.ranks.first:
            return nullcontext()
        return RunLog(self.run_folder, self.step, self.config.wandb, dataclasses.asdict(self.config))

    def _profiled(self, steps: int) -> AbstractContextManager[Callable[[], object]]:
        """Gives what is to be called after every step."""
        if not steps or not self.ranks.first:
            return nullcontext(lambda: None)
        left = self.config.steps - self.step
        return profiled_steps(steps, self.run_folder, self.step, left, torch.device(self.config.device), self.tell)

    def _save(self, log: RunLog | None, *, to_the_end: bool) -> Path:
        """Begins to save, or saves `to_the_end`, and logs for how long no step was done."""
        began = time.monotonic()
        path = self.saver.start(self.step)
        if to_the_end:
            self.saver.wait()
        if log is not None:
            log.scalars("save", {"seconds": time.monotonic() - began}, self.step)
        return path

    def _do_step(self, micro_batches: list[B], meter: Meter) -> None:
        with meter.clock.host_part("communication"):
            facts = Facts.of(self.ranks.all_of(Facts.of(micro_batches)))
        figures = train_step(
            self.parallel, self.optimizer, self.loss, micro_batches, facts.counts, self.step, self.config, meter.clock
        )
        if self.average is not None:
            self.average.update(figures["finite"])
        self.step += 1
        self._figures.add(self.step, figures)
        meter.add(facts.tally)
        for name, drawn in facts.drawn.items():
            self._faults[name].add(drawn)

    def _fetch_figures(self) -> None:
        """Waits for the device: the only place of a step that does."""
        steps = self._figures.take()
        self.history += [figures["loss"] for figures in steps]
        self._unlogged += steps

    def _log(self, log: RunLog | None, bar: TrainProgress, meter: Meter) -> None:
        """Means over the steps since the last time; the learning rate is that of the last step."""
        figures = mean_figures(self._unlogged)
        self._unlogged = []
        figures["lr"] = learning_rate(self.config.optimizer, self.step - 1, self.config.steps)
        figures.update(meter.take())
        figures["memory_gib"] = peak_memory(torch.device(self.config.device))
        if self._figures.skipped:
            figures["skipped_steps"] = self._figures.skipped
        if log is not None:
            log.scalars("train", figures, self.step)
        bar.report(self.step, figures)

    def _tell_faults(self) -> None:
        for name, faults in self._faults.items():
            if table := faults.table():
                self.tell(f"{name}: samples that were skipped\n{table}")

    def _validate(self, log: RunLog | None) -> None:
        """All ranks call this together; rank 0 validates."""
        averaged = self.average is not None and self.config.validate_ema
        with self.average.in_place() if averaged else nullcontext(), self.parallel.whole() as model:  # type: ignore[union-attr]
            if model is None or log is None:
                return
            model.eval()
            with torch.no_grad():
                scalars, pictures = self.validate(model, self.step)
            self.model.train()
        log.scalars("val", scalars, self.step)
        line = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        if line:
            self.console.print(f"step {self.step}: validation  {line}")
        for name, picture in pictures.items():
            log.picture(name, picture, self.step)


def train(
    build: Callable[[], TrainLoop[B]],
    run: Path,
    *,
    resume: bool = False,
    ranks: Ranks | None = None,
    profile: int = 0,
) -> TrainLoop[B]:
    """Runs the loop that `build` makes, from its beginning or on from its newest checkpoint, and returns it finished.

    Meanwhile the run folder belongs to this process, or to rank 0 of several that train together. profile: as
    `TrainLoop.run`.

    Raises:
        RunInUseError: the folder belongs to another process.
        UserError: it holds checkpoints and is not to be resumed, or holds none and is.
        OutputError: the disk is full, or refuses for another reason; the message names the last whole checkpoint.
        NotFiniteError: losses, gradients or a drawn picture became NaN or infinite; the message names it likewise.
        DataError: data cannot be read, or a process that reads them has died; likewise.
        OutOfMemoryError: memory does not suffice; the message says what needs less, and names the checkpoint likewise.
    """
    ranks = ranks or Ranks()
    with _own_folder(run, resume) if ranks.first else nullcontext(Start()) as start:
        going_on = ranks.from_first(start.going_on)
        loop = build()
        for line in start.news:
            loop.tell(f"{run}: {line}")
        if going_on:
            loop.resume()
        loop.model.train()
        try:
            with explained_lack_of_memory(run, loop.config, ranks):
                loop.run(profile)
        except (OutputError, NotFiniteError, DataError, OutOfMemoryError) as error:
            whole = checkpoints(run)
            last = f"the last whole checkpoint is {whole[-1]}" if whole else "there is no checkpoint of this run yet"
            raise type(error)(f"{error}; {last}", *error.args[1:]) from error
    return loop


@dataclasses.dataclass
class Start:
    """How a training begins: whether from a checkpoint, and what there is to be said about that."""

    going_on: bool = False
    news: list[str] = dataclasses.field(default_factory=list)


@contextmanager
def _own_folder(run: Path, resume: bool) -> Iterator[Start]:
    """Holds the lock of a run folder that can be used, as `run_lock`."""
    if resume and not checkpoints(run):
        raise UserError(f"--resume: {run} has no checkpoint")
    with run_lock(run) as left_behind:
        there, restart = bool(checkpoints(run)), is_restart(run)
        if there and not (resume or restart):
            raise UserError(f"{run} holds a run already; add --resume to continue it, or choose another folder (--run)")
        sign_for_restarts(run)
        start = Start(there)
        if left_behind is not None:
            start.news.append(f"the lock of {left_behind}, which has ended, is taken over")
        if restart:
            start.news.append(
                "torchrun has started this job again; it goes on from "
                + ("its newest whole checkpoint" if there else "the beginning, as there is no checkpoint yet")
            )
        yield start
