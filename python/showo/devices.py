"""The device to compute on, from its name."""

from __future__ import annotations

import re

import torch

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
