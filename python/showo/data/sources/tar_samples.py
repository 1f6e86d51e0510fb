"""The files of one sample of a tar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from showo.data.index import Scan, open_index
from showo.data.open_files import OpenFiles
from showo.data.tar import TarError, walk_span
from showo.data.tar_scan import SOUND, is_hidden, split_name
from showo.errors import SampleError


class TarSamples:
    """Samples of tars by number, as `scan` finds them in each."""

    def __init__(self, paths: Sequence[Path], scan: Scan, cache: Path) -> None:
        self.files = OpenFiles(open_index(paths, scan, cache))

    def __len__(self) -> int:
        return len(self.files.index)

    def read(self, number: int, types: Sequence[str]) -> tuple[Path, str, dict[str, bytes]]:
        """Path of the tar, key, and the sample's files of `types` by type.

        Raises:
            SampleError: the sample lies at or behind damage, is too large, has two files of one type, or a file is a
                link or a device, whose bytes are not in the tar.
            DataError: the tar is no longer the one that was indexed.
        """
        index = self.files.index
        file, (start, end, damage) = index.locate(number)
        path = index.files[file]
        if damage != SOUND:
            raise SampleError(
                f"{path}: damaged at byte {damage}; the sample from byte {start} on is not used", "damaged tar"
            )
        data = self.files.read(file, start, end - start, f"{path}: bytes {start} to {end}")
        key, found = "", dict[str, bytes]()
        try:
            for member in walk_span(data, start, str(path)):
                if is_hidden(member) or split_name(member)[1] not in types:
                    continue
                key, kind = split_name(member)
                if member.kind != "file":
                    raise SampleError(f"{path}: {member.name} is a {member.kind}; a tar of samples holds files", "link")
                if kind in found:
                    raise SampleError(f"{path}: {key} has several .{kind} files", "several files of one type")
                found[kind] = data[member.offset : member.offset + member.size]
        except TarError as error:  # the tar was whole when it was indexed, and has kept its time since
            raise SampleError(str(error), "damaged tar") from error
        return path, key, found
