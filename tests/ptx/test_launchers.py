"""Every launcher hands every failure of the CUDA runtime to its caller, and its stream to every launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.ptx import emulated, profile  # noqa: E402
from tests.ptx.device import library  # noqa: E402

if emulated.module_path() is None:
    pytest.skip("_C_emulated is not built (it needs nvcc); `make emulator` builds it", allow_module_level=True)

import showo_ext  # noqa: E402
from showo_ext._native import native  # noqa: E402
from showo_ext.testing import randint, randn, uniforms  # noqa: E402

F32, BF16 = torch.float32, torch.bfloat16


def attention(dtype: torch.dtype, rows: int, columns: int, deterministic: bool | None = None) -> None:
    """`deterministic` also asks for the gradients, on that path."""
    mask = showo_ext.OmniMask.causal(1, rows, kv_length=columns)
    q, k, v = (randn(1, 1, n, 32, dtype=dtype, seed=n) for n in (rows, columns, columns))
    if deterministic is None:
        showo_ext.omni_attention(q, k, v, mask)
        return
    out = showo_ext.omni_attention(q.requires_grad_(), k, v, mask, deterministic=deterministic)
    torch.autograd.grad(out, q, torch.ones_like(out))


def lookup(dim: int) -> None:
    codebook = randn(20, dim).requires_grad_()
    rows = showo_ext.codebook_lookup(randint(0, 20, (30,)), codebook)
    torch.autograd.grad(rows, codebook, torch.ones_like(rows))


def rope() -> None:
    qkv = randn(1, 3, 3 * 32).requires_grad_()
    norm = {"q_weight": torch.ones(32), "k_weight": torch.ones(32)}
    q, _, _ = showo_ext.rope_qkv(qkv, torch.arange(3), num_heads=1, **norm)
    torch.autograd.grad(q, qkv, torch.ones_like(q))


def remask(length: int) -> None:
    ids, known = randint(0, 9, (1, length)), uniforms(1, length) < 0.5
    showo_ext.remask(ids, -uniforms(1, length), known, length // 4, 1.0, 99, seed=0)


def resample() -> None:
    showo_ext.resample(randn(1, 4, 50), torch.full((1, 4), 99), 1, 99, seed=0)


# Together they launch every kernel, as the last test sees to.
CASES: dict[str, Callable[[], Any]] = {
    "attention": lambda: attention(BF16, 70, 70, deterministic=False),
    "attention, deterministic": lambda: attention(BF16, 70, 70, deterministic=True),
    "attention, fp32": lambda: attention(F32, 70, 70, deterministic=False),
    "decode": lambda: attention(BF16, 2, 600),
    "decode, fp32": lambda: attention(F32, 2, 600),
    "lfq_encode": lambda: showo_ext.lfq_encode(randn(1, 5, 2, 2)),
    "lfq_encode, wide": lambda: showo_ext.lfq_encode(randn(1, 40, 2, 2)),
    "lfq_decode": lambda: showo_ext.lfq_decode(randint(0, 32, (1, 4)), 5, 2, 2),
    "vq_encode": lambda: showo_ext.vq_encode(randn(9, 16), randn(20, 16, seed=1)),
    "vq_encode, sliced": lambda: showo_ext.vq_encode(randn(9, 300, dtype=BF16), randn(20, 300, dtype=BF16, seed=1)),
    "codebook_lookup": lambda: lookup(16),
    "codebook_lookup, single elements": lambda: lookup(7),
    "sample_tokens": lambda: showo_ext.sample_tokens(randn(1, 50), seed=0),
    "sample_tokens, filtered": lambda: showo_ext.sample_tokens(randn(1, 50), top_k=9, seed=0),
    "sample_tokens, more shared memory": lambda: showo_ext.sample_tokens(randn(1, 9000), top_k=9, seed=0),
    "sample_tokens, longer than shared memory": lambda: showo_ext.sample_tokens(randn(1, 41000), top_k=9, seed=0),
    "remask": lambda: remask(40),
    "remask, long": lambda: remask(5000),
    "resample": resample,
    "corrupt_tokens": lambda: showo_ext.corrupt_tokens(randint(0, 9, (1, 40)), 0.5, 99, seed=0),
    "corrupt_tokens, long": lambda: showo_ext.corrupt_tokens(randint(0, 9, (1, 5000)), 0.5, 99, seed=0),
    "rope_qkv": rope,
}


@pytest.fixture
def device():
    with emulated.emulated_device() as device:
        yield device


def calls_of(device: emulated.EmulatedDevice, case: str) -> list[emulated.RuntimeCall]:
    device.calls.clear()
    CASES[case]()
    return list(device.calls)


@pytest.mark.parametrize("case", CASES)
def test_streams_and_failures(device, case: str) -> None:
    device.stream = 0x57E4A
    made = calls_of(device, case)
    assert {call.stream for call in made if call.function != "cudaFuncSetAttribute"} == {device.stream}
    for index, call in enumerate(made):
        library().ptx_fail_call(index)
        with pytest.raises(RuntimeError, match=f"{call.function} was made to fail"):
            calls_of(device, case)
        assert device.calls == made[: index + 1]  # nothing is launched after a failure
        assert library().cudaPeekAtLastError() == 0  # nor found again after somebody else's launch
    assert calls_of(device, case) == made


def test_the_cases_reach_every_launcher_and_kernel(device) -> None:
    launchers = {call.launcher for case in CASES for call in calls_of(device, case)}
    assert launchers == {name for name in dir(native()) if name.endswith("_cuda")}  # of the module that is shipped
    launched = {profile.readable(record.kernel).split("<")[0] for record in device.records()}
    assert launched == {profile.readable(kernel).split("<")[0] for kernel in emulated.registered_kernels()}
