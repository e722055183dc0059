"""Work that takes longer than a request: begun, watched by its share, stopped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import GrainmillError

Report = Callable[[float], None]
"""Takes the share that is done, and raises `StoppedError` when the job is to end."""


class StoppedError(Exception):
    """The job was stopped."""


@dataclass
class Job:
    """One piece of work, in a thread of its own.

    Attributes:
        share: done, 0 to 1.
        state: running, done, stopped or failed.
        message: what went wrong, or what came of it.
    """

    share: float = 0.0
    state: str = "running"
    message: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self, work: Callable[[Report], str]) -> None:
        """Begins; `work` returns what came of it, in words."""
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def stop(self) -> None:
        """Ends it at its next report."""
        self._stop.set()

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return {"share": round(self.share, 4), "state": self.state, "message": self.message}

    def _run(self, work: Callable[[Report], str]) -> None:
        try:
            self.message = work(self._report)
            self.share, self.state = 1.0, "done"
        except StoppedError:
            self.state = "stopped"
        except GrainmillError as error:
            self.message, self.state = str(error), "failed"
        except Exception:
            logging.getLogger(__name__).exception("a job of the desk failed")
            self.message, self.state = "it failed; the terminal says why", "failed"

    def _report(self, share: float) -> None:
        self.share = share
        if self._stop.is_set():
            raise StoppedError
