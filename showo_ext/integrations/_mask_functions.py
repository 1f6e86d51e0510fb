"""What transformers' mask functions say, as one interval of columns per row, without asking for every pair.

A mask function tells whether the query at one place sees the key at another, and is put together from parts by closures
(`transformers.masking_utils`). The parts of ordinary decoders let a row see one run of places, so their intersection is
known in O(S). A function that holds any other part is evaluated for all pairs, as transformers' own masks are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import masking_utils
from transformers.masking_utils import causal_mask_function

MaskFunction = Callable[..., Any]
Parts = list[tuple[str, Any]]  # kind, its value
Bounds = tuple[Tensor, Tensor]  # first place that each row sees, and the place behind the last: int64 [B or 1, S_q]


def bounds(mask_function: MaskFunction, rows: Tensor) -> Bounds | None:
    """The run of places that the queries at the places `rows` (int64 [S_q]) see; None: the function is not known."""
    if torch.compiler.is_compiling():  # a traced graph cannot look into closures
        parts: Parts | None = [("causal", None)] if mask_function is causal_mask_function else None
    else:
        parts = _parts(mask_function)
    if parts is None:
        return None
    starts: list[Tensor] = []
    stops: list[Tensor] = []
    for kind, value in parts:
        if kind == "causal":
            stops.append((rows + 1)[None])
        elif kind == "window":
            starts.append((rows - value + 1)[None])
        else:  # the number of the packed sequence of each place, which only grows along a row
            numbers = value.contiguous()
            own = numbers[:, rows].contiguous()
            starts.append(torch.searchsorted(numbers, own))
            stops.append(torch.searchsorted(numbers, own, right=True))
    start = functools.reduce(torch.maximum, starts or [torch.zeros_like(rows)[None]])
    stop = functools.reduce(torch.minimum, stops or [torch.full_like(start, torch.iinfo(torch.int32).max)])
    return start, stop


def _parts(function: MaskFunction, packed: bool = False) -> Parts | None:
    """The parts whose intersection a mask function is, as (kind, its value); None if one of them is not known.

    packed: the function holds only inside a packed sequence. Positions count up by one there, as places do, so what
    depends on differences alone, as causal and window do, says the same of both.
    """
    if function is causal_mask_function:
        return [("causal", None)]
    if function is getattr(masking_utils, "bidirectional_mask_function", causal_mask_function):
        return []
    maker = _maker(function)
    if maker is None:
        return None
    inside = dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__ or ())))
    if maker == "sliding_window_overlay":
        return [("window", inside["sliding_window"])]
    if maker == "packed_sequence_mask_function":
        return [("packed", inside["packed_sequence_mask"])]
    if maker == "remap_positions_for_packed_sequence" and packed:
        return _parts(inside["mask_function"])
    if maker != "and_masks":
        return None
    functions = inside["mask_functions"]
    packed = any(_maker(part) == "packed_sequence_mask_function" for part in functions)
    parts = [_parts(part, packed) for part in functions]
    return None if any(part is None for part in parts) else [pair for part in parts for pair in part or ()]


def _maker(function: MaskFunction) -> str | None:
    """The name of the function of `transformers.masking_utils` that has made this one."""
    if getattr(function, "__module__", None) != masking_utils.__name__:
        return None
    return function.__qualname__.partition(".<locals>")[0]


def check_known() -> None:
    """RuntimeError unless the functions that we know say what we take them to say, for all pairs of a few places."""
    numbers = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2]], dtype=torch.int64)
    window = masking_utils.sliding_window_causal_mask_function(3)
    packed = masking_utils.packed_sequence_mask_function(numbers)
    functions = [causal_mask_function, window, masking_utils.and_masks(causal_mask_function, packed)]
    if hasattr(masking_utils, "bidirectional_mask_function"):
        functions.append(masking_utils.bidirectional_mask_function)
    if hasattr(masking_utils, "remap_positions_for_packed_sequence"):
        positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0]], dtype=torch.int64)
        remapped = masking_utils.remap_positions_for_packed_sequence(window, positions)
        functions.append(masking_utils.and_masks(remapped, packed))
    place = torch.arange(numbers.size(1), dtype=torch.int64)
    sample = torch.zeros((1, 1), dtype=torch.int64)
    for function in functions:
        found = bounds(function, place)
        said = function(sample, sample, place[:, None], place[None]).expand(len(place), len(place))
        if found is not None:
            start, stop = (edge[0, :, None] for edge in found)
            if not torch.equal((place >= start) & (place < stop), said):
                raise RuntimeError(
                    f"transformers {transformers.__version__}: {function.__qualname__} of transformers.masking_utils "
                    "hides other pairs than showo_ext.integrations.hf knows; this version is not supported"
                )
