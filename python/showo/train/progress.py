"""What a person sees while a model trains: a live bar on a terminal, a line every `log_every` steps elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from showo.train.config import LoopConfig


class TrainProgress:
    """Context manager; `update` after every step, `report` when the step's figures are logged."""

    def __init__(self, config: LoopConfig, units: Mapping[str, float], console: Console) -> None:
        self.config, self.units, self.console = config, units, console
        columns = (
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("train", total=config.steps, text="")
        self.last: float | None = None
        self.seconds = 0.0  # running mean of a step's time

    def __enter__(self) -> TrainProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, step: int, loss: float, lr: float) -> dict[str, float]:
        """Returns the processing rates, {"images_per_second": ...}."""
        now = time.monotonic()
        if self.last is not None:
            took = now - self.last
            self.seconds = took if self.seconds == 0 else 0.9 * self.seconds + 0.1 * took
        self.last = now
        rates = {f"{unit}_per_second": n / self.seconds for unit, n in self.units.items()} if self.seconds else {}
        text = f"loss {loss:.3f}  lr {lr:.1e}  " + "  ".join(f"{n.split('_')[0]}/s {v:.0f}" for n, v in rates.items())
        self.bar.update(self.task, completed=step, text=text)
        return rates

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        if not self.console.is_terminal:
            figures = "  ".join(f"{name.replace('_per_second', '/s')} {value:.4g}" for name, value in scalars.items())
            self.console.print(f"step {step}/{self.config.steps}  {figures}", soft_wrap=True)
