"""Parquet files in a storage, checked against a schema when they are read."""

from __future__ import annotations

import io

import pyarrow as pa

from pipeline.storage.base import Storage

_MAX_BYTES = 1 << 31
_MAX_ROWS = 50_000_000


class TableError(ValueError):
    """A Parquet file is absent, damaged, or has other columns: one sentence that names it."""


def read_table(storage: Storage, path: str, schema: pa.Schema, keep_metadata: bool = False) -> pa.Table:
    """Read a Parquet file with at least the columns of `schema`, of these types. Raises TableError."""
    import pyarrow.parquet as pq

    where = storage.where(path)
    try:
        file = pq.ParquetFile(pa.BufferReader(storage.read_bytes(path, _MAX_BYTES)))
        if file.metadata.num_rows > _MAX_ROWS:
            raise TableError(f"{where} has {file.metadata.num_rows} rows, more than {_MAX_ROWS}")
        found = file.schema_arrow
        for field in schema:
            if field.name not in found.names or found.field(field.name).type != field.type:
                raise TableError(f"{where} has no column {field.name} of type {field.type}")
        table = file.read(columns=schema.names).select(schema.names)
        table.validate(full=True)
    except FileNotFoundError:
        raise TableError(f"{where} is absent") from None
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{where} is not readable as Parquet: {error}") from None
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise TableError(f"{where} has a null in column {field.name}")
    metadata = found.metadata if keep_metadata else None
    return pa.table(table.columns, schema=schema.with_metadata(metadata))


def write_table(storage: Storage, path: str, table: pa.Table) -> None:
    """Write a Parquet file whose bytes depend on the table and pyarrow's version only."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_index=False)
    storage.write(path, buffer.getvalue())
