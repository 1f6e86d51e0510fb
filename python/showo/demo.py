"""`make demo`: the main jobs with the bundled checkpoint, in a few minutes on two CPU cores.

Draws a sheet of emoji and scenes, on which combinations that no training step contained are marked; describes two of
the bundled pictures; asks about two scenes; and trains a fresh small model for a minute.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from showo.data.sources import read_pictures
from showo.data.world.draw import draw_scene
from showo.data.world.objects import Object
from showo.data.world.scene import Scene
from showo.devices import multiplies_bf16
from showo.pictures import open_image, save_image
from showo.sheets import sheet
from showo.train.config import ShowoTraining, load_config
from showo.train.showo import train_showo

OUT = Path("out")
TRAIN_SECONDS = 60
EMOJI = ("red apple", "soccer ball", "grinning face", "pizza", "rocket", "dog face", "umbrella", "sunflower")
SEEN = ("a red star", "three green squares", "a yellow ring above a red circle", "an orange heart and a pink diamond")
# Of the world of seed 0, which the bundled model learned: colours of shapes, pairs and counts that it was never shown.
HELD_OUT = ("a black star", "two purple hearts", "an orange circle in the top right", "a green ring and a red star")
QUESTIONS = (
    (Scene((Object("star", "red", 16, 20), Object("ring", "blue", 44, 40))), "what colour is the ring?"),
    (Scene((Object("square", "pink", 20, 44), Object("cross", "green", 44, 16))), "what colour is the square?"),
)


def main() -> None:
    console = Console()
    OUT.mkdir(exist_ok=True)
    console.rule("Generate: text to image; the last four are combinations that no training step contained")
    prompts = [*EMOJI, *SEEN, *HELD_OUT]
    showo(["generate", *prompts, "--output-dir", str(OUT / "drawn")])
    pictures = [open_image(OUT / "drawn" / f"{number}.png") for number in range(len(prompts))]
    captions = [f"(held out) {prompt}" if prompt in HELD_OUT else prompt for prompt in prompts]
    save_image(sheet(pictures, captions, scale=2), OUT / "generated.png")

    console.rule("Describe: image to text")
    samples = {sample.caption: sample for sample in read_pictures("bundled:emoji/train-*.tar")}
    for caption in ("pizza", "rocket"):
        path = OUT / f"{caption}.png"
        save_image(samples[caption].picture.open(), path)
        showo(["describe", str(path)])

    console.rule("Ask: a picture and a question to text; no training step contained a pink square")
    for number, (scene, question) in enumerate(QUESTIONS):
        path = OUT / f"scene-{number}.png"
        save_image(draw_scene(scene), path)
        showo(["describe", str(path), "--question", question])

    console.rule(f"Train from scratch for {TRAIN_SECONDS} seconds")
    settings = load_config(ShowoTraining, "tiny", training_options())
    run = free_folder(OUT / "demo-run")
    loop = train_showo(settings, run, console=console)
    first, last = mean(loop.history[:3]), mean(loop.history[-3:])
    console.print(f"loss {first:.2f} -> {last:.2f} in {len(loop.history)} steps")
    if last >= first:
        raise SystemExit("the loss did not fall")
    console.rule("Pictures")
    console.print(f"{OUT / 'generated.png'}  {OUT / 'pizza.png'}  {OUT / 'scene-1.png'}  {run / 'pictures'}")


def training_options() -> list[str]:
    """A minute of the tiny configuration, in numbers that this processor can multiply."""
    options = [f"max_seconds={TRAIN_SECONDS}", "optimizer.warmup_steps=10", "log_every=5"]
    return options if multiplies_bf16("cpu") else [*options, "precision=fp32"]


def showo(arguments: list[str]) -> None:
    """Runs the command line as a user would, and shows it."""
    print("$ showo", shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "showo.cli", *arguments], check=True)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def free_folder(path: Path) -> Path:
    """`path`, or `path-2`, ...: the first that does not exist."""
    candidates = (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in range(1, 10_000))
    return next(folder for folder in candidates if not folder.exists())


if __name__ == "__main__":
    main()
