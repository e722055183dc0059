"""The files that a command writes: all of them appear in their folder, or none, and one message says what is wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pipeline.errors import InputError
from pipeline.storage.local import explained


class OutputFiles:
    """Files on their way into a folder.

    They are written into a hidden folder inside it and moved to their names when the `with` block ends without an
    error, replacing older ones; otherwise nothing of them stays. (They are moved one by one: a process killed, or a
    disk lost, just then leaves those that were moved.) That something can be written there is found out when
    the block begins, before any long work in it.

    Args:
        folder: made if it is missing.

    Raises:
        InputError: no folder can be there.
        StorageError: a full disk, missing rights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []
        """What was written, or will be when the block ends."""
        self._scratch: Path | None = None
        self._made_folder = False

    def __enter__(self) -> Self:
        with _explained(self.folder):
            self._made_folder = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        return self

    @property
    def scratch(self) -> Path:
        """Where the files are before the end of the block.

        Made when it is first asked for: a process killed before it has written anything leaves nothing.
        """
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix=".grainmill.", dir=self.folder))
        return self._scratch

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._scratch is not None:
                self._publish()
        finally:
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)
            if self._made_folder:
                with contextlib.suppress(OSError):  # there are files in it
                    self.folder.rmdir()

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Where to write a file; its name may begin with a folder's.

        Raises:
            InputError: there is a folder of this name, or a file where its folder should be.
            StorageError: instead of any OSError inside.
        """
        final = self.folder / name
        with _explained(final):
            if final.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder has that name")
            if final.parent.exists() and not final.parent.is_dir():
                raise NotADirectoryError
            path = self.scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path
            self.names.append(name)

    def write(self, name: str, data: bytes) -> None:
        """Writes a file; see `writing`."""
        with self.writing(name) as path:
            path.write_bytes(data)

    def _publish(self) -> None:
        for path in sorted(each for each in self.scratch.rglob("*") if each.is_file()):
            final = self.folder / path.relative_to(self.scratch)
            with _explained(final):
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, final)


def write_whole(path: Path, data: bytes) -> None:
    """Writes one file that appears whole; raises as `OutputFiles`."""
    with OutputFiles(path.parent) as files:
        files.write(path.name, data)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """One message for an OSError: InputError if no such path can be, StorageError otherwise."""
    with explained("write", path):
        try:
            yield
        except (FileExistsError, NotADirectoryError, IsADirectoryError, FileNotFoundError) as error:
            in_the_way = [each for each in (path, *path.parents) if each.exists() and not each.is_dir()]
            cause = f"{in_the_way[0]} is a file" if in_the_way else (error.strerror or str(error)).lower()
            raise InputError(f"cannot write {path}: {cause}; choose another --output") from error
