"""Every operator against its peers: tables, CSV rows and a picture for each.

    python -m benchmarks.all [--device cuda] [--rounds 15] [--out out/benchmarks] [--csv] [--only rope_qkv ...]

On a GPU the shapes are those of Show-o on an A100, timed by CUDA events with inputs that rotate, beside the roofline of
the device; on a CPU they are small. docs/performance.md says what to expect. flash-attn takes part if it is installed.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks import harness
from benchmarks.plot import plot
from showo_ext.ops import OPERATORS

FAMILIES: dict[str, harness.Cases] = {
    rooms.family: importlib.import_module(f"benchmarks.bench_{rooms.family}").cases for rooms in OPERATORS.values()
}


def main(argv: list[str] | None = None) -> None:
    parser = harness.arguments(__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="folder for the pictures")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="these operators alone")
    options = parser.parse_args(argv)
    for name in options.only:
        rows = harness.run(FAMILIES[name], options)
        print(f"{plot(rows, options.out / f'{name}.png')}\n")


if __name__ == "__main__":
    main()
