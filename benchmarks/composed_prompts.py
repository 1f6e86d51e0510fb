"""What it gives to compose a prompt with the objects that it names, on a world's prompts of several coloured objects.

    python -m benchmarks.composed_prompts --world DIR [--model M] [--column held-out] [--count 48] [--steps 18]
        [--weights 0 0.25 0.5 1]

Each prompt, such as "a purple ring with a black square", is drawn with "a purple ring" and "a black square" as further
prompts of one weight each. Weight 0 is plain guidance. Prints how many pictures are judged right, and what is wrong
with the others; pictures of all weights have the same seeds.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from showo.data.world.captions import noun
from showo.engine.generate import generate_codes
from showo.engine.pipeline import ShowoPipeline
from showo.evaluate.world.drawing import Prompt, find_fault, read_prompts
from showo.evaluate.world.judge import as_scene, find_objects

CATEGORIES = ("binding", "full")


def faults(pipe: ShowoPipeline, prompts: Sequence[Prompt], weight: float, steps: int, batch: int = 8) -> Counter[str]:
    """How often which fault was found; "right" is none."""
    found: Counter[str] = Counter()
    grid = pipe.grid()
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        codes = generate_codes(
            pipe.model,
            pipe.prompting,
            pipe.text_ids([prompt.text for prompt in part]),
            also=[[(pipe.text_ids([noun(wanted)])[0], weight) for wanted in prompt.demand.wanted] for prompt in part],
            grid=grid,
            steps=steps,
            guidance=pipe.sampling.guidance,
            seed=first,
        )
        for prompt, picture in zip(part, pipe.decode(codes, grid), strict=True):
            found[find_fault(prompt.demand, as_scene(find_objects(picture))) or "right"] += 1
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder that showo make-world wrote")
    parser.add_argument("--model", help="folder, hub id or bundled:NAME; default: the bundled model")
    parser.add_argument("--column", choices=("seen", "held-out"), default="held-out")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--weights", type=float, nargs="+", default=(0.0, 0.25, 0.5, 1.0))
    options = parser.parse_args(argv)
    pipe = ShowoPipeline.from_pretrained(options.model)
    asked = [prompt for prompt in read_prompts(options.world, options.column) if prompt.demand.category in CATEGORIES]
    for weight in options.weights:
        found = faults(pipe, asked[: options.count], weight, options.steps)
        print(
            f"weight {weight:g}: {found.pop('right', 0)} of {len(asked[: options.count])} right; {dict(found)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
