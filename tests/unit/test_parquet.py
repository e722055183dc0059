"""Parquet is read from bytes in one way, which leaves nothing to Arrow's threads when the process ends."""

from __future__ import annotations

import ast
import collections
import io
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.format.schema import FAILURES_SCHEMA
from pipeline.shards.writer import parquet_bytes
from pipeline.sources.parquet_rows import ParquetRows
from pipeline.storage.parquet import parquet_table

ROWS = [{name: f"{name} {number}" for name in FAILURES_SCHEMA.names} for number in range(3)]


def failures_table() -> pa.Table:
    return pa.Table.from_pylist(
        [{**row, "reason": "truncated", "stage": "decode"} for row in ROWS], schema=FAILURES_SCHEMA
    )


def test_a_table_is_what_pyarrow_reads() -> None:
    table = failures_table()
    data = parquet_bytes(table.append_column("more", pa.array([1, 2, 3])))
    for columns in (None, ["key", "reason"], ["reason", "key"]):
        expected = pq.read_table(io.BytesIO(data), columns=columns)
        assert parquet_table(data, columns=columns).equals(expected)
        within = pq.read_table(io.BytesIO(data), schema=FAILURES_SCHEMA, columns=columns)
        found = parquet_table(data, schema=FAILURES_SCHEMA, columns=columns)
        assert found.equals(within)
        assert found.schema.equals(within.schema, check_metadata=True)
    for damaged in (b"", data[:-9], data[40:], b"PAR1" + bytes(40) + b"PAR1"):
        with pytest.raises((OSError, ValueError)):
            parquet_table(damaged)
    with pytest.raises(KeyError, match="other"):
        parquet_table(data, columns=["key", "other"])
    with pytest.raises(KeyError):
        parquet_table(parquet_bytes(table.drop_columns(["key"])), schema=FAILURES_SCHEMA)


class Traced(bytes):
    """Bytes that know on which thread they are freed, as Arrow's buffers over them do."""

    threads: ClassVar[collections.Counter[str]] = collections.Counter()

    def __del__(self) -> None:
        self.threads[f"freed by {threading.current_thread().name}"] += 1


class TracedStream(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        Traced.threads[f"read by {threading.current_thread().name}"] += 1
        return Traced(super().read(size))


def test_only_the_calling_thread_reads_and_frees(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a thread of Arrow's still holds when the interpreter ends would abort the process."""
    monkeypatch.setattr("pipeline.storage.parquet.io", SimpleNamespace(BytesIO=TracedStream))
    here = threading.current_thread().name
    data = parquet_bytes(failures_table())
    for _ in range(50):
        assert parquet_table(data, schema=FAILURES_SCHEMA).num_rows == 3
    photographs = pa.table({"image": [bytes(2000)] * 40})
    for _ in range(20):
        rows = ParquetRows(TracedStream(parquet_bytes(photographs)))
        assert rows.image(39) == bytes(2000)
        rows.close()
        del rows
    assert set(Traced.threads) == {f"read by {here}", f"freed by {here}"}
    assert Traced.threads.total() > 500


def test_nothing_else_reads_parquet_where_a_thread_could_outlive_the_interpreter(repository: Path) -> None:
    """`read_table` and datasets use threads whatever they are told, a `ParquetFile` unless it is told otherwise."""
    reading = {"read_table", "read_parquet", "ParquetDataset", "make_fragment", "to_batches", "scanner"}
    threaded = {"read_row_group", "read_row_groups", "iter_batches"}
    found = []
    for package in ("pipeline", "model", "benchmarks"):
        for path in sorted((repository / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                given = {each.arg: each.value for each in node.keywords}
                ahead = name == "ParquetFile" and (
                    "pre_buffer" not in given or ast.unparse(given["pre_buffer"]) != "False"
                )
                if name in reading or ahead or (name in threaded and "use_threads" not in given):
                    found.append(f"{path.relative_to(repository)}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert not found


@pytest.mark.slow
def test_no_start_of_many_aborts(tmp_path: Path) -> None:
    """Processes that end at once after reading, more of them at a time than there are cores."""
    path = tmp_path / "failures.parquet"
    path.write_bytes(parquet_bytes(failures_table()))
    script = (
        "import sys, pathlib; from pipeline.storage.parquet import parquet_table; import pyarrow.dataset\n"
        "print(parquet_table(pathlib.Path(sys.argv[1]).read_bytes()).num_rows)"
    )

    def start(number: int) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    with ThreadPoolExecutor(4) as threads:
        ends = collections.Counter(threads.map(start, range(60)))
    assert ends == {(0, "3\n"): 60}
