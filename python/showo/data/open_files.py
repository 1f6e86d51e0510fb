"""Reading pieces of large files at random: few are open at a time, none may change on the way."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from showo.data.index import Index
from showo.errors import DataError, SampleError

MAX_OPEN = 32
MAX_PIECE_BYTES = 64 * 1024 * 1024  # of one sample, or of one member of a tar

T = TypeVar("T")


class Recent(Generic[T]):
    """What was made last, by key, up to a total weight. A copy in another process, also by a fork, begins empty."""

    def __init__(
        self, limit: int, weight: Callable[[T], int] = lambda _: 1, drop: Callable[[T], None] = lambda _: None
    ) -> None:
        self._limit, self._weight, self._drop = limit, weight, drop
        self._kept: OrderedDict[Any, T] = OrderedDict()
        self._total, self._process = 0, os.getpid()

    def get(self, key: object, make: Callable[[], T]) -> T:
        if self._process != os.getpid():  # file positions and locks are shared with the parent
            self._kept, self._total, self._process = OrderedDict(), 0, os.getpid()
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = self._kept[key] = make()
        self._total += self._weight(made)
        while self._total > self._limit and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._total -= self._weight(oldest)
            self._drop(oldest)
        return made


class OpenFiles:
    """The files of an index, of which the last used ones are open. Can be copied to another process."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._descriptors: Recent[int] = Recent(MAX_OPEN, drop=os.close)

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, (self.index,)

    def read(self, file: int, start: int, length: int, origin: str) -> bytes:
        """`length` bytes of a file of the index, from `start` on. `origin` stands for them in messages.

        Raises:
            DataError: the file is gone, cannot be read, or is no longer the one that was indexed.
            SampleError: the piece is longer than MAX_PIECE_BYTES.
        """
        if length > MAX_PIECE_BYTES:
            raise SampleError(f"{origin}: {length} bytes, more than {MAX_PIECE_BYTES}", "too large")
        path = self.index.files[file]
        try:
            self.index.check_unchanged(file, os.stat(path))
            descriptor = self._descriptors.get(file, lambda: os.open(path, os.O_RDONLY))
            data = os.pread(descriptor, length, start)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        if len(data) != length:
            raise DataError(
                f"{path}: ends within byte {start} to {start + length}, which were there when it was indexed"
            )
        return data


def decode_text(data: bytes, origin: str) -> str:
    """UTF-8 without a byte order mark. Raises SampleError for any other encoding."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(
            f"{origin}: expected UTF-8, got byte 0x{data[error.start]:02x} at {error.start}; convert the file, for "
            "example with iconv -f latin1 -t utf-8",
            "text is not UTF-8",
        ) from error
