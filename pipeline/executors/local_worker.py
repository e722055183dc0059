"""A worker of the local executor: `python -m pipeline.executors.local_worker`. Does units until its pipe ends.

In: `RunSpec`, then `UnitSpec`s. Out: `("ready", None)`, then for each unit any number of `("progress", UnitProgress)`
and one `("done", record)` or `("failed", GrainmillError)`.
"""

from __future__ import annotations

import time
import traceback

from ..errors import GrainmillError
from ..shards.writer import warm_up
from ..storage.open import open_storage
from ..units.attempt import mine_unit
from ..units.batches import RunSpec
from ..units.processes import parent_connection
from ..units.supervisor import SupervisedMiner


def main() -> None:
    """Returns when the driver is gone or wants no more."""
    connection = parent_connection()
    run: RunSpec = connection.recv()
    miner = SupervisedMiner(run)
    try:
        storage = open_storage(run.output)
        warm_up()
        miner.start()
        connection.send(("ready", None))
        while True:
            ended_s = time.perf_counter()
            unit = connection.recv()
            commit = mine_unit(
                unit,
                run,
                storage,
                miner,
                on_progress=lambda progress: connection.send(("progress", progress)),
                waited_s=time.perf_counter() - ended_s,
            )
            connection.send(("done", commit.record))
    except GrainmillError as error:
        connection.send(("failed", error))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception:  # a defect of ours: no other worker would do better, so it ends the run
        connection.send(("failed", GrainmillError(f"a worker failed unexpectedly:\n{traceback.format_exc()}")))
    finally:
        miner.close()


if __name__ == "__main__":
    main()
