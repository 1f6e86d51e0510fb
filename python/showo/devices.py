"""The device to compute on, from its name, and the way of tensors there."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from showo.errors import UserError


def find_device(name: str | torch.device) -> torch.device:
    """The device "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: another name, or a device that this machine does not have.
    """
    if not re.fullmatch(r"cpu|cuda(:\d{1,4})?", str(name)):
        raise UserError(f"device must be cpu, cuda or cuda:N, got {str(name)!r}")
    device = torch.device(name)
    if device.type == "cuda":
        number = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= number:
            raise UserError(f"device {device}: this machine has {number} CUDA devices")
    return device


def multiplies_bf16(device: torch.device | str) -> bool:
    """Whether products of bf16 take no longer than those of fp32: on GPUs, and on CPUs with AVX-512.

    Others have no instructions for them, and what torch does instead takes ten times as long and more.
    """
    return torch.device(device).type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def moved_to(device: torch.device | str, tensor: Tensor) -> Tensor:
    """`tensor` on `device`. A copy to a GPU does not wait for the work that the GPU still has to do.

    Such a copy is only possible from page-locked memory: from any other, torch waits for the GPU before it goes on.
    """
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
