"""How a lack of memory shows, and what it is called in one line. Nothing here needs torch."""

from __future__ import annotations

import re

_CPU = re.compile(r"DefaultCPUAllocator: .*?tried to allocate (\d+) bytes")
_GPU = re.compile(r"CUDA out of memory\. (Tried to allocate .*?\.(?= |$))(?: (GPU.*? is free\.))?")


def lack_of_memory(error: BaseException) -> str | None:
    """What could not be had, if that is what an error of torch, numpy or Python is about; else None."""
    text = " ".join(str(error).split())
    if found := _GPU.search(text):
        return " ".join(["out of memory on the GPU:", *filter(None, found.groups())]).removesuffix(".")
    if found := _CPU.search(text):
        return f"out of memory: the system has no {int(found[1]) / 2**30:.3g} GiB more for this process"
    if isinstance(error, MemoryError):
        return f"out of memory: {text or 'the system has none left for this process'}"
    if "CUDA error: out of memory" in text:
        return "out of memory on the GPU, which other processes may use"
    return None
