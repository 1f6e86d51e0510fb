"""Requests that arrive at random, together and one after the other: what sharing forward passes gains.

    python -m benchmarks.bench_serving [--requests 16] [--rows 2 16] [--rounds 3] [--threads 2] [--steps 18]
        [--checkpoint FOLDER]

For pictures, for answers and for both in turn, so many requests arrive at random moments, within about a third of the
time that they take one after the other. Together, each is handed to the engine when it arrives, which draws `--rows`
rows of pictures at a time, as `showo serve --max-rows` does (all of them unless this is given), and gives all answers
at a time; one at a time, when the one before is done. All ways get the same requests at the same moments, by turns.
Printed are the medians of the rounds: requests a second from the first arrival to the last answer, the mean wait of a
reader from its arrival on, forward passes; and how many pictures and texts were those of one at a time. Answers are
drawn at a temperature at which even the bundled model's are long.
"""

from __future__ import annotations

import argparse
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import mean, median

import torch

from showo.engine.batching import Answer, AnswerDone, Draw, Engine, Request
from showo.engine.pipeline import ShowoPipeline

SHAPES, COLOURS = ("circle", "star", "apple", "heart"), ("red", "blue", "green", "yellow")


@dataclass(frozen=True)
class Round:
    """waits: seconds of each request, from its arrival on. given: its text, or its picture's codes."""

    seconds: float
    waits: list[float]
    passes: int
    given: list[object]


def make_requests(kind: str, count: int, pipe: ShowoPipeline, steps: int) -> list[Request]:
    random = Random(0)
    (seen,) = pipe.generate("red apple", steps=2, seed=0, progress=False)
    requests: list[Request] = []
    for number in range(count):
        text = f"{random.choice(COLOURS)} {random.choice(SHAPES)}"
        if kind == "answers" or (kind == "both" and number % 2):
            request: Request = Answer([seen], f"is it a {text}?", temperature=3.0, seed=number, max_new_tokens=40)
        else:
            request = Draw(text, {"seed": number, "steps": steps})
        requests.append(request)
    return requests


def arrivals(count: int, within: float, seed: int) -> list[float]:
    """Seconds after the first arrival, of a Poisson process with `count` arrivals in `within` on the average."""
    random, moments = Random(seed), [0.0]
    while len(moments) < count:
        moments.append(moments[-1] + random.expovariate(count / within))
    return moments


def serve(pipe: ShowoPipeline, requests: list[Request], moments: list[float], rows: int | None) -> Round:
    """rows: that are computed at a time; None hands in a request when the one before is done."""
    waits, given = [0.0] * len(requests), [object()] * len(requests)
    limits = {"queue_seconds": 3600, "total_seconds": 3600}
    with Engine(pipe, max_rows=rows or 2, max_answers=len(requests), max_waiting=len(requests), **limits) as engine:
        begun = time.perf_counter()

        def read(numbers: range) -> None:
            for number in numbers:
                time.sleep(max(0.0, begun + moments[number] - time.perf_counter()))
                done = engine.submit(requests[number]).result()
                waits[number] = time.perf_counter() - begun - moments[number]
                given[number] = done.text if isinstance(done, AnswerDone) else done.codes.tolist()

        everything = range(len(requests))
        shares = [everything] if rows is None else [everything[number : number + 1] for number in everything]
        readers = [threading.Thread(target=read, args=(share,)) for share in shares]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return Round(time.perf_counter() - begun, waits, engine.facts().steps, given)


def compare(requests: list[Request], ways: dict[int | None, list[Round]]) -> None:
    """A line for each way. Readers of pictures and of answers wait for different times."""
    one = ways[None]
    for rows, rounds in ways.items():
        rate, passes = median(len(requests) / r.seconds for r in rounds), median(r.passes for r in rounds)
        waits = []
        for kind, name in ((Draw, "a picture"), (Answer, "an answer")):
            mine = [number for number, request in enumerate(requests) if isinstance(request, kind)]
            if mine:
                wait = median(mean(r.waits[number] for number in mine) for r in rounds)
                waits.append(f"{name} takes {wait:6.2f} s")
        gain = median(a.seconds / b.seconds for a, b in zip(one, rounds, strict=True))
        same = sum(x == y for a, b in zip(one, rounds, strict=True) for x, y in zip(a.given, b.given, strict=True))
        way = "one at a time" if rows is None else f"{rows} rows"  # of pictures
        print(
            f"  {way:14} {rate:6.2f} requests a second, {gain:.2f} times as fast, {', '.join(waits)}, "
            f"{passes:g} forward passes, {same} of {len(requests) * len(rounds)} the same"
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="of a pipeline; the bundled one if none is given")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rows", type=int, nargs="+", help="computed at a time; several are compared")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(argv)
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    pipe = ShowoPipeline.from_pretrained(*([options.checkpoint] if options.checkpoint else []))
    for kind in ("pictures", "answers", "both"):
        requests = make_requests(kind, options.requests, pipe, options.steps)
        within = serve(pipe, requests[:2], [0.0, 0.0], None).seconds / 2 * len(requests) / 3
        several = options.rows if kind != "answers" else None
        ways: dict[int | None, list[Round]] = {rows: [] for rows in (None, *(several or [2 * len(requests)]))}
        for turn in range(options.rounds):
            moments = arrivals(options.requests, within, turn)
            for rows, rounds in ways.items():
                rounds.append(serve(pipe, requests, moments, rows))
        print(f"{kind}:")
        compare(requests, ways)
    torch.set_num_threads(before)


if __name__ == "__main__":
    main()
