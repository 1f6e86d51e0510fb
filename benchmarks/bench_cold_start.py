"""How long `showo generate` takes from nothing to a PNG with the bundled model, beside `import torch` alone.

    python -m benchmarks.bench_cold_start [--rounds 5] [--threads 2]

Each round starts new interpreters: `import torch`, the command, its help, and one that times the command's parts.
Printed are medians over the rounds: seconds of processors, which other programs on the machine disturb far less than
seconds on the clock, how many times `import torch` that is (machines differ, the ratio less so), and seconds on the
clock. A first round, which counts for nothing, leaves compiled modules behind, as pip does where it installs them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

TORCH = "import torch alone"
PARTS = """
import json, sys, time
parts, began = {}, time.process_time()
def part(name):
    global began
    parts[name] = time.process_time() - began
    began = time.process_time()
from showo import cli
from showo.commands import common
part("import the command line")
common.load_torch()
part("import torch")
from showo.engine.pipeline import ShowoPipeline
part("import showo")
common.set_threads(int(sys.argv[2]))
pipe = ShowoPipeline.from_pretrained()
part("load the weights")
pipe.generate(["red apple"], steps=1)
part("draw a picture in one step")
pictures = pipe.generate(["red apple"])
part("draw a picture")
pictures[0].save(sys.argv[1])
part("write")
print(json.dumps(parts))
"""


def run(*arguments: str) -> tuple[float, float, str]:
    """Seconds on the clock, seconds of processors, and what a new interpreter prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, env=environment)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    threads = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        picture = str(Path(folder) / "picture.png")
        commands = {
            TORCH: ("-c", "import torch"),
            "showo generate": ("-m", "showo", "generate", "red apple", "-o", picture, "--threads", threads),
            "showo generate --help": ("-m", "showo", "generate", "--help"),
            "showo --help": ("-m", "showo", "--help"),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        parts = []
        for number in range(-1, options.rounds):
            for name, command in commands.items():
                seconds = run(*command)[:2]
                if number >= 0:
                    taken[name].append(seconds)
            told = json.loads(run("-c", PARTS, picture, threads)[2])
            if number >= 0:
                parts.append(told)
    floor = median(cpu for _, cpu in taken[TORCH])
    for name, seconds in taken.items():
        wall, cpu = (median(column) for column in zip(*seconds, strict=True))
        print(f"{name}: {cpu:.2f} s of processors, {cpu / floor:.2f} times import torch; {wall:.2f} s on the clock")
    print("Parts of showo generate, seconds of processors:")
    for name in parts[0]:
        print(f"  {name}: {median(each[name] for each in parts):.2f}")


if __name__ == "__main__":
    main()
