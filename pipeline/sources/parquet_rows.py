"""Parquet files with an image column: the Hub's struct of `bytes` and `path`, or plain bytes.

Rows are read forwards in small batches, so that a row group of thousands of images is never held at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import SampleFailureError
from .tars import name_problem, printable

NAMES: Final = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "bytes")
"""Names that decide when a table has several columns of bytes."""
BATCH_ROWS: Final = 8


def image_rows(stream: BinaryIO, column: str | None = None) -> Iterator[str] | str:
    """What the rows of a table with an image column are called, in order, or why there is no such column.

    A row is called by its number and, of the Hub's struct, the `path` that it keeps: `17/000000000139.jpg`.

    Args:
        stream: seekable, open while the names are taken.
        column: that holds the images; None for the one that `image_column` finds.

    Raises:
        OSError, pyarrow.ArrowException: it is no parquet file.
    """
    file = pq.ParquetFile(stream, pre_buffer=False)
    found = image_column(file.schema_arrow, column)
    if found is not None:
        return _row_names(file, found)
    fields = ", ".join(f"{field.name}: {field.type}" for field in file.schema_arrow)
    return f"{_expected(file.schema_arrow, column)}, found {fields}"[:400]


def image_column(schema: pa.Schema, column: str | None = None) -> str | None:
    """The column with images: the one asked for, the only candidate, or the one with a usual name; None: undecided."""
    candidates = [field.name for field in schema if _is_bytes(field.type) or _is_hub_struct(field.type)]
    if column is not None:
        return column if column in candidates else None
    if len(candidates) == 1:
        return str(candidates[0])
    for name in NAMES:
        if name in candidates:
            return name
    return None


def _expected(schema: pa.Schema, column: str | None) -> str:
    kind = "(bytes, or a struct with bytes and path)"
    if column is not None:
        return f"expected the image column {column!r} {kind}"
    several = sum(_is_bytes(field.type) or _is_hub_struct(field.type) for field in schema) > 1
    return f"expected one image column {kind}" + (", or --image-column to name one" if several else "")


def _row_names(file: pq.ParquetFile, column: str) -> Iterator[str]:
    kind = file.schema_arrow.field(column).type
    has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        paths: list[str | None] = [None] * rows
        if has_path:
            # Of a damaged page the rows have numbers alone; their images say what is wrong.
            with contextlib.suppress(OSError, pa.ArrowException):
                found = file.read_row_group(group, columns=[f"{column}.path"], use_threads=False).column(0)
                paths = [None if each is None else each.get("path") for each in found.to_pylist()]
        for row, path in enumerate(paths, start=first):
            name = _clean(path)
            yield f"{row}/{name}" if name else str(row)
        first += rows


def _clean(path: str | None) -> str | None:
    """A stored path, if it is a plain relative one; else its last part (nobody's home folder is told), or None."""
    if not isinstance(path, str):
        return None
    for name in (path, path.replace("\\", "/").rpartition("/")[2]):
        raw = name.encode("utf-8", "surrogatepass")
        if name and name_problem(raw) is None:
            return printable(raw)
    return None


class ParquetRows:
    """Reads images by row; cheapest in ascending order.

    Args:
        stream: seekable; closed with the reader.
        column: as for `image_rows`.
    """

    def __init__(self, stream: BinaryIO, column: str | None = None) -> None:
        self._stream = stream
        self._file = pq.ParquetFile(stream, pre_buffer=False)
        column = image_column(self._file.schema_arrow, column)
        assert column is not None, "planned as a table with an image column"
        self._column = column
        self._group = -1
        self._group_first = self._group_end = 0
        self._first, self._batch = 0, pa.array([])
        self._batches = iter(())
        self._damaged: tuple[int, int, str] | None = None
        """First and last row (exclusive) of what cannot be read of the group in hand, and why."""

    def close(self) -> None:
        self._file.close()
        self._stream.close()

    def image(self, row: int) -> bytes:
        """The image's bytes in a row.

        Raises:
            SampleFailureError: `incomplete_sample` for a null, `source_missing` for a path without bytes, `unreadable`
                for a row in a damaged page or behind one in its group.
        """
        if self._damaged is not None and self._damaged[0] <= row < self._damaged[1]:
            raise SampleFailureError("unreadable", "read", f"row {row}: {self._damaged[2]}")
        try:
            self._seek(row)
        except (OSError, pa.ArrowException, StopIteration) as error:
            message = f"damaged from row {self._first} on ({error})"[:300]
            self._damaged = (self._first, self._group_end, message)
            self._group_first = self._group_end = 0
            raise SampleFailureError("unreadable", "read", f"row {row}: {message}") from error
        value = self._batch[row - self._first].as_py()
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                raise SampleFailureError("source_missing", "read", f"row {row} has a path and no bytes")
            value = value.get("bytes")
        if value is None:
            raise SampleFailureError("incomplete_sample", "read", f"row {row} has no image")
        return bytes(value)

    def _seek(self, row: int) -> None:
        if not self._group_first <= row < self._group_end or row < self._first:
            self._open_group(row)
        while row >= self._first + len(self._batch):
            self._first, self._batch = self._first + len(self._batch), pa.array([])
            self._batch = next(self._batches).column(0)

    def _open_group(self, row: int) -> None:
        first = 0
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if row < first + rows:
                self._group_first, self._group_end = first, first + rows
                self._first, self._batch = first, pa.array([])
                self._batches = self._file.iter_batches(
                    BATCH_ROWS, row_groups=[group], columns=[self._column], use_threads=False
                )
                return
            first += rows
        raise SampleFailureError("truncated", "read", f"row {row} of {first}")


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_hub_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type))
