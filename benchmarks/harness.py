"""Timing that survives a busy machine: candidates take turns, and what is reported are ratios within one turn.

    case = Case("omni_attention", "forward B2 H32", {OURS: ours, "sdpa": peer}, inputs, Work(flops, bytes, dtype))
    rows = measure(case)
    report(rows)                       # a table on the terminal
    write_csv(rows)                    # appended to benchmarks/results/<op>.csv

Every round calls each candidate once, in an order that rotates; `ratio` is the median over rounds of
(candidate's time / ours in the same round), so a slow spell of the machine hits both.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.roofline import UNKNOWN, Work, peaks_of
from showo.gpus import Gpu

RESULTS = Path(__file__).parent / "results"
OURS = "showo_ext"


@dataclass(frozen=True)
class Case:
    """An operation in one setting and the ways to do it.

    `candidates` maps names to functions of the arguments that `inputs(i)` returns; the first is ours, and ratios refer
    to it. `inputs` makes the i-th set of arguments, equal in shape. A candidate that cannot run here is a string: why.
    """

    op: str
    name: str
    candidates: dict[str, Callable[..., object] | str]
    inputs: Callable[[int], tuple[Any, ...]]
    work: Work


Cases = Callable[[torch.device, bool], Iterator[Case]]  # (device, at the size of an A100 and not of a laptop)


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
    ratio: float  # median over rounds of time / our time
    min_ratio: float  # ratio of the fastest runs
    floor_ms: float  # what the operation's FLOPs and bytes take at the device's peak; nan if that is not known
    roofline: float  # floor / median
    rounds: int
    threads: int
    load: float  # of the machine before the run, per core: above 1 only ratios mean anything
    device: str
    torch: str
    commit: str
    date: str


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
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


def nbytes(*tensors: torch.Tensor) -> float:
    return float(sum(t.numel() * t.element_size() for t in tensors))


class CpuTimer:
    """Seconds of single calls by the wall clock, always on the same arguments.

    Every timed call follows an untimed one of the same candidate: else it would pay for what the previous candidate
    left behind (evicted caches, memory that was given back to the system and faults in again), which cost whoever came
    after the largest buffers a fifth of its time here.
    """

    def input_sets(self, work: Work) -> int:
        return 1

    def __call__(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> Callable[[], float]:
        function(*arguments)
        start = time.perf_counter()
        function(*arguments)
        seconds = time.perf_counter() - start
        return lambda: seconds


class CudaTimer:
    """Seconds of single calls by CUDA events.

    Before each call a large buffer is cleared. That evicts what the last call left in the L2 cache, and keeps the GPU
    busy while Python queues the call, so that the events enclose the kernels and not the gaps between their launches.
    """

    FLUSH_BYTES = 1 << 30  # half a millisecond on an A100

    def __init__(self, device: torch.device) -> None:
        self.flush = torch.empty(self.FLUSH_BYTES, dtype=torch.int8, device=device)
        self.l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size

    def input_sets(self, work: Work) -> int:
        """So many that no call finds its arguments in the cache."""
        return max(2, min(16, math.ceil(2 * self.l2_bytes / max(work.bytes, 1.0))))

    def __call__(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> Callable[[], float]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flush.zero_()
        start.record()
        function(*arguments)
        end.record()

        def seconds() -> float:
            end.synchronize()
            return start.elapsed_time(end) / 1e3

        return seconds


def measure(case: Case, *, device: torch.device | None = None, rounds: int = 15, warmup: int = 2) -> list[Row]:
    """Times the candidates in turns."""
    device = device or torch.device("cpu")
    timer = CudaTimer(device) if device.type == "cuda" else CpuTimer()
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    functions: dict[str, Callable[..., object]] = {}
    for name, candidate in case.candidates.items():
        if isinstance(candidate, str):
            print(f"{case.name}: no {name}: {candidate}")
        else:
            functions[name] = candidate
    sets = [case.inputs(i) for i in range(timer.input_sets(case.work))]
    for _ in range(warmup):
        for function in functions.values():
            function(*sets[0])
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds):
        shift = turn % len(functions)
        names = list(functions)[shift:] + list(functions)[:shift]
        pending = {name: timer(functions[name], sets[turn % len(sets)]) for name in names}
        for name, seconds in pending.items():
            times[name].append(seconds())
    peaks = peaks_of(device_name(device)) if device.type == "cuda" else UNKNOWN
    return [_row(case, name, times, peaks, device, rounds, load) for name in functions]


def _row(
    case: Case,
    name: str,
    times: dict[str, list[float]],
    peaks: Gpu,
    device: torch.device,
    rounds: int,
    load: float,
) -> Row:
    own, base = times[name], times[next(iter(times))]
    p20, median, p80 = (1e3 * sorted(own)[round(q * (rounds - 1))] for q in (0.2, 0.5, 0.8))
    floor = 1e3 * case.work.floor(peaks)
    return Row(
        op=case.op,
        case=case.name,
        candidate=name,
        min_ms=1e3 * min(own),
        p20_ms=p20,
        median_ms=median,
        p80_ms=p80,
        ratio=statistics.median(a / b for a, b in zip(own, base, strict=True)),
        min_ratio=min(own) / min(base),
        floor_ms=floor,
        roofline=floor / median,
        rounds=rounds,
        threads=torch.get_num_threads(),
        load=load,
        device=device_name(device),
        torch=torch.__version__,
        commit=commit(),
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    )


def report(rows: Iterable[Row]) -> None:
    """Prints a table, one line per candidate."""
    head = f"{'case':50s} {'candidate':32s} {'min ms':>9s} {'median':>9s} {'ratio':>7s} {'of mins':>8s}"
    print(head, " roofline")
    for row in rows:
        fraction = "" if math.isnan(row.roofline) else f"{row.roofline:.0%}"
        print(
            f"{row.case:50s} {row.candidate:32s} {row.min_ms:9.3f} {row.median_ms:9.3f} "
            f"{row.ratio:6.2f}x {row.min_ratio:7.2f}x {fraction:>9s}"
        )


def write_csv(rows: Iterable[Row], path: Path | None = None) -> Path:
    """Appends the rows to benchmarks/results/<op>.csv (or `path`); returns the file.

    Raises ValueError if the file's columns are not those of `Row`.
    """
    rows = list(rows)
    path = path or RESULTS / f"{rows[0].op}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [f.name for f in fields(Row)]
    fresh = not path.exists()
    if not fresh:
        with path.open(newline="") as file:
            found = next(csv.reader(file), [])
        if found != columns:
            raise ValueError(f"{path}: has the columns {found}, expected {columns}")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if fresh:
            writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()})
    return path


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", action="store_true", help="append the rows to benchmarks/results/<op>.csv")
    return parser


def run(cases: Cases, options: argparse.Namespace) -> list[Row]:
    """Measures all cases of one operator, prints them and, if asked for, records them."""
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for case in cases(device, device.type == "cuda"):
        rows += measure(case, device=device, rounds=options.rounds)
    report(rows)
    if options.csv:
        print(f"appended to {write_csv(rows)}")
    return rows
