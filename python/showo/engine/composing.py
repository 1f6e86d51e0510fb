"""Several prompts for one picture, each with a weight (composed prompts; arXiv 2206.01714, 2405.06535).

The logits of a place are l = l_0 + sum_i w_i (l_i - l_0), where l_0 is told nothing and l_i is told prompt i. The
picture's own prompt has the weight 1 + guidance, so that alone it is what guidance is. A negative weight leads away
from what its prompt says. The sampling kernel adds the prompts up (`showo_ext.resample`, weights).
"""

from __future__ import annotations

from collections.abc import Sequence

from showo.errors import UserError
from showo.prompting import TextIds

MAX_CONDITIONS = 8
# Further prompts of a picture: ids of a text, and its weight.
Others = Sequence[tuple[TextIds, float]]


def check_others(also: Sequence[Sequence[tuple[object, float]]], pictures: int) -> None:
    """UserError for a number of lists that is not that of the pictures, for more than 8 prompts of a picture, and for
    weights that are no numbers between -1e30 and 1e30.
    """
    if len(also) != pictures:
        raise UserError(f"also: {len(also)} lists of further prompts for {pictures} pictures")
    most = 1 + max(map(len, also), default=0)
    if most > MAX_CONDITIONS:
        raise UserError(f"also: a picture has {most} prompts, at most {MAX_CONDITIONS} can be composed")
    for weight in (weight for others in also for _, weight in others):
        if not abs(weight) <= 1e30:
            raise UserError(f"also: a weight must be a number from -1e30 to 1e30, got {weight}")


def compose(
    texts: Sequence[TextIds], also: Sequence[Others], guidance: float, shares: Sequence[float]
) -> tuple[list[TextIds], list[list[list[float]]]]:
    """Texts [K * B] of B pictures, their own first, then their second ones and so on; weights [steps][B][K].

    shares: of guidance and of the other weights, by step. A picture with fewer prompts than others has weights of 0.

    Raises what `check_others` raises.
    """
    check_others(also, len(texts))
    most = max(map(len, also), default=0)
    filled: list[list[tuple[TextIds, float]]] = [[*others, *[([], 0.0)] * (most - len(others))] for others in also]
    told = [*texts, *(others[k][0] for k in range(most) for others in filled)]
    weights = [
        [[1 + guidance * share, *(weight * share for _, weight in others)] for others in filled] for share in shares
    ]
    return told, weights
