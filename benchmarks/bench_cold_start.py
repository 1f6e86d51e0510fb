"""How long `showo generate` takes from nothing to a PNG with the bundled model, and where the time goes.

    python -m benchmarks.bench_cold_start [--rounds 5]

Each round starts two new interpreters: the command itself, and one that times its parts. Printed as medians over the
rounds: seconds on the clock, and seconds of processors, which other programs on the machine disturb far less.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

PARTS = """
import json, sys, time
from showo.commands import common
common.spin_briefly()
parts, began = {}, time.perf_counter()
def part(name):
    global began
    parts[name] = time.perf_counter() - began
    began = time.perf_counter()
import torch
part("import torch")
from showo.engine.pipeline import ShowoPipeline
part("import showo")
pipe = ShowoPipeline.from_pretrained()
part("load the weights")
pictures = pipe.generate(["red apple"])
part("draw")
pictures[0].save(sys.argv[1])
part("write")
print(json.dumps(parts))
"""


def run(*arguments: str) -> tuple[float, float, str]:
    """Seconds on the clock, seconds of processors, and what a new interpreter prints."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    whole, parts = [], []
    with tempfile.TemporaryDirectory() as folder:
        picture = str(Path(folder) / "picture.png")
        for _ in range(options.rounds):
            whole.append(run("-m", "showo", "generate", "red apple", "-o", picture)[:2])
            parts.append(json.loads(run("-c", PARTS, picture)[2]))
    print(f"showo generate: {median(w for w, _ in whole):.2f} s, {median(c for _, c in whole):.2f} s of processors")
    for name in parts[0]:
        print(f"  {name}: {median(each[name] for each in parts):.2f} s")


if __name__ == "__main__":
    main()
