"""Plain-torch omni_attention: the formula, for tests, for reading, and for devices without a kernel.

    scores = scale * q k^T, with a softcap softcap * tanh(scores / softcap), with -inf where the mask forbids
    lse = log sum_j exp(scores_j);  out = exp(scores - lse) v

It materialises [B, H, S_q, S_kv] and is differentiable by autograd (twice), in whatever dtype the inputs have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

from torch import Tensor

if TYPE_CHECKING:
    from showo_ext.mask import OmniMask


@overload
def omni_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: OmniMask,
    *,
    scale: float | Tensor | None = None,
    softcap: float | None = None,
    return_lse: Literal[False] = False,
    deterministic: bool | None = None,
) -> Tensor: ...
@overload
def omni_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: OmniMask,
    *,
    scale: float | Tensor | None = None,
    softcap: float | None = None,
    return_lse: Literal[True],
    deterministic: bool | None = None,
) -> tuple[Tensor, Tensor]: ...
def omni_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: OmniMask,
    *,
    scale: float | Tensor | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    deterministic: bool | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale q k^T over the allowed columns) v.

    q: [B, H, S_q, D]; k, v: [B, H_kv, S_kv, D] with H a multiple of H_kv (query head h reads kv head h // (H / H_kv));
    mask: OmniMask of batch B or 1. Returns [B, H, S_q, D], with return_lse also the natural-log normaliser [B, H, S_q].
    Rows without columns give zeros and lse = -inf, and pass no gradient. `deterministic` is there for the operator's
    sake: how reproducible these formulas are is up to torch.
    """
    scale = q.size(-1) ** -0.5 if scale is None else scale
    group = q.size(1) // k.size(1) if k.size(1) else 1
    allowed = mask.to_dense().unsqueeze(1)  # [B, 1, S_q, S_kv]
    some = allowed.any(-1, keepdim=True)
    unseen = ~allowed.any(-2).unsqueeze(-1)  # [B, 1, S_kv, 1]
    # What takes no part counts as zero, whatever it holds: zero times NaN is NaN.
    q, k, v = q.masked_fill(~some, 0.0), k.masked_fill(unseen, 0.0), v.masked_fill(unseen, 0.0)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    # Rows without columns are computed as if they saw everything, then replaced: no NaN reaches autograd.
    scores = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores.masked_fill(~(allowed | ~some), float("-inf"))
    if k.size(2) == 0:
        lse = scores.new_full(scores.shape[:-1], float("-inf"))
        out = scores @ v
    else:
        lse = scores.logsumexp(-1).masked_fill(~some.squeeze(-1), float("-inf"))
        out = (scores.softmax(-1) @ v).masked_fill(~some, 0.0)
    return (out, lse) if return_lse else out
