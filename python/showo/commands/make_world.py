"""The command `showo make-world`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from showo.commands.output import check_folder, say


def make_world(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not hold anything yet.")],
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same world.")] = 0,
    scenes: Annotated[int, typer.Option("--scenes", help="Captioned scenes of the training part.")] = 20_000,
    emoji: Annotated[float, typer.Option("--emoji", help="Share of objects that are emoji, 0 to 0.5.")] = 0.0,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that draw; 0 draws in this one.")] = 0,
) -> None:
    """Write a small world to learn in: scenes of shapes with captions, questions, steps and text."""
    from rich.console import Console

    from showo.data.world.world import WORLD_FILE, World
    from showo.data.world.write import write_world
    from showo.errors import OutputError
    from showo.progress import counting_bar

    world = World(seed, scenes, emoji)
    check_folder("OUT", out)
    if (out / WORLD_FILE).exists():
        there = World.load(out)
        if there != world:
            raise OutputError(
                f"{out} holds a world of --seed {there.seed} --scenes {there.scenes} --emoji {there.emoji}; choose "
                "another folder, or delete it first"
            )
        say(f"{out}: this world is there already")
        return
    with counting_bar(Console(stderr=True)) as progress:
        task = progress.add_task("make-world", total=world.size)
        write_world(world, out, lambda: progress.advance(task), workers)
    say(f"{out}: {world.scenes} scenes, seed {world.seed}")
