"""One process at a time writes into a run folder.

The lock is the operating system's (flock on RUN/lock): it ends with its process, however that ends, and works between
containers of one machine, and between machines on NFS. The file says who holds it, for the message, and for file
systems without locks, where that text is all there is.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from showo.errors import OutputError, RunInUseError
from showo.files import make_folder

LOCK_NAME = "lock"
_WITHOUT_LOCKS = (
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EOPNOTSUPP,
)  # the file system has none
_held: set[int] = set()  # descriptors of the locks of this process


@dataclass(frozen=True)
class Owner:
    """A process: its pid alone is no name, as pids are used again, and mean another process in another container.

    kernel: the boot of the machine and the pid namespace, within which `pid` and `started` belong to one process only.
    started: when the process began, in clock ticks after the boot.
    """

    host: str
    pid: int
    kernel: str
    started: int

    @classmethod
    def this_process(cls) -> Owner:
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Owner:
        """A process of this machine."""
        return cls(socket.gethostname(), pid, _kernel(), _started(pid) or 0)

    def is_here(self) -> bool:
        """Whether this process would see the owner if it were alive."""
        return bool(self.kernel) and self.kernel == _kernel()

    def is_alive(self) -> bool:
        return self.is_here() and _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def run_lock(run: Path) -> Iterator[Owner | None]:
    """Hold the lock of a run folder, which is made if needed; yields the dead owner of a lock that was left behind.

    Raises:
        RunInUseError: another process holds the lock; the message names it.
        OutputError: the folder or the lock file cannot be written.
    """
    is_new = not os.path.exists(run)
    make_folder(run)
    path = run / LOCK_NAME
    try:
        descriptor, before = _claim(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    _held.add(descriptor)
    try:
        yield before
    finally:
        path.unlink(missing_ok=True)  # while it is locked: whoever gets the lock of this file sees that it is gone
        _held.discard(descriptor)
        os.close(descriptor)
        if is_new:
            with suppress(OSError):  # unless something was written
                run.rmdir()


def _claim(path: Path) -> tuple[int, Owner | None]:
    """Locks the file and signs it: its descriptor, and who had signed it before."""
    descriptor, locks = _open_locked(path)
    try:
        before = _read_owner(descriptor)
        if before is not None and (before.is_alive() or not (locks or before.is_here())):
            hint = "" if before.is_here() else f"; if that process is gone, delete {path}"
            raise RunInUseError(f"{path.parent} is in use by {before}{hint}")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(Owner.this_process())).encode(), 0)
        os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, before


def _open_locked(path: Path) -> tuple[int, bool]:
    """A descriptor of the lock file, locked, and whether the file system has locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor, True
            os.close(descriptor)  # the owner deleted the file between our opening and locking it
        except BlockingIOError:
            owner = _read_owner(descriptor)
            os.close(descriptor)
            raise RunInUseError(f"{path.parent} is in use by {owner or 'another process'}") from None
        except OSError as error:
            if error.errno in _WITHOUT_LOCKS:
                return descriptor, False
            os.close(descriptor)
            raise


def _read_owner(descriptor: int) -> Owner | None:
    """Who has written the lock file; None where it is empty or damaged."""
    try:
        found = Owner(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None
    return found if isinstance(found.pid, int) else None


def _kernel() -> str:
    """The boot of this machine and the pid namespace of this process; empty where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks after the boot; None where it has ended or does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name before may hold anything
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _let_go() -> None:
    """A forked worker holds no lock: it may outlive the process that does."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
