"""The whole evaluation of a model on a world."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from showo.engine.pipeline import ShowoPipeline
from showo.evaluate.world.plan import plan
from showo.evaluate.world.report import Cases, Report
from showo.evaluate.world.settings import Settings
from showo.progress import counting_bar


def evaluate_world(pipe: ShowoPipeline, folder: Path, settings: Settings, model: str, console: Console) -> Report:
    """Judges `pipe`, which the report calls `model`, on the world in a folder; a bar on a console that is a terminal.

    Raises UserError where there is no world, or none that fits the model, before any work.
    """
    tasks = plan(pipe, folder, settings)
    cases: Cases = {}
    with counting_bar(console, transient=True) as progress:
        bar = progress.add_task("", total=sum(task.count for task in tasks))
        for task in tasks:
            progress.update(bar, description=f"{task.part}, {task.column}")
            cases.setdefault(task.part, {})[task.column] = task.run(lambda done: progress.advance(bar, done))
    return Report(model, str(folder), settings, cases)
