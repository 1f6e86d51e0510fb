"""Requests that arrive at random, together and one after the other: what sharing forward passes gains.

    python -m benchmarks.bench_serving [--requests 16] [--rounds 3] [--threads 2] [--steps 18] [--checkpoint FOLDER]

For pictures, for answers and for both in turn, so many requests arrive at random moments, within about a third of the
time that they take one after the other. Together, each is handed to the engine when it arrives; one at a time, when the
one before is done. Both get the same requests at the same moments, by turns. Printed are the medians of the rounds:
requests a second from the first arrival to the last answer, the mean wait of a reader from its arrival on, forward
passes; and how many pictures and texts were the same both ways. Answers are drawn at a temperature at which even the
bundled model's are long.
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


def serve(pipe: ShowoPipeline, requests: list[Request], moments: list[float], together: bool) -> Round:
    waits, given = [0.0] * len(requests), [object()] * len(requests)
    limits = {"max_rows": 2 * len(requests), "max_waiting": len(requests)}
    with Engine(pipe, **limits, queue_seconds=3600, total_seconds=3600) as engine:
        begun = time.perf_counter()

        def read(numbers: range) -> None:
            for number in numbers:
                time.sleep(max(0.0, begun + moments[number] - time.perf_counter()))
                done = engine.submit(requests[number]).result()
                waits[number] = time.perf_counter() - begun - moments[number]
                given[number] = done.text if isinstance(done, AnswerDone) else done.codes.tolist()

        everything = range(len(requests))
        shares = [everything[number : number + 1] for number in everything] if together else [everything]
        readers = [threading.Thread(target=read, args=(share,)) for share in shares]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return Round(time.perf_counter() - begun, waits, engine.facts().steps, given)


def show(name: str, rounds: list[Round]) -> None:
    rate = median(len(r.given) / r.seconds for r in rounds)
    wait, passes = median(mean(r.waits) for r in rounds), median(r.passes for r in rounds)
    print(f"  {name:14} {rate:6.2f} requests a second, a reader waits {wait:6.2f} s, {passes:g} forward passes")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="of a pipeline; the bundled one if none is given")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(argv)
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    pipe = ShowoPipeline.from_pretrained(*([options.checkpoint] if options.checkpoint else []))
    for kind in ("pictures", "answers", "both"):
        requests = make_requests(kind, options.requests, pipe, options.steps)
        within = serve(pipe, requests[:2], [0.0, 0.0], together=False).seconds / 2 * len(requests) / 3
        one: list[Round] = []
        many: list[Round] = []
        for turn in range(options.rounds):
            moments = arrivals(options.requests, within, turn)
            one.append(serve(pipe, requests, moments, together=False))
            many.append(serve(pipe, requests, moments, together=True))
        gain = median(a.seconds / b.seconds for a, b in zip(one, many, strict=True))
        same = sum(x == y for a, b in zip(one, many, strict=True) for x, y in zip(a.given, b.given, strict=True))
        print(f"{kind}: together {gain:.2f} times as fast, {same} of {len(requests) * options.rounds} the same")
        show("one at a time", one)
        show("together", many)
    torch.set_num_threads(before)


if __name__ == "__main__":
    main()
