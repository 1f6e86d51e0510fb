"""What a person sees while a model trains: a live bar on a terminal, a line every `log_every` steps elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from showo.train.config import LoopConfig
from showo.train.meter import SECONDS

_ON_BAR = ("loss", "lr", "images_per_second", "tokens_per_second")  # which have room beside a bar


class TrainProgress:
    """Context manager; `update` after every step, `report` when the step's figures are logged."""

    def __init__(self, config: LoopConfig, console: Console) -> None:
        self.config, self.console = config, console
        columns = (
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("train", total=config.steps, text="")

    def __enter__(self) -> TrainProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        beside_bar = self.console.is_terminal
        shown = [name for name in scalars if (name in _ON_BAR if beside_bar else not name.startswith(SECONDS))]
        figures = "  ".join(f"{name.replace('_per_second', '/s')} {scalars[name]:.4g}" for name in shown)
        if beside_bar:
            self.bar.update(self.task, text=figures)
        else:
            self.console.print(f"step {step}/{self.config.steps}  {figures}", soft_wrap=True)
