"""How pictures are drawn, by name: the options of every task that draws, and the names that diffusers has for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from operator import index
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from showo.engine.generate import GenerationStep
from showo.engine.guidance import guidance_weights
from showo.engine.samplers import find_sampler
from showo.engine.sampling import MAX_STEPS
from showo.engine.schedule import mask_schedule
from showo.errors import UserError

if TYPE_CHECKING:
    from showo.engine.assembly import Assembly

# A callback gets the number of the batch's first picture and the step.
PictureCallback = Callable[[int, GenerationStep], None]
# Further texts of a picture, each with its weight, beside the prompt's own, which is 1 + guidance.
Also = Sequence[tuple[str, float]]
# As diffusers calls it: pipeline, step, steps that are left, and what there is, "codes" and "masked" ([B, N]). What it
# gives back is not used: a step cannot be changed.
StepEndCallback = Callable[["Assembly", int, int, dict[str, torch.Tensor]], object]


class Options(TypedDict, total=False):
    """Each thing has one name here and, where diffusers has another for it, that one too; who gives both is told so.

    size: (width, height) in pixels; height, width: the same, both of them. None is the size of the model's training.
    steps, or num_inference_steps: over which masks resolve. None takes the model's own (`sampling`).
    guidance: w of (1 + w) * conditional - w * unconditional logits, None takes the model's own; guidance_scale: 1 + w.
    top_k, schedule, temperature, sampler, guidance_schedule: as in `showo.engine.generate.generate_codes`.
    negative_prompt: one text, or one for each picture, in the place of the empty text in the unconditional half.
    also: [(text, weight), ...], or one such list for each picture: further texts that are composed with its prompt,
        negative weights leading away from them; see `showo.engine.composing`.
    seed: of the first picture, the next ones counting up, or one for each picture.
    generator: what seeds are drawn from instead, one for each picture; it moves on, so that a second call draws others.
        Or one generator for each picture.
    batch: pictures computed at a time.
    callback, or callback_on_step_end: called after each step, see PictureCallback and StepEndCallback.
    progress: whether a bar is shown where standard error is a terminal.
    """

    size: tuple[int, int] | None
    height: int | None
    width: int | None
    steps: int | None
    num_inference_steps: int | None
    guidance: float | None
    guidance_scale: float | None
    top_k: int | None
    schedule: str
    temperature: float
    sampler: str
    guidance_schedule: str
    negative_prompt: str | Sequence[str] | None
    also: Also | Sequence[Also] | None
    seed: int | Sequence[int]
    generator: torch.Generator | Sequence[torch.Generator] | None
    batch: int
    callback: PictureCallback | None
    callback_on_step_end: StepEndCallback | None
    progress: bool


@dataclass(frozen=True)
class Asked:
    """Options under their first names alone; their meaning is said there."""

    size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None
    top_k: int | None = None
    schedule: str = "cosine"
    temperature: float = 1.0
    sampler: str = "confidence"
    guidance_schedule: str = "constant"
    negative_prompt: str | Sequence[str] | None = None
    also: Also | Sequence[Also] | None = None
    seed: int | Sequence[int] = 0
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    batch: int = 8
    callback: PictureCallback | None = None
    progress: bool = True

    @classmethod
    def of(cls, options: Options, pipe: Assembly) -> Asked:
        """Raises UserError for one thing under two names and for names of samplers and schedules that are none, and
        TypeError for an option that there is not, and for a value of another kind than its option takes.
        """
        named: dict[str, Any] = dict(options)
        for name, value in named.items():
            _check_kind(name, value)
        height, width = named.pop("height", None), named.pop("width", None)
        if (height is None) != (width is None):
            raise UserError(f"height and width belong together, got {height} and {width}")
        scale = named.pop("guidance_scale", None)
        if scale is not None and not scale >= 1:
            raise UserError(f"guidance_scale must be 1 or more (1 is no guidance), got {scale}")
        step_end = named.pop("callback_on_step_end", None)
        _rename(named, "height and width", "size", None if height is None else (width, height))
        _rename(named, "num_inference_steps", "steps", named.pop("num_inference_steps", None))
        _rename(named, "guidance_scale", "guidance", None if scale is None else scale - 1)
        _rename(named, "callback_on_step_end", "callback", None if step_end is None else _as_ours(step_end, pipe))
        if named.get("generator") is not None and "seed" in named:
            raise UserError("give a seed or a generator, not both")
        if named.get("batch", 1) < 1:
            raise UserError(f"batch must be at least 1, got {named['batch']}")
        steps = named.get("steps")
        if steps is not None and not 1 <= steps <= MAX_STEPS:
            raise UserError(f"steps must be at least 1 and at most {MAX_STEPS}, got {steps}")
        asked = cls(**named)
        check_names(asked.schedule, asked.sampler, asked.guidance_schedule)
        return asked


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, such as a tensor's or an array's too; True and False are none."""
    try:
        index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_pair(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(is_whole, value))


def _are_seeds(value: object) -> bool:
    return is_whole(value) or (isinstance(value, Iterable) and all(map(is_whole, value)))


def _are_generators(value: object) -> bool:
    many = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(generator, torch.Generator) for generator in many)


# Of options whose value would otherwise fail far from here: whether a value is of their kind, and what that is.
_KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "size": (_is_pair, "(width, height) in whole pixels"),
    "height": (is_whole, "a whole number"),
    "width": (is_whole, "a whole number"),
    "steps": (is_whole, "a whole number"),
    "num_inference_steps": (is_whole, "a whole number"),
    "guidance": (_is_number, "a number"),
    "guidance_scale": (_is_number, "a number"),
    "top_k": (is_whole, "a whole number"),
    "temperature": (_is_number, "a number"),
    "seed": (_are_seeds, "a whole number, or one for each picture"),
    "generator": (_are_generators, "a torch.Generator, or one for each picture"),
    "batch": (is_whole, "a whole number"),
}
_MAY_BE_NONE = {name for name, kind in Options.__annotations__.items() if "None" in str(kind)}


def _check_kind(name: str, value: object) -> None:
    if name not in Options.__annotations__:
        near = get_close_matches(name, Options.__annotations__, 1)
        raise TypeError(f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if name not in _KINDS or (value is None and name in _MAY_BE_NONE):
        return
    fits, kind = _KINDS[name]
    if not fits(value):
        raise TypeError(f"{name} must be {kind}, got {value!r}")


def check_names(schedule: str, sampler: str, guidance_schedule: str) -> None:
    """UserError for names that say nothing of how to draw."""
    mask_schedule(schedule)
    find_sampler(sampler)
    guidance_weights(0.0, 1, guidance_schedule)


def _rename(named: dict[str, Any], other: str, name: str, value: object) -> None:
    if value is None:
        return
    if named.get(name) is not None:
        raise UserError(f"{other}: the same as {name}, which is given too")
    named[name] = value


def _as_ours(step_end: StepEndCallback, pipe: Assembly) -> PictureCallback:
    def callback(first: int, step: GenerationStep) -> None:
        seen = {"codes": step.codes, "masked": step.masked}
        step_end(pipe, step.step, step.steps - 1 - step.step, seen)

    return callback
