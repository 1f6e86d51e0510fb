"""Checkpoints written while the steps of a training go on (torch.distributed.checkpoint, DCP).

A save copies all tensors to the CPU's memory, for which the steps wait. Then threads write into one temporary folder:
every rank what it alone has, and a share of what all have. When all have finished, rank 0 notes the checksums, waits
until everything is on the disk, and gives the folder its name.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import async_save

from showo.errors import OutputError
from showo.files import replace_folder
from showo.model.weight_files import FACTS_NAME, STATE_NAME
from showo.train.checkpoint import name_latest, prune_checkpoints, step_name, tensors_of
from showo.train.checksums import write_checksums
from showo.train.config import LoopConfig, to_yaml
from showo.train.ema import WeightAverage
from showo.train.parallel import Parallel, local_part
from showo.train.pools import SourceFacts, facts_to_json
from showo_ext import __version__

# What DCP says where one process trains, to whom there is nothing to say.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


class _Writer(FileSystemWriter):
    """Copies tensors into memory that is kept for the next save: to get new memory takes longer than to copy."""

    _copies: Mapping[str, Tensor] | None = None

    def stage(self, state_dict: dict[str, Any]) -> Any:
        if self._copies is None or self._copies.keys() != state_dict.keys():
            # Not by `super().stage`: torch 2.6 copies nothing that is on the CPU, so later steps would change it.
            self._copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state_dict.items()}
            return self._copies
        for name, copy in self._copies.items():
            local_part(copy).copy_(local_part(state_dict[name].detach()))
        return self._copies


class Saver:
    """Writes the checkpoints of a run, one at a time. All ranks have one, and call its methods together.

    source_facts: of the sources of every stream, on rank 0.
    attach: called with every checkpoint's folder, to write what belongs to the model besides its weights.
    """

    def __init__(
        self,
        run: Path,
        parallel: Parallel,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        config: LoopConfig,
        source_facts: Mapping[str, Sequence[SourceFacts]],
        attach: Callable[[Path], object] | None,
    ) -> None:
        self.folder, self.run = run / "checkpoints", run
        self.parallel, self.optimizer, self.average = parallel, optimizer, average
        self.config, self.source_facts, self.attach = config, source_facts, attach
        self._group = dist.new_group(backend="gloo") if parallel.ranks.count > 1 else None
        self._thread = ThreadPoolExecutor(1)
        self._writer = _Writer(self.folder, per_thread_copy_ahead=0)  # what it writes is on the CPU already
        self._writing: tuple[int, Future[Any]] | None = None

    def start(self, step: int) -> Path:
        """Begins to save the state as it is now, and returns where it will be; what is being written is waited for.

        Raises OutputError as `wait`, and where the disk is full, or refuses for another reason.
        """
        self.wait()
        final = self.folder / step_name(step)
        temporary = final.with_name(final.name + ".tmp")
        self._agree(step, self._prepare(temporary, step) if self.parallel.ranks.first else None)
        state: dict[str, Any] = dict(tensors_of(self.parallel.model, self.optimizer, self.average))
        written: Future[Any] = async_save(  # type: ignore[assignment]
            state,
            checkpoint_id=temporary / STATE_NAME,
            storage_writer=self._writer,
            process_group=self._group,
        )
        if self.parallel.ranks.first:
            written = self._thread.submit(self._finish, written, temporary, final)
        self._writing = step, written
        return final

    def wait(self) -> None:
        """Until the checkpoint that is being written, if any, has its name.

        Raises OutputError on all ranks, with the step, where any of them could not write.
        """
        if self._writing is None:
            return
        (step, written), self._writing = self._writing, None
        error: BaseException | None = None
        try:
            written.result()
        except (Exception, CheckpointException) as found:
            error = found
        self._agree(step, error)

    def close(self) -> None:
        """Waits alone, and silently: for when something else has ended the training."""
        if self._writing is not None:
            with suppress(Exception, CheckpointException):
                self._writing[1].result()
        self._thread.shutdown()

    def _prepare(self, temporary: Path, step: int) -> Exception | None:
        """Makes the folder, with everything but the tensors. Returns why that cannot be."""
        rmtree(temporary, ignore_errors=True)  # of a process that was killed
        facts = {
            "step": step,
            "config": to_yaml(self.config),
            "sources": facts_to_json(self.source_facts),
            "versions": {"showo": __version__, "torch": torch.__version__},
        }
        try:
            temporary.mkdir(parents=True)
            (temporary / FACTS_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            if self.attach is not None:
                self.attach(temporary)
        except Exception as error:
            rmtree(temporary, ignore_errors=True)
            return error
        return None

    def _finish(self, written: Future[Any], temporary: Path, final: Path) -> None:
        """Rank 0's thread: waits until all ranks have written, then gives the folder its name."""
        try:
            written.result()
            write_checksums(temporary)
            replace_folder(temporary, final)
            name_latest(final)
            prune_checkpoints(self.run, self.config.keep_checkpoints, self.config.keep_every)
        finally:
            rmtree(temporary, ignore_errors=True)

    def _agree(self, step: int, error: BaseException | None) -> None:
        """Raises on all ranks what any of them has met: OutputError where the operating system refused to write."""
        reason = None if error is None else _refusal(error)
        if error is not None and reason is None:
            raise error
        reason = next((each for each in self.parallel.ranks.all_of(reason) if each is not None), None)
        if reason is not None:
            raise OutputError(f"step {step} could not be saved in {self.folder}: {reason}") from error


def _refusal(error: BaseException | None) -> str | None:
    """Why the operating system refused to write; None where that is not behind the error."""
    while error is not None:
        if isinstance(error, CheckpointException):  # what ranks have met, by their numbers
            reasons = [_refusal(found) for found, _ in error.failures.values()]
            return next((reason for reason in reasons if reason is not None), None)
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if isinstance(error, OutputError):
            return str(error)
        error = error.__cause__ or error.__context__
    return None
