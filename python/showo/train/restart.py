"""What torchrun starts again goes on by itself: from the newest whole checkpoint, or from the beginning.

The run folder says which job it belongs to. How often torchrun has restarted ranks (TORCHELASTIC_RESTART_COUNT) does
not tell enough: on a machine where none had failed that is still 0; and a job that is refused, as its folder holds
another run, is started again too, and must be refused again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from showo.files import atomic_write_text
from showo.launch import Launch
from showo.lock import Owner

JOB_NAME = "torchrun.json"


@dataclass(frozen=True)
class Job:
    """What is one and the same each time that torchrun starts the ranks of a job.

    id: the job's name, where its user gives one (--rdzv-id): the same on all machines, of which another one may have
    rank 0 after a failure. torchrun: the process that starts the ranks of this machine.
    """

    id: str
    torchrun: Owner

    @classmethod
    def of_this_process(cls) -> Job:
        return cls(Launch.of_this_process().job, Owner.of(os.getppid()))

    def sign(self, run: Path) -> None:
        """Writes into the run folder whose it is."""
        atomic_write_text(run / JOB_NAME, json.dumps(asdict(self)) + "\n")

    def has_signed(self, run: Path) -> bool:
        try:
            found = json.loads((run / JOB_NAME).read_text())
        except (OSError, ValueError):
            return False
        named = isinstance(found, dict) and bool(self.id) and found.get("id") == self.id
        return named or found == asdict(self)


def is_restart(run: Path) -> bool:
    """Whether torchrun has started this process before, as a rank of the job that the run folder belongs to."""
    return Launch.of_this_process().by_torchrun and Job.of_this_process().has_signed(run)


def sign_for_restarts(run: Path) -> None:
    """Marks a run folder that this process may use as that of its job, if torchrun has started it."""
    if Launch.of_this_process().by_torchrun:
        Job.of_this_process().sign(run)
