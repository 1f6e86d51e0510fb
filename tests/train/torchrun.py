"""Programs of several processes, as tests start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def torchrun(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What `torchrun --standalone --nproc-per-node COUNT ARGUMENTS` has said, in whatever time a busy machine takes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [*command, *arguments],
        env={**os.environ, "PYTHONPATH": f"{_ROOT}:{_ROOT / 'python'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=550,
    )
