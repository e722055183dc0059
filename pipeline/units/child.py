"""The child of a worker: `python -m pipeline.units.child`. Does the native work, and may die of it.

Messages from the supervisor: `("run", RunSpec)`, `("open", UnitSpec)`, `("mine", positions)`.
Answers: `("ok", value)`, `("error", GrainmillError)` for what ends the run, `("crashed", reason, text)` for an
exception that nobody expected; before them any number of `("holding", position, identity)`.
"""

from __future__ import annotations

import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from ..environment.numeric import fix_threads
from ..errors import GrainmillError
from .processes import parent_connection

if TYPE_CHECKING:
    from .batches import BatchMiner, RunSpec


def main() -> None:
    """Answers until the pipe ends."""
    connection = parent_connection()
    miner: BatchMiner | None = None
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if message[0] == "run":
                miner = _make_miner(message[1])
                answer: tuple[Any, ...] = ("ok", (miner.batch_size, miner.environment()))
            else:
                assert miner is not None
                answer = ("ok", _answer(miner, message, connection))
        except GrainmillError as error:
            answer = ("error", error)
        except MemoryError as error:
            answer = ("crashed", "out_of_memory", f"out of memory while mining ({error})")
        except Exception as error:  # whatever a library raises is evidence against the sample in hand
            reason = "gpu_memory" if type(error).__name__ == "OutOfMemoryError" else "worker_died"
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
            answer = ("crashed", reason, f"{type(error).__name__} at {where}: {error}")
        try:
            connection.send(answer)
        except OSError:
            return


def _make_miner(run: RunSpec) -> BatchMiner:
    fix_threads()
    from .batches import BatchMiner

    miner = BatchMiner(run)
    fix_threads()  # once more, for what was imported on the way
    return miner


def _answer(miner: BatchMiner, message: tuple[Any, ...], connection: Connection) -> Any:
    kind = message[0]
    if kind == "open":
        return miner.open(message[1])
    if kind == "mine":
        return miner.mine(message[1], holding=lambda *held: connection.send(("holding", *held)))
    raise ValueError(f"no message {kind!r}")


if __name__ == "__main__":
    main()
