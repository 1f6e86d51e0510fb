"""What a run writes down as it goes: figures and pictures, for programs, TensorBoard and Weights & Biases."""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from torch.utils.tensorboard import SummaryWriter

from showo.errors import OutputError
from showo.files import atomic_write_text
from showo.pictures import save_image
from showo.train.json_log import JsonLog

_HEADER = struct.Struct("<QI")  # of a record: the length of its data, and the checksum of the length
_FOOTER_BYTES = 4  # the checksum of the data


class RunLog:
    """Context manager that writes RUN/log.jsonl, RUN/logs and RUN/pictures; raises OutputError where that fails.

    step: the step after which the run goes on. What an earlier process has logged of later steps, which will be done
    again, is taken out of its files.
    project: of Weights & Biases, which gets the same. A run that goes on is the same run there.
    """

    def __init__(self, run: Path, step: int, project: str = "", settings: Mapping[str, Any] | None = None) -> None:
        self.run = run
        self.wandb = open_wandb(project, run, settings or {}) if project else None
        with self._writing():
            self.lines = JsonLog(run / "log.jsonl", step)
            forget_after(run / "logs", step)
            # The purge step is for a TensorBoard that is running, and has read the events that are cut off.
            self.writer = SummaryWriter(str(run / "logs"), purge_step=step + 1 if step else None)

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        named = {f"{group}/{name}": value for name, value in values.items()}
        with self._writing():
            self.lines.write(step, named)
            for name, value in named.items():
                self.writer.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(named, step=step)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        with self._writing():
            save_image(picture, self.run / "pictures" / f"{name}-{step:06d}.png")
            self.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
        if self.wandb is not None:
            import wandb

            self.wandb.log({name: wandb.Image(picture)}, step=step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.wandb is not None:
                self.wandb.finish(exit_code=0 if value is None else 1)
            with self._writing():
                self.lines.close()
                self.writer.close()
        except OutputError:
            if value is None:  # else that error says more
                raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.run}: the log cannot be written: {error.strerror or error}") from error


def open_wandb(project: str, run: Path, settings: Mapping[str, Any]) -> Any:
    """The run of Weights & Biases that belongs to the run folder, which keeps its id in RUN/wandb-id."""
    import wandb

    path = run / "wandb-id"
    if not path.exists():
        atomic_write_text(path, secrets.token_hex(8))
    id_ = path.read_text(encoding="utf-8")
    return wandb.init(project=project, name=run.name, id=id_, dir=str(run), resume="allow", config=dict(settings))


def forget_after(logs: Path, step: int) -> None:
    """Cut off every event file in `logs` before its first event of a later step. Steps rise within a file."""
    for path in logs.glob("events.out.tfevents.*"):
        offset = _first_after(path, step)
        if offset is not None:
            os.truncate(path, offset)


def _first_after(path: Path, step: int) -> int | None:
    """Where in an event file the first event after `step` begins; None where there is none before any damage."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            begin, (length, _) = file.tell() - _HEADER.size, _HEADER.unpack(header)
            if file.tell() + length > size:  # the process that wrote it ended within this record
                return None
            try:
                event = Event.FromString(file.read(length))
            except DecodeError:
                return None
            if event.step > step:
                return begin
            file.seek(_FOOTER_BYTES, os.SEEK_CUR)
    return None
