"""Parquet from bytes, read so that a process which ends soon after does not abort."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_table(data: bytes, *, columns: Sequence[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """A table from the bytes of a parquet file; the one place where the project does this.

    `pq.read_table` of a Python object reads and frees its buffers on Arrow's own threads. When the process ends soon
    after, such a thread may ask for the interpreter's lock while the interpreter is being taken down, and the process
    aborts (exit status 134, output complete: apache/arrow issues 34314 and 33975); on a busy machine some of a hundred
    starts did. So everything here is read, decoded and freed by the calling thread: it takes `ParquetFile` with
    `pre_buffer=False` and `use_threads=False` for that, `read_table` uses threads whatever it is told.

    Args:
        data: the whole file.
        columns: those to read. Default: those of `schema`, or all.
        schema: what the columns are made, in their order and without others the file may have.

    Raises:
        OSError, ValueError: not parquet, damaged, or values that do not fit the schema (pyarrow's errors are these).
        KeyError: no such column.
    """
    names = list(columns) if columns is not None else None if schema is None else schema.names
    with pq.ParquetFile(io.BytesIO(data), pre_buffer=False) as file:
        table = file.read(columns=names, use_threads=False)
    if names is not None:
        table = table.select(names)  # a column that is not there was passed over until here
    if schema is None:
        return table
    return table.cast(pa.schema([schema.field(name) for name in table.column_names], metadata=schema.metadata))
