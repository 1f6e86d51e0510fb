"""Every operator, and what other libraries' users call, against its peers: tables, CSV rows and a picture for each.

    python -m benchmarks.all [--device cuda] [--rounds 15] [--out out/benchmarks] [--csv] [--only rope_qkv ...]

On a GPU the shapes are those of Show-o on an A100, timed by CUDA events with inputs that rotate, beside the roofline of
the device; on a CPU they are small. docs/performance.md says what to expect. flash-attn takes part if it is installed;
`hf` needs transformers.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks import harness
from benchmarks.plot import plot
from showo_ext.ops import OPERATORS

INTEGRATIONS = ("flash_attn", "hf")


def _cases(name: str) -> harness.Cases:
    """Those of a benchmark, whose module is imported when they are wanted: other libraries take seconds to import."""
    return lambda device, a100: importlib.import_module(f"benchmarks.bench_{name}").cases(device, a100)


NAMES = [*(rooms.family for rooms in OPERATORS.values()), *INTEGRATIONS]
FAMILIES: dict[str, harness.Cases] = {name: _cases(name) for name in NAMES}


def main(argv: list[str] | None = None) -> None:
    parser = harness.arguments(__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="folder for the pictures")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="these alone")
    options = parser.parse_args(argv)
    for name in options.only:
        try:
            rows = harness.run(FAMILIES[name], options)
        except ModuleNotFoundError as error:
            print(f"no {name}: {error.name} is not installed\n")
            continue
        print(f"{plot(rows, options.out / f'{name}.png')}\n")


if __name__ == "__main__":
    main()
