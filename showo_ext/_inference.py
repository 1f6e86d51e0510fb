"""Constants that outlive torch.inference_mode: tensors made inside that mode can never be part of training."""

from __future__ import annotations

import contextlib

import torch


def normal_tensors() -> contextlib.AbstractContextManager[object]:
    """Inside this context new tensors are normal ones, which a later backward pass can use, whatever the caller's mode.

    While a graph is traced the context does nothing: what the graph returns takes the mode of its caller.
    """
    return contextlib.nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(False)
