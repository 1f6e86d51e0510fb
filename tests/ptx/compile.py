"""Compiles CUDA sources for the emulator with the flags of the extension, and keeps the results in build/."""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = Path(__file__).parent / "kernels"
CACHE = ROOT / "build" / "ptx-kernels"
FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-gencode=arch=compute_80,code=[sm_80,compute_80]", "--compress-mode=none")


@functools.cache
def nvcc() -> str | None:
    """The path of nvcc, or None."""
    return shutil.which("nvcc")


@functools.cache
def nvcc_version() -> str:
    return subprocess.run([_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout


def _nvcc() -> str:
    path = nvcc()
    if path is None:
        raise FileNotFoundError("nvcc is not on PATH")
    return path


def compile_file(path: Path | str, *, flags: tuple[str, ...] = ()) -> bytes:
    """A .cu file (of tests/ptx/kernels unless the path says otherwise) -> fat binary with sm_80 code and PTX."""
    path = KERNELS / path
    texts = [path.read_text(), *(header.read_text() for header in sorted(KERNELS.glob("*.cuh")))]
    digest = hashlib.sha256("\0".join((*texts, *FLAGS, *flags, str(path), nvcc_version())).encode()).hexdigest()[:24]
    cached = CACHE / f"{path.stem}-{digest}.fatbin"
    if not cached.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            out = Path(folder) / "out.fatbin"
            command = [_nvcc(), *FLAGS, *flags, f"-I{KERNELS}", "-fatbin", str(path), "-o", str(out)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"nvcc failed on {path}:\n{done.stderr}")
            out.rename(cached)
    return cached.read_bytes()
