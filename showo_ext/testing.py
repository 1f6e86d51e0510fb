"""What the tests and benchmarks of all operators share: inputs, the error budget, guards around memory, CPU code paths.

Nothing here needs pytest, so users can check their own build with it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from showo_ext._checks import FLOAT_DTYPES as FLOAT_DTYPES  # for tests
from showo_ext._native import native
from showo_ext._operator import NAMESPACE

ISAS = ("baseline", "avx2", "avx512")
ENOUGH_ROWS = 256  # of one head, for a root mean square error that is not luck


# ---------------------------------------------------------------- inputs


def randn(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    scale: float = 1.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Normal numbers that depend on (shape, seed) alone, drawn in fp32 on the CPU and then converted."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, dtype=torch.float32, generator=generator) * scale).to(dtype=dtype, device=device)


def randint(low: int, high: int, shape: Sequence[int], *, seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """int64 numbers in [low, high)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, tuple(shape), generator=generator).to(device)


def uniforms(*shape: int, seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """fp32 numbers in the open interval (0, 1): explicit noise for the sampling operators."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 1 << 23, shape, generator=generator)
    return ((bits.double() + 0.5) / (1 << 23)).float().to(device)


def with_special_values(tensor: Tensor) -> Tensor:
    """A copy of a floating tensor in which zeros of both signs, infinities, NaN and the least number are sprinkled."""
    values = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), torch.finfo(tensor.dtype).smallest_normal]
    result = tensor.detach().clone(memory_format=torch.contiguous_format)
    places = result.view(-1)[::3]
    places.copy_(torch.tensor(values, dtype=tensor.dtype).repeat(len(places) // len(values) + 1)[: len(places)])
    return result


def inside_larger(tensor: Tensor, *, pad: int = 3, offset: int = 1, last_dim_contiguous: bool = True) -> Tensor:
    """The same values as a view into a larger tensor whose other elements are poison (NaN, or the lowest integer).

    Every dimension is a slice, so all strides but the last differ from the contiguous ones, and the pointer is
    `offset` elements away from the allocation's alignment. With `last_dim_contiguous=False` the last stride is 2.
    """
    if offset > pad:
        raise ValueError(f"offset is {offset}, expected at most pad, which is {pad}")
    step = 1 if last_dim_contiguous or tensor.dim() == 0 else 2
    sizes = [size + pad for size in tensor.shape]
    if sizes:
        sizes[-1] = tensor.shape[-1] * step + pad
    large = poisoned(sizes, dtype=tensor.dtype, device=tensor.device)
    index = [slice(offset, offset + size) for size in tensor.shape]
    if index:
        index[-1] = slice(offset, offset + tensor.shape[-1] * step, step)
    view = large[tuple(index)]
    view.copy_(tensor.detach())
    return view


def in_random_layout(tensor: Tensor, *, seed: int, multiple: int = 1) -> Tensor:
    """The same values in memory of a random layout, which depends on (shape, seed): other dims in random order, a gap
    of random width after each row of every dim, and poison in the gaps. The last dim stays contiguous.

    The gap after the last dim is a multiple of `multiple` elements: 8 keeps the rows of all dtypes at addresses that
    wide accesses take, if the last dim is a multiple of 8 too.
    """
    if tensor.dim() == 0:
        return tensor
    generator = torch.Generator().manual_seed(seed)
    order = [*torch.randperm(tensor.dim() - 1, generator=generator).tolist(), tensor.dim() - 1]
    gaps = torch.randint(1, 4, (tensor.dim(),), generator=generator).tolist()
    gaps[-1] = multiple * int(torch.randint(1, 20, (), generator=generator))  # every other stride is a multiple of it
    large = poisoned(
        [tensor.shape[dim] + gap for dim, gap in zip(order, gaps)], dtype=tensor.dtype, device=tensor.device
    )
    inner = large[tuple(slice(gap, None) for gap in gaps)]
    view = inner.permute([order.index(dim) for dim in range(tensor.dim())])
    view.copy_(tensor.detach())
    return view


def poison_value(dtype: torch.dtype) -> float | int | bool:
    """NaN for floating types, True for bool, the lowest number for integers: values a kernel must not leave or use."""
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).min if dtype != torch.uint8 else 0xA5


def poisoned(shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Tensor:
    """A tensor full of `poison_value`."""
    return torch.full(tuple(shape), poison_value(dtype), dtype=dtype, device=device)


# ---------------------------------------------------------------- the error budget


def max_error(actual: Tensor, oracle: Tensor) -> float:
    """Largest |actual - oracle| in fp64, where both are finite."""
    a, o = actual.detach().double(), oracle.detach().double()
    finite = a.isfinite() & o.isfinite()
    return float((a - o)[finite].abs().max()) if bool(finite.any()) else 0.0


def rms_error(actual: Tensor, oracle: Tensor) -> float:
    """Root mean square of actual - oracle in fp64, where both are finite."""
    a, o = actual.detach().double(), oracle.detach().double()
    finite = a.isfinite() & o.isfinite()
    return float((a - o)[finite].square().mean().sqrt()) if bool(finite.any()) else 0.0


def rounding_band(oracle: Tensor, dtype: torch.dtype) -> float:
    """Half a unit in the last place of `dtype` at the oracle's largest finite magnitude."""
    o = oracle.detach().double()
    o = o[o.isfinite()]
    largest = float(o.abs().max()) if o.numel() else 0.0
    return max(largest * torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal)


def assert_within_budget(
    actual: Tensor,
    oracle: Tensor,
    same_dtype: Tensor,
    *,
    what: str = "result",
    factor: float = 1.5,
    rms: bool = False,
) -> None:
    """Fails unless `actual` is about as close to the fp64 oracle as plain torch in the same dtype is.

    The budget is factor * (max error of `same_dtype` + rounding band of actual's dtype). Infinities and NaN must be
    where the oracle has them.

    Args:
        actual: the kernel's result.
        oracle: the same quantity computed in float64 from the same (already rounded) inputs.
        same_dtype: plain torch's result in the kernel's input dtype.
        rms: hold the root mean square error to `factor`, and the largest error to twice that. For results of few
            numbers and cases found by a search: there torch's largest error may be small by luck.
    """
    assert actual.shape == oracle.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(oracle.shape)}"
    a, o = actual.detach().double(), oracle.detach().double()
    # A value beyond the dtype's range may round to infinity.
    o = torch.where(o.abs() > torch.finfo(actual.dtype).max, o.sign() * float("inf"), o)
    same_special = (a.isnan() == o.isnan()) & ((a == o) | ~o.isinf()) & ((a == o) | ~a.isinf())
    if not bool(same_special.all()):
        where = (~same_special).nonzero()[0].tolist()
        raise AssertionError(f"{what}: at {where} got {a[tuple(where)]}, the fp64 oracle has {o[tuple(where)]}")
    measures = {"max": (max_error, rounding_band(oracle, actual.dtype), 2 * factor if rms else factor)}
    if rms:
        measures["rms"] = (rms_error, rms_error(oracle.to(actual.dtype), oracle), factor)
    for name, (measure, band, allowed) in measures.items():
        error, peer = measure(actual, oracle), measure(same_dtype, oracle)
        budget = allowed * (peer + band)
        assert error <= budget, (
            f"{what}: {name} error {error:.3e} exceeds {budget:.3e} = "
            f"{allowed} * (torch {peer:.3e} + rounding {band:.3e})"
        )


# ---------------------------------------------------------------- guards around memory


@dataclass
class Guarded:
    """A tensor inside a larger allocation; `check()` fails when something was written around it."""

    tensor: Tensor
    before: Tensor
    after: Tensor

    def check(self) -> None:
        for zone, where in ((self.before, "before"), (self.after, "after")):
            assert bool((zone == 0x5A).all()), f"memory {where} the tensor was overwritten"


def guarded(tensor: Tensor, *, guard_bytes: int = 256) -> Guarded:
    """A contiguous copy of `tensor` with guard zones of bytes 0x5A directly before and after it."""
    size = tensor.numel() * tensor.element_size()
    memory = torch.full((size + 2 * guard_bytes,), 0x5A, dtype=torch.uint8, device=tensor.device)
    inner = memory[guard_bytes : guard_bytes + size].view(tensor.dtype).view(tensor.shape)
    inner.copy_(tensor.detach())
    return Guarded(inner, memory[:guard_bytes], memory[guard_bytes + size :])


# ---------------------------------------------------------------- code paths


def available_isas() -> tuple[str, ...]:
    """The CPU code paths that this machine can run, the best one last."""
    best = native().build_info()["cpu_isa_best"]
    return ISAS[: ISAS.index(best) + 1]


@contextlib.contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Runs the CPU kernels with another instruction set: "baseline", "avx2" or "avx512"."""
    previous = native().build_info()["cpu_isa"]
    native().set_cpu_isa(name)
    try:
        yield
    finally:
        native().set_cpu_isa(previous)


@contextlib.contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Runs torch and the CPU kernels on `count` threads."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


class CountOperators(TorchDispatchMode):
    """Counts the torch operators that run inside this context: `calls`, by name, ours without their namespace."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[function.name().removeprefix(f"{NAMESPACE}::")] += 1
        return function(*args, **(kwargs or {}))


def assert_compiles(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Fails unless torch.compile(fullgraph=True) accepts `function` and gives the eager results, bit for bit.

    The backend is "aot_eager": tracing, fake tensors and autograd are exercised, code generation is not.
    """
    torch.compiler.reset()
    eager = function(*args, **kwargs)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*args, **kwargs)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=0, equal_nan=True)
