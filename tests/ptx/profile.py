"""A profiler for people without a GPU: runs an operator on the emulated device and prints what its kernels did.

    python -m tests.ptx.profile                                    list the operators and their sizes
    python -m tests.ptx.profile lfq_encode batch=4 dtype=bfloat16  one operator, sizes changed
    python -m tests.ptx.profile gemm_plain --lines 8               with the eight hottest source lines

Counts are exact; there are no times, because nothing here knows them.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.device import Counters, EmulatorError, Finding, Module, Out, set_option

# ---- what can be profiled: name -> function(sizes) that returns the counters of its launches


def lfq_encode(
    batch: int = 2, bits: int = 13, height: int = 16, width: int = 16, dtype: str = "float32"
) -> list[Counters]:
    import torch

    import showo_ext

    z = torch.randn(batch, bits, height, width).to(getattr(torch, dtype))
    return _on_device(lambda: showo_ext.lfq_encode(z))


def lfq_decode(
    batch: int = 2, bits: int = 13, height: int = 16, width: int = 16, dtype: str = "float32"
) -> list[Counters]:
    import torch

    import showo_ext

    ids = torch.randint(0, 1 << bits, (batch, height * width))
    return _on_device(lambda: showo_ext.lfq_decode(ids, bits, height, width, dtype=getattr(torch, dtype)))


def vq_encode(rows: int = 256, entries: int = 512, width: int = 16, dtype: str = "float32") -> list[Counters]:
    import torch

    import showo_ext

    z, codebook = (torch.randn(n, width).to(getattr(torch, dtype)) for n in (rows, entries))
    return _on_device(lambda: showo_ext.vq_encode(z, codebook))


def codebook_lookup(rows: int = 256, entries: int = 512, width: int = 64, dtype: str = "float32") -> list[Counters]:
    import torch

    import showo_ext

    codebook = torch.randn(entries, width).to(getattr(torch, dtype)).requires_grad_()
    ids = torch.randint(0, entries, (rows,))
    return _on_device(lambda: showo_ext.codebook_lookup(ids, codebook).sum().backward())


def sample_tokens(
    rows: int = 8, vocab: int = 8192, guidance: float = 1.75, top_k: int = 0, top_p: float = 1.0, dtype: str = "float32"
) -> list[Counters]:
    import torch

    import showo_ext

    cond, uncond = (2 * torch.randn(1, rows, vocab).to(getattr(torch, dtype)) for _ in range(2))
    return _on_device(
        lambda: showo_ext.sample_tokens(cond, uncond, guidance=guidance, top_k=top_k, top_p=top_p, seed=0)
    )


def remask(rows: int = 8, length: int = 1024, mask_len: int = 300, temperature: float = 1.0) -> list[Counters]:
    import torch

    import showo_ext

    ids, logprob, known = torch.zeros(rows, length).long(), -torch.rand(rows, length), torch.rand(rows, length) < 0.3
    return _on_device(lambda: showo_ext.remask(ids, logprob, known, mask_len, temperature, 8192, seed=0))


def corrupt_tokens(rows: int = 8, length: int = 1024, ratio: float = 0.4) -> list[Counters]:
    import torch

    import showo_ext

    ids = torch.zeros(rows, length).long()
    return _on_device(lambda: showo_ext.corrupt_tokens(ids, ratio, 8192, seed=0))


def omni_attention(
    rows: int = 128, columns: int = 128, dim: int = 64, softcap: float = 0.0, dtype: str = "bfloat16"
) -> list[Counters]:
    """One dense head, forward and backward in its reproducible form; the first launch is the mask's block table."""
    import torch

    import showo_ext

    generator = torch.Generator().manual_seed(0)  # how often a bound is raised depends on the scores
    shapes = (1, 1, rows, dim), (1, 1, columns, dim), (1, 1, columns, dim)
    q, k, v = (torch.randn(shape, generator=generator).to(getattr(torch, dtype)).requires_grad_() for shape in shapes)
    mask = showo_ext.OmniMask.full(1, rows, kv_length=columns)

    def call() -> None:
        out = showo_ext.omni_attention(q, k, v, mask, softcap=softcap or None, deterministic=True)
        out.backward(torch.ones_like(out))

    return _on_device(call)


def gemm_swizzled(m: int = 128, n: int = 128, k: int = 256) -> list[Counters]:
    return _gemm("gemm_swizzled", m, n, k)


def gemm_plain(m: int = 128, n: int = 128, k: int = 256) -> list[Counters]:
    return _gemm("gemm_plain", m, n, k)


OPERATORS: dict[str, Callable[..., list[Counters]]] = {
    f.__name__: f
    for f in (
        lfq_encode,
        lfq_decode,
        vq_encode,
        codebook_lookup,
        sample_tokens,
        remask,
        corrupt_tokens,
        omni_attention,
        gemm_swizzled,
        gemm_plain,
    )
}


def _on_device(call: Callable[[], Any]) -> list[Counters]:
    from tests.ptx.emulated import emulated_device

    with emulated_device() as device:
        call()
        return device.records()


def _gemm(kernel: str, m: int, n: int, k: int) -> list[Counters]:
    from tests.ptx.compile import compile_file

    a, b = np.zeros((m, k), np.uint16), np.zeros((n, k), np.uint16)
    out = Out(np.zeros((m, n), np.float32))
    grid = (n // 64, m // 64)
    return [Module(compile_file("gemm.cu")).launch(kernel, grid=grid, block=128, args=[out, a, b, m, n, k])]


# ---- the report


def readable(kernel: str) -> str:
    """_ZN5showo..17lfq_encode_kernelI.. -> the last name of the mangled path and its template arguments."""
    name, i = kernel, 3 if kernel.startswith("_ZN") else 2 if kernel.startswith("_Z") else len(kernel)
    while i < len(kernel) and kernel[i].isdigit():
        digits = ""
        while kernel[i].isdigit():
            digits, i = digits + kernel[i], i + 1
        name, i = kernel[i : i + int(digits)], i + int(digits)
    arguments = kernel[i : kernel.find("EEv", i)] if kernel[i : i + 1] == "I" else ""
    return name + (f"<{arguments[1:]}>" if arguments else "")


def report(record: Counters, lines: int = 0) -> str:
    total = max(record.warp_instructions, 1)
    grid, block = ("x".join(map(str, x)) for x in (record.grid, record.block))
    text = [
        f"{readable(record.kernel)}",
        f"  grid {grid}, block {block}, {record.registers or '?'} registers, "
        f"{record.static_shared} + {record.dynamic_shared} bytes shared (static + dynamic)",
        f"  {'class':<12}{'warp instr.':>14}{'share':>8}{'lanes':>8}",
    ]
    for name, (warps, threads) in sorted(record.classes.items(), key=lambda item: -item[1][0]):
        text.append(f"  {name:<12}{warps:>14,}{warps / total:>8.1%}{threads / max(warps, 1):>8.1f}")
    text.append(f"  {'all':<12}{record.warp_instructions:>14,}{'':>8}{record.thread_instructions / total:>8.1f}")
    for title, (units, least) in (
        ("shared wavefronts", record.shared_wavefronts),
        ("global 32-byte sectors", record.global_sectors),
    ):
        if units:
            text.append(f"  {title}: {units:,} for a minimum of {least:,} ({units / max(least, 1):.2f}x)")
    if record.mma_flops:
        mma = record.warps("mma")
        text.append(f"  mma: {record.mma_flops:,} FLOP, {(total - mma) / mma:.2f} other instructions per mma")
    text.append(f"  divergent branches: {record.divergent_branches:,}")
    for tensor in record.tensors:
        traffic = ", ".join(
            f"{tensor[key]:,} {what}"
            for key, what in (("read", "read"), ("written", "written"), ("never_written", "never written"))
            if tensor[key] or key != "never_written"
        )
        text.append(f"  {tensor['name']}: {tensor['bytes']:,} bytes, {traffic}")
    if lines:
        text += ["  hot lines", *hot_lines(record, lines)]
    return "\n".join(text)


def hot_lines(record: Counters, count: int) -> list[str]:
    """Source lines by warp-instructions, with what they cost beyond the minimum."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for line in record.lines:
        entry = sums[line["source"] or f"ptx line {line['line']}"]
        entry[0] += line["warps"]
        if line["class"] != "branch":
            entry[1] += line["units"] - line["least"]
    hottest = sorted(sums.items(), key=lambda item: -item[1][0])[:count]
    return [
        f"    {warps:>12,}  {'/'.join(source.split('/')[-2:])}"
        + (f"  ({waste:,} wavefronts or sectors too many)" if waste else "")
        for source, (warps, waste) in hottest
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.profile", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("operator", nargs="?", choices=sorted(OPERATORS))
    parser.add_argument("sizes", nargs="*", metavar="name=value")
    parser.add_argument("--lines", type=int, default=0, help="also list this many hot source lines")
    options = parser.parse_args(arguments)
    if options.operator is None:
        for name, function in OPERATORS.items():
            listed = " ".join(f"{p.name}={p.default}" for p in inspect.signature(function).parameters.values())
            print(f"{name:<18}{listed}")
        return 0
    function = OPERATORS[options.operator]
    defaults = {p.name: p.default for p in inspect.signature(function).parameters.values()}
    sizes: dict[str, Any] = {}
    for text in options.sizes:
        name, _, value = text.partition("=")
        if name not in defaults:
            parser.error(f"{options.operator} has no size {name!r}, only {', '.join(defaults)}")
        sizes[name] = type(defaults[name])(value)
    set_option("lines", int(options.lines > 0))
    try:
        records = function(**sizes)
    except (Finding, EmulatorError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n\n".join(report(record, options.lines) for record in records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
