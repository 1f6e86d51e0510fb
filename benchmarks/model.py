"""Predicts the operators' times on an A100 from what the emulator counts: the tables of docs/performance.md.

    make emulator && python -m benchmarks.model [--write] [--only omni_attention ...]

Runs our candidate of every benchmark at the size of an A100 on the emulated device (some minutes), and prints: the
floor, which the operation's FLOPs and bytes set; the best, if all counted work overlapped perfectly, and what binds
it; the prediction. With --write the tables replace those of the page.
"""

from __future__ import annotations

import argparse
import os
import re
from collections import defaultdict
from pathlib import Path

import torch

from benchmarks.a100 import Prediction, predict
from benchmarks.all import FAMILIES as ALL_FAMILIES
from benchmarks.harness import OURS, Case
from benchmarks.roofline import A100_80GB
from showo_ext.ops import OPERATORS
from tests.ptx.device import Counters
from tests.ptx.emulated import emulated_device
from tests.ptx.profile import readable

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
LEFT_OUT = re.compile(r"top_|half known|\[B, S, H, D\]")  # variants whose cost depends on values, or is the same
NATIVE = {rooms.family for rooms in OPERATORS.values() if rooms.cuda == "native"}  # others have no kernel to count
FAMILIES = {name: cases for name, cases in ALL_FAMILIES.items() if name in NATIVE}

Launch = tuple[Counters, Prediction]


def launches(case: Case) -> list[Launch]:
    candidate = case.candidates[OURS]
    assert not isinstance(candidate, str)
    arguments = case.inputs(0)
    with emulated_device() as device:
        candidate(*arguments)
        return [(record, predict(record)) for record in device.records()]


def microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f}"


def row(case: Case, records: list[Launch]) -> str:
    predictions = [prediction for _, prediction in records]
    floor = case.work.floor(A100_80GB)
    seconds = sum(p.seconds for p in predictions)
    best = sum(p.best for p in predictions)
    longest = max(predictions, key=lambda p: p.best)
    cells = [
        case.name,
        f"{case.work.flops / 1e9:,.1f}",
        f"{case.work.bytes / 2**20:,.1f}",
        microseconds(floor),
        microseconds(best),
        longest.binds,
        f"**{microseconds(seconds)}**",
        f"{floor / seconds:.0%}",
        str(len(records)),
    ]
    return f"| {' | '.join(cells)} |"


TITLES = "| case | GFLOP | MiB | floor us | best us | binds | **predicted us** | roofline | launches |"
KERNEL_TITLES = (
    "| kernel | warp-instr. | mma | wavefronts | sectors | tensor us | issue us | shared us | memory us | L2 us |"
)


def table(titles: str, rows: list[str]) -> str:
    return "\n".join([titles, "|---" + "|---:" * (titles.count("|") - 2) + "|", *rows])


def kernel_rows(records: list[Launch]) -> list[str]:
    """One row a kernel of the case, its launches summed."""
    sums: dict[str, list[Launch]] = defaultdict(list)
    for record, prediction in records:
        sums[readable(record.kernel).split("<")[0]].append((record, prediction))
    rows = []
    for name, parts in sums.items():
        sectors, least = (sum(c.global_sectors[i] for c, _ in parts) for i in (0, 1))
        cells = [
            f"`{name}`",
            f"{sum(c.warp_instructions for c, _ in parts):,}",
            f"{sum(c.warps('mma') for c, _ in parts):,}",
            f"{sum(c.shared_wavefronts[0] for c, _ in parts):,}",
            f"{sectors:,} ({sectors / max(least, 1):.2f}x)",
            *(microseconds(sum(p.terms[t] for _, p in parts)) for t in ("tensor", "issue", "shared", "memory", "L2")),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def tables_of(operator: str) -> str:
    summary, kernels = [], []
    for case in FAMILIES[operator](torch.device("cpu"), True):
        if LEFT_OUT.search(case.name):
            continue
        records = launches(case)
        summary.append(row(case, records))
        kernels.append(f"{case.name}:\n\n{table(KERNEL_TITLES, kernel_rows(records))}")
        print(summary[-1], flush=True)
    details = "\n\n".join(kernels)
    fold = "<details><summary>What each kernel was counted to do</summary>"
    return f"{table(TITLES, summary)}\n\n{fold}\n\n{details}\n\n</details>"


def replace(page: str, operator: str, tables: str) -> str:
    """The page with the tables of one operator, which lie between two comments."""
    begin, end = f"<!-- model: {operator} -->", f"<!-- end: {operator} -->"
    if begin not in page or end not in page:
        raise ValueError(f"{PAGE}: has no '{begin}' ... '{end}'")
    head, rest = page.split(begin, 1)
    return f"{head}{begin}\n{tables}\n{end}{rest.split(end, 1)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="these operators alone")
    parser.add_argument("--write", action="store_true", help=f"update {PAGE.relative_to(PAGE.parents[1])}")
    options = parser.parse_args()
    for operator in options.only:
        tables = tables_of(operator)
        if options.write:
            draft = PAGE.with_name(PAGE.name + ".part")
            draft.write_text(replace(PAGE.read_text(), operator, tables))
            os.replace(draft, PAGE)


if __name__ == "__main__":
    main()
