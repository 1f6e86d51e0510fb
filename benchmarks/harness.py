"""Timing that survives a busy machine: candidates take turns, and what is reported are ratios within one turn.

    rows = measure("omni_attention", "forward B2 H32", {"showo_ext": ours, "sdpa": peer}, baseline="showo_ext")
    report(rows)                       # a table on the terminal
    write_csv(rows)                    # appended to benchmarks/results/<op>.csv

Every round calls each candidate once, in an order that rotates; `ratio` is the median over rounds of
(candidate's time / baseline's time in the same round), so a slow spell of the machine hits both.
"""

from __future__ import annotations

import csv
import datetime
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One candidate in one setting; times in milliseconds."""

    op: str
    case: str
    candidate: str
    min_ms: float
    p20_ms: float
    median_ms: float
    p80_ms: float
    ratio: float  # median over rounds of time / baseline's time
    min_ratio: float  # ratio of the fastest runs
    rounds: int
    threads: int
    load: float  # of the machine before the run, per core: above 1 only ratios mean anything
    device: str
    torch: str
    commit: str
    date: str


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call; on a GPU until its work is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    op: str,
    case: str,
    candidates: dict[str, Callable[[], object]],
    *,
    baseline: str,
    rounds: int = 15,
    warmup: int = 2,
) -> list[Row]:
    """Times the candidates in turns. `baseline` names the one that ratios refer to.

    Every timed call follows an untimed one of the same candidate: else it would pay for what the previous candidate
    left behind (evicted caches, memory that was given back to the system and faults in again), which cost whoever came
    after the largest buffers a fifth of its time here.
    """
    names = list(candidates)
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    for _ in range(warmup):
        for name in names:
            candidates[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            candidates[name]()
            times[name].append(timed(candidates[name]))
    rows = []
    facts = {
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "load": load,
        "device": device_name(),
        "torch": torch.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
    for name in names:
        own, base = times[name], times[baseline]
        p20, median, p80 = (1e3 * sorted(own)[round(q * (rounds - 1))] for q in (0.2, 0.5, 0.8))
        ratio = statistics.median(a / b for a, b in zip(own, base, strict=True))
        rows.append(
            Row(op, case, name, 1e3 * min(own), p20, median, p80, ratio, min(own) / min(base), **facts)  # type: ignore[arg-type]
        )
    return rows


def report(rows: Iterable[Row]) -> None:
    """Prints a table, one line per candidate."""
    print(f"{'case':44s} {'candidate':28s} {'min ms':>9s} {'median':>9s} {'ratio':>7s} {'of mins':>8s}")
    for row in rows:
        print(
            f"{row.case:44s} {row.candidate:28s} {row.min_ms:9.2f} {row.median_ms:9.2f} "
            f"{row.ratio:6.2f}x {row.min_ratio:7.2f}x"
        )


def write_csv(rows: Iterable[Row], path: Path | None = None) -> Path:
    """Appends the rows to benchmarks/results/<op>.csv (or `path`); returns the file."""
    rows = list(rows)
    path = path or RESULTS / f"{rows[0].op}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        if fresh:
            writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()})
    return path
