"""A run or a release, opened for reading by where it is."""

from __future__ import annotations

import os

from ..errors import InputError
from ..shards.plan import open_plan
from ..storage.open import open_versioned
from .reader import Dataset
from .release import ReleaseReader, read_manifest
from .run import RunReader


def open_dataset(location: str | os.PathLike[str]) -> Dataset:
    """Opens a local directory or a URL of an allowed scheme: a run, a release, or `REL/versions/V` of one.

    Raises:
        InputError: neither is there.
        SchemaError: a release of another format.
    """
    storage = open_versioned(location)
    plan = open_plan(storage)
    if plan is not None:
        return RunReader(storage, plan)
    released = read_manifest(storage)
    if released is not None:
        return ReleaseReader(storage, released)
    raise InputError(f"{storage.location}: expected a run (plan.json), found none; `grainmill mine` makes one")
