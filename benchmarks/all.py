"""Every operator against its peers: tables, CSV rows and a picture for each.

    python -m benchmarks.all [--device cuda] [--rounds 15] [--out out/benchmarks] [--csv] [--only rope_qkv ...]

On a GPU the shapes are those of Show-o on an A100, timed by CUDA events with inputs that rotate, beside the roofline of
the device; on a CPU they are small. docs/performance.md says what to expect. flash-attn takes part if it is installed.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import bench_codebook, bench_omni_attention, bench_resample, bench_rope_qkv, harness
from benchmarks.plot import plot

OPERATORS: dict[str, harness.Cases] = {
    "omni_attention": bench_omni_attention.cases,
    "rope_qkv": bench_rope_qkv.cases,
    "codebook": bench_codebook.cases,
    "resample": bench_resample.cases,
}


def main(argv: list[str] | None = None) -> None:
    parser = harness.arguments(__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="folder for the pictures")
    parser.add_argument("--only", nargs="+", choices=OPERATORS, default=list(OPERATORS), help="these operators alone")
    options = parser.parse_args(argv)
    for name in options.only:
        rows = harness.run(OPERATORS[name], options)
        print(f"{plot(rows, options.out / f'{name}.png')}\n")


if __name__ == "__main__":
    main()
