"""Parquet as LeRobot v3.0 lays it out: files of bounded size, each closed before the next begins."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from brain_service.datasets.columns import Column
from brain_service.datasets.lerobot_layout import FILE_MB, FILES_A_CHUNK
from brain_service.spec import Feature

__all__ = ["ParquetFiles", "arrow_column", "arrow_type", "write_tasks"]

_PRIMITIVES: Mapping[str, Any] = {
    "float32": pa.float32(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "uint8": pa.uint8(),
    "text": pa.string(),
}


def arrow_type(feature: Feature) -> Any:
    """Return the Arrow type that `lerobot` reads a feature from: `datasets`' Value, List, Array*D or Image."""
    if feature.dtype == "image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    found = _PRIMITIVES[feature.dtype]
    if feature.shape in ((), (1,)):
        return found
    if len(feature.shape) == 1:
        return pa.list_(found, feature.shape[0])
    for _ in feature.shape:
        found = pa.list_(found)
    return found


def arrow_column(column: Column, feature: Feature) -> Any:
    """Return T values of a feature as an Arrow array of T rows."""
    kind = arrow_type(feature)
    if feature.dtype == "image":
        return pa.array([{"bytes": data, "path": None} for data in column], kind)
    if feature.dtype == "text":
        return pa.array(column, kind)
    values = np.ascontiguousarray(column)
    found = pa.array(values.reshape(-1), _PRIMITIVES[feature.dtype])
    if feature.shape in ((), (1,)):
        return found
    if len(feature.shape) == 1:
        return pa.FixedSizeListArray.from_arrays(found, feature.shape[0])
    for size in reversed(feature.shape):
        found = pa.ListArray.from_arrays(np.arange(0, len(found) + 1, size, dtype=np.int32), found)
    return found


class ParquetFiles:
    """Writes tables one after another to `chunk-000/file-000.parquet`, ... A context manager.

    A file is closed before a table that would take it over `file_bytes` in memory; a table is never divided.
    """

    def __init__(self, root: Path, template: str, file_bytes: int = FILE_MB * 1024**2) -> None:
        self._root = root
        self._template = template
        self._file_bytes = file_bytes
        self._files = 0
        self._held_bytes = 0
        self._writer: Any = None

    def __enter__(self) -> "ParquetFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def place(self, size_bytes: int) -> tuple[int, int]:
        """Return the chunk and file index of the next table, of `size_bytes`; the file before it is closed."""
        if self._writer is not None and self._held_bytes + size_bytes > self._file_bytes:
            self._close()
        number = self._files - (self._writer is not None)
        return divmod(number, FILES_A_CHUNK)

    def write(self, table: Any) -> None:
        """Append a table as one row group, in the file that `place` told."""
        if self._writer is None:
            chunk, file = divmod(self._files, FILES_A_CHUNK)
            path = self._root / self._template.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, table.schema, compression="snappy", write_page_checksum=True)
            self._files += 1
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._held_bytes += table.nbytes

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._held_bytes = None, 0


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """Write `tasks.parquet` as pandas does for a frame whose index is the task: `lerobot` reads it with pandas."""
    described = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
            for name, kind, dtype in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
        ],
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    path.parent.mkdir(parents=True, exist_ok=True)
    described_table = table.replace_schema_metadata({"pandas": json.dumps(described)})
    pq.write_table(described_table, path, write_page_checksum=True)
