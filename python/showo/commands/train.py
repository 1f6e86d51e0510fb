"""The commands `showo train-tokenizer`, `showo train-vision-tower` and `showo train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from showo.commands import common
from showo.commands.output import check_folder, say

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. steps=1000 optimizer.lr=3e-4")
]
# torchrun takes --run for an option of its own, even behind the name of the program.
Run = Annotated[Path, typer.Option("--run", "--run-folder", help="Folder for checkpoints, logs and pictures.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint of the run folder.")]


def train_tokenizer(
    overrides: Overrides = None,
    config: Annotated[str, typer.Option("--config", help="YAML file or bundled name.")] = "tiny-image-tokenizer",
    run: Run = Path("runs/image-tokenizer"),
    resume: Resume = False,
    threads: common.Threads = None,
) -> None:
    """Train the image tokenizer (LFQ autoencoder)."""
    from showo.train.config import TokenizerTraining, load_config
    from showo.train.image_tokenizer import train_tokenizer as run_training

    settings = load_config(TokenizerTraining, config, overrides or [])
    check_folder("--run", run)
    common.begin(threads)
    run_training(settings, run, resume=resume)


def train_vision_tower(
    overrides: Overrides = None,
    config: Annotated[str, typer.Option("--config", help="YAML file or bundled name.")] = "tiny-vision-tower",
    run: Run = Path("runs/vision-tower"),
    resume: Resume = False,
    threads: common.Threads = None,
) -> None:
    """Train a small vision tower (CLIP) on pictures with captions, for `showo train` to see with."""
    from showo.train.config import VisionTowerTraining, load_config
    from showo.train.vision_tower import train_vision_tower as run_training

    settings = load_config(VisionTowerTraining, config, overrides or [])
    check_folder("--run", run)
    common.begin(threads)
    run_training(settings, run, resume=resume)


def train(
    overrides: Overrides = None,
    config: Annotated[str, typer.Option("--config", help="YAML file or bundled name.")] = "tiny",
    run: Run = Path("runs/showo"),
    resume: Resume = False,
    threads: common.Threads = None,
    profile: Annotated[
        int | None,
        typer.Option("--profile", min=1, help="Write a profile of so many steps, after the first ones, to the run."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Open the data, print what a step costs and a row of each stream; train nothing."
        ),
    ] = False,
) -> None:
    """Train Show-o: streams of text to image, text, image to text and more, mixed in every step."""

    from showo.train.config import ShowoTraining, load_config

    settings = load_config(ShowoTraining, config, overrides or [])
    if dry_run:
        from showo.train.dry_run import DryRun
        from showo.train.dry_run_report import report

        common.begin(threads)
        say("\n\n".join(report(DryRun(settings))))
        return

    from showo.train.showo import train_showo as run_training

    check_folder("--run", run)
    common.begin(threads)
    run_training(settings, run, resume=resume, profile=profile or 0)
