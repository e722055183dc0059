"""A temporary folder that lasts as long as its process, and is cleared away by the next one if that was killed.

A process that is killed cannot clean up. So a folder is held by a file lock, which the kernel lets go whatever ends the
process; who makes a new folder first removes those of the same prefix that nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

LOCK: Final = "held"
"""Name of the lock file in a folder. A folder without it is somebody else's, or just being made."""


class SessionFolder:
    """A new folder under the system's temporary folder (`TMPDIR`).

    Args:
        prefix: of its name. Unheld folders of this prefix that hold a lock file are removed.
    """

    def __init__(self, prefix: str) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            _remove_if_unheld(left)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        # Locked before it gets its name, so that nobody finds it unlocked.
        unnamed = self.path / f"{LOCK}.new"
        self._lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / LOCK)

    def remove(self) -> None:
        """Removes the folder; what cannot be removed stays until the next one is made."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_if_unheld(folder: Path) -> None:
    with contextlib.suppress(OSError):  # gone meanwhile, or not ours
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError while its process lives
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
