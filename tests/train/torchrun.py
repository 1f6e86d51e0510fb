"""Programs of several processes, as tests start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def environment(**variables: str) -> dict[str, str]:
    """In which `torchrun` is the one of this Python, and finds this package."""
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": f"{_ROOT}:{_ROOT / 'python'}"}
    return {**os.environ, **paths, "OMP_NUM_THREADS": "1", **variables}


def torchrun(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What `torchrun --standalone --nproc-per-node COUNT ARGUMENTS` has said, in whatever time a busy machine takes."""
    return subprocess.run(
        ["torchrun", "--standalone", "--nproc-per-node", str(count), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=550,
    )
