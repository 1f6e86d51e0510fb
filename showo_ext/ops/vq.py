"""vq_encode, codebook_lookup: the nearest entry of a codebook, and the entries of ids with a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from showo_ext._checks import FLOAT_DTYPES, check_same_device, check_same_dtype, check_shape, check_tensor, in_autocast
from showo_ext._native import DTYPE_CODES, Argument, launch, native, runs_on_cuda
from showo_ext._operator import Operator

MAX_CODES = 2**31 - 2

# ---------------------------------------------------------------- public functions


def vq_encode(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the codebook entry with the smallest Euclidean distance to each vector.

    Sums of squared differences are formed in fp32; no distance matrix is stored. The lowest index wins a tie. A
    distance of NaN counts as infinite, and a vector without any finite distance gets index 0. Under autocast both
    arguments are taken in fp32, like torch.cdist does.

    Args:
        z: [..., D], fp32, fp16 or bf16.
        codebook: [K, D] with K >= 1 and D >= 1, same dtype and device.

    Returns:
        int64 [...]. It carries no gradient.
    """
    check_tensor("z", z, FLOAT_DTYPES)
    _check_codebook(codebook)
    check_same_device("z", z.device, "codebook", codebook)
    if codebook.shape[1] < 1 or not 1 <= codebook.shape[0] <= MAX_CODES:
        raise ValueError(f"codebook has shape {list(codebook.shape)}, expected [1 to {MAX_CODES}, 1 or more]")
    if z.dim() < 1 or z.shape[-1] != codebook.shape[1]:
        raise ValueError(f"z has shape {list(z.shape)}, expected [..., {codebook.shape[1]}], the size of an entry")
    if in_autocast(z):
        z, codebook = z.float(), codebook.float()
    check_same_dtype("z", z, "codebook", codebook)
    return _ENCODE(z.detach(), codebook.detach())


def codebook_lookup(ids: Tensor, codebook: Tensor) -> Tensor:
    """The codebook entries of ids, with a gradient to the codebook.

    The gradient adds in fp32 and in the order of the positions, so that it is the same in every run, on any number of
    threads. It may be differentiated again.

    Args:
        ids: int64 [...].
        codebook: [K, D], fp32, fp16 or bf16, same device.

    Returns:
        [..., D] in the codebook's dtype.

    Raises:
        ValueError: on the CPU, if an id is outside [0, K). On a CUDA device, where looking would stall the stream, the
            entry of such an id is NaN, and its gradient goes nowhere.
    """
    check_tensor("ids", ids, (torch.int64,))
    _check_codebook(codebook)
    check_same_device("ids", ids.device, "codebook", codebook)
    return _LOOKUP(ids, codebook)


def _check_codebook(codebook: Tensor) -> None:
    check_tensor("codebook", codebook, FLOAT_DTYPES)
    check_shape("codebook", codebook, "K", "D")


# ---------------------------------------------------------------- implementations


def _rows(tensor: Tensor) -> Tensor:
    """The vectors of [..., D] as [N, D] with contiguous vectors; a view where the strides allow."""
    rows = tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] <= 1 else rows.contiguous()


def _aligned(rows: Tensor) -> Tensor:
    """The same vectors as whole, aligned units of 16 bytes; a copy, with zeros at the end, if they are not."""
    unit = 16 // rows.element_size()
    if rows.shape[1] % unit:
        return torch.nn.functional.pad(rows, (0, -rows.shape[1] % unit))
    if rows.data_ptr() % 16 or rows.stride(0) % unit:
        return rows.clone(memory_format=torch.contiguous_format)
    return rows


def _encode(z: Tensor, codebook: Tensor) -> Tensor:
    ids = _encode_fake(z, codebook)
    if ids.numel() == 0:
        return ids
    z, codebook = _rows(z), _rows(codebook)
    on_cuda = runs_on_cuda(z)
    if on_cuda:
        z, codebook = _aligned(z), _aligned(codebook)
    launch(
        "vq_encode",
        z,
        z=z,
        codebook=codebook,
        ids=ids,
        dtype=z.dtype,
        num_rows=z.shape[0],
        num_codes=codebook.shape[0],
        dim=codebook.shape[1],
        z_stride=z.stride(0),
        codebook_stride=codebook.stride(0),
        **(_encode_workspaces_cuda if on_cuda else _encode_workspaces_cpu)(z, codebook),
    )
    return ids


def _encode_workspaces_cpu(z: Tensor, codebook: Tensor) -> dict[str, Argument]:
    size = native().vq_encode_workspace_size(num_codes=codebook.shape[0], dim=codebook.shape[1])
    return {"workspace": torch.empty(size, dtype=torch.float32)}


def _encode_workspaces_cuda(z: Tensor, codebook: Tensor) -> dict[str, Argument]:
    num_codes, dim = codebook.shape
    splits, offset_bytes = native().vq_encode_cuda_sizes(
        dtype=DTYPE_CODES[z.dtype], num_rows=z.shape[0], num_codes=num_codes, dim=dim
    )
    f32, device = torch.float32, z.device
    return {
        "offsets": torch.empty(offset_bytes, dtype=torch.uint8, device=device),
        "halves": torch.empty(codebook.shape, dtype=f32, device=device) if z.dtype == f32 else None,
        "tops": torch.empty((splits, z.shape[0], 4), dtype=f32, device=device),
        "candidates": torch.empty((splits, z.shape[0], 4), dtype=torch.int32, device=device),
    }


def _lookup(ids: Tensor, codebook: Tensor) -> Tensor:
    out = _lookup_fake(ids, codebook)
    codebook = _rows(codebook)
    launch(
        "codebook_lookup_forward",
        codebook,
        codebook=codebook,
        ids=ids.contiguous(),
        out=out,
        dtype=codebook.dtype,
        num_rows=ids.numel(),
        num_codes=codebook.shape[0],
        dim=codebook.shape[1],
        codebook_stride=codebook.stride(0),
    )
    return out


def _lookup_backward(grad: Tensor, ids: Tensor, num_codes: int) -> Tensor:
    grad_codebook = _lookup_backward_fake(grad, ids, num_codes)
    grad = _rows(grad)
    launch(
        "codebook_lookup_backward",
        grad,
        grad=grad,
        grad_codebook=grad_codebook,
        dtype=grad.dtype,
        num_rows=grad.shape[0],
        num_codes=num_codes,
        dim=grad.shape[1],
        grad_stride=grad.stride(0),
        **(_positions_by_id(ids, num_codes) if runs_on_cuda(grad) else _sums(ids, grad_codebook)),
    )
    return grad_codebook


def _sums(ids: Tensor, grad_codebook: Tensor) -> dict[str, Argument]:
    """What the CPU's backward adds in: the result itself, or a workspace where its floats are too short."""
    in_place = grad_codebook.dtype == torch.float32
    workspace = grad_codebook if in_place else torch.empty_like(grad_codebook, dtype=torch.float32)
    return {"ids": ids.contiguous(), "workspace": workspace}


def _positions_by_id(ids: Tensor, num_codes: int) -> dict[str, Argument]:
    """What CUDA's backward reads: positions grouped by id, in a fixed order; one warp adds the rows of an entry."""
    sorted_ids, order = torch.sort(ids.flatten(), stable=True)
    starts = torch.searchsorted(sorted_ids, torch.arange(num_codes + 1, dtype=torch.int64, device=ids.device))
    return {"order": order, "starts": starts}


# ---------------------------------------------------------------- fake: allocates, for real tensors too


def _encode_fake(z: Tensor, codebook: Tensor) -> Tensor:
    return torch.empty(z.shape[:-1], dtype=torch.int64, device=z.device)


def _lookup_fake(ids: Tensor, codebook: Tensor) -> Tensor:
    return torch.empty((*ids.shape, codebook.shape[1]), dtype=codebook.dtype, device=codebook.device)


def _lookup_backward_fake(grad: Tensor, ids: Tensor, num_codes: int) -> Tensor:
    return torch.empty((num_codes, grad.shape[-1]), dtype=grad.dtype, device=grad.device)


# ---------------------------------------------------------------- autograd: lookup is linear in the codebook


def _lookup_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # Not save_for_backward: that refuses ids made under inference_mode, and ids have no gradient to keep track of.
    ctx.ids, codebook = inputs
    ctx.num_codes = codebook.shape[0]


def _lookup_gradient(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
    return None, _LOOKUP_BACKWARD(grad, ctx.ids, ctx.num_codes)


def _lookup_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.ids, _ = inputs


def _lookup_backward_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _LOOKUP(ctx.ids, grad), None, None


# ---------------------------------------------------------------- registration

_ENCODE = Operator("vq_encode(Tensor z, Tensor codebook) -> Tensor", _encode, _encode_fake)
_LOOKUP = Operator(
    "codebook_lookup(Tensor ids, Tensor codebook) -> Tensor",
    _lookup,
    _lookup_fake,
    backward=_lookup_gradient,
    setup_context=_lookup_setup,
)
_LOOKUP_BACKWARD = Operator(
    "codebook_lookup_backward(Tensor grad, Tensor ids, SymInt num_codes) -> Tensor",
    _lookup_backward,
    _lookup_backward_fake,
    backward=_lookup_backward_gradient,
    setup_context=_lookup_backward_setup,
)
