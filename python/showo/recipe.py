"""`make recipe`: the whole tiny recipe, from nothing to a model that is judged on what it was never shown.

    python -m showo.recipe [--scenes 120000] [--cases 800] [--device cpu] [[CONFIG:]KEY=VALUE]...

A world is made, three stages of the image tokenizer and the text tokenizer are trained on it, then every tiny stage of
Show-o and the variant with CLIP-ViT, and `showo evaluate world --check` prints the table. All is written under runs/ of
the folder that the command is started in. Each step is a command that can be given by hand, and is shown before it
runs. What is finished is left alone, what had begun goes on: start the recipe again after any interruption.
KEY=VALUE goes to every training, such as workers=4 or precision=fp32, and CONFIG:KEY=VALUE to those whose configuration
has that name, such as tiny-mixed:steps=9000, or fits that pattern, such as 'tiny-image-tokenizer*:batch=32'.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from showo.data.world.world import MAX_SCENES
from showo.train.checkpoint import checkpoints, step_name
from showo.train.config import LoopConfig, ShowoTraining, TokenizerTraining, VisionTowerTraining, load_config

RUNS = Path("runs")
WORLD, TEXT_TOKENIZER = RUNS / "world", RUNS / "text-tokenizer"  # where configs/shared/world.yaml looks for them


@dataclass(frozen=True)
class Training:
    """A training of the recipe. The runs are those that the bundled configurations name in `init_from`."""

    command: str
    config: str
    run: str
    kind: type[LoopConfig]

    def arguments(self, overrides: Sequence[str]) -> list[str] | None:
        """Those of `showo`, or None where all steps are done already."""
        overrides = [key for fits, key in map(_addressed, overrides) if fnmatchcase(self.config, fits)]
        run = RUNS / self.run
        there = checkpoints(run)
        if there and there[-1].name == step_name(load_config(self.kind, self.config, overrides).steps):
            return None
        resume = ["--resume"] if there else []
        return [self.command, "--config", self.config, "--run", str(run), *resume, *overrides]


TRAININGS = (
    Training("train-tokenizer", "tiny-image-tokenizer", "image-tokenizer", TokenizerTraining),
    Training("train-tokenizer", "tiny-image-tokenizer-world", "image-tokenizer-world", TokenizerTraining),
    Training("train-tokenizer", "tiny-image-tokenizer-decoder", "image-tokenizer-decoder", TokenizerTraining),
    *(
        Training("train", f"tiny-{stage}", f"tiny-{stage}", ShowoTraining)
        for stage in ("stage1", "stage2", "stage3", "tuning1", "tuning2", "mixed")
    ),
    Training("train-vision-tower", "tiny-vision-tower", "vision-tower", VisionTowerTraining),
    Training("train", "tiny-clip-vit", "tiny-clip-vit", ShowoTraining),
)


JUDGED = RUNS / "tiny-mixed"


def _addressed(override: str) -> tuple[str, str]:
    """Which configurations an override is for, and the override itself."""
    fits, colon, key = override.partition(":")
    return (fits, key) if colon and "=" not in fits else ("*", override)


def commands(scenes: int, cases: int, device: str, overrides: Sequence[str]) -> Iterator[list[str]]:
    """What is still to be done, as arguments of Python, in order. cases: that the model is judged by, of every part.

    Each looks at what is there when it is asked for, so the command before must have ended.
    """
    showo = ["-m", "showo.cli"]
    yield [*showo, "make-world", str(WORLD), "--scenes", str(scenes), "--workers", str(os.cpu_count() or 1)]
    if not (TEXT_TOKENIZER / "tokenizer.json").exists():
        yield ["-m", "showo.data.make_text_tokenizer", str(TEXT_TOKENIZER), "--world", str(WORLD)]
    for training in TRAININGS:
        arguments = training.arguments([f"device={device}", *overrides])
        if arguments is not None:
            yield [*showo, *arguments]
    judged = ["--model", str(checkpoints(JUDGED)[-1]), "--device", device, "--count", str(cases)]
    written = ["--json", str(RUNS / "report.json"), "--sheet", str(RUNS / "report.png")]
    yield [*showo, "evaluate", "world", "--world", str(WORLD), *judged, "--check", *written]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=120_000, help=f"captioned scenes of the world, to {MAX_SCENES}")
    parser.add_argument("--cases", type=int, default=800, help="of every part that the model is judged by, at most")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("overrides", nargs="*", metavar="[CONFIG:]KEY=VALUE", help="for every training, or for one")
    options = parser.parse_args(argv)
    for command in commands(options.scenes, options.cases, options.device, options.overrides):
        print("$ python", shlex.join(command), flush=True)
        with _leaving_interrupts_to_commands():
            code = subprocess.run([sys.executable, *command], check=False).returncode
        if code or _was_stopped(command, options.overrides):
            print("showo: the recipe ends here; started again, it goes on with this command", file=sys.stderr)
            raise SystemExit(code if code >= 0 else 128 - code)


@contextmanager
def _leaving_interrupts_to_commands() -> Iterator[None]:
    """A Ctrl-C reaches a command too, which may have something to save, and then ends."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _was_stopped(command: Sequence[str], overrides: Sequence[str]) -> bool:
    """Whether a command that has ended well is a training with steps left, which a signal has asked to end."""
    return any(each.config in command and each.arguments(overrides) is not None for each in TRAININGS)


if __name__ == "__main__":
    main()
