"""Parquet files with an image column: the Hub's struct of `bytes` and `path`, or plain bytes.

Rows are read forwards in small batches, so that a row group of thousands of photographs is never held at once.
"""

from __future__ import annotations

from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import SampleFailureError

NAMES: Final = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "bytes")
"""Names that decide when a table has several columns of bytes."""
BATCH_ROWS: Final = 8


def image_rows(stream: BinaryIO) -> int | str:
    """Number of rows of a table with an image column, or why there is none.

    Raises:
        OSError, pyarrow.ArrowException: it is no parquet file.
    """
    with pq.ParquetFile(stream, pre_buffer=False) as file:
        column = image_column(file.schema_arrow)
        if column is not None:
            return int(file.metadata.num_rows)
        found = ", ".join(f"{field.name}: {field.type}" for field in file.schema_arrow)
        return f"expected an image column (bytes, or a struct with bytes and path), found {found}"[:400]


def image_column(schema: pa.Schema) -> str | None:
    """The column with images: the only candidate, or the one with a usual name; None if that does not decide."""
    candidates = [field.name for field in schema if _is_bytes(field.type) or _is_hub_struct(field.type)]
    if len(candidates) == 1:
        return str(candidates[0])
    for name in NAMES:
        if name in candidates:
            return name
    return None


class ParquetRows:
    """Reads images by row; cheapest in ascending order.

    Args:
        stream: seekable; closed with the reader.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._file = pq.ParquetFile(stream, pre_buffer=False)
        column = image_column(self._file.schema_arrow)
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
