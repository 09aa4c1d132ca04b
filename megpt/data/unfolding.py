"""What columns of Parquet take as Python objects, before they are any.

Columns may hold dictionaries, as megpt/data/parquet.py reads them: they count as what they stand for.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

_OVERHEAD = 50
"""Bytes that Python needs for a value."""


def plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows without dictionaries."""
    return batch.cast(pa.schema([(field.name, plain_type(field.type)) for field in batch.schema]))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """A type without dictionaries."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(plain_type(kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(plain_type(kind.value_type)), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(plain_type(kind.value_type)))
    return kind


def weight_of(column: pa.Array) -> int:
    """Bytes of a column as Python objects, about."""
    return size_of(column) + _OVERHEAD * values_in(column)


def size_of(column: pa.Array) -> int:
    """Bytes of a column without dictionaries."""
    if (inner := _inside(column)) is not None:
        return sum(map(size_of, inner))
    lengths = _lengths(column)
    return column.nbytes if lengths is None else pc.sum(lengths).as_py() or 0


def values_in(column: pa.Array) -> int:
    """Values of a column, those inside lists and structs included."""
    return len(column) + sum(map(values_in, _inside(column) or ()))


def longest_text(column: pa.Array) -> int:
    """Bytes of the longest text."""
    if (inner := _inside(column)) is not None:
        return max(map(longest_text, inner), default=0)
    kind = plain_type(column.type)
    lengths = _lengths(column) if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None
    return 0 if lengths is None else pc.max(lengths).as_py() or 0


def _inside(column: pa.Array) -> list[pa.Array] | None:
    """What a column of lists or structs is made of."""
    if pa.types.is_struct(column.type):
        return column.flatten()
    if pa.types.is_map(column.type):
        first, last = column.offsets[0].as_py(), column.offsets[-1].as_py()
        return [part.slice(first, last - first) for part in (column.keys, column.items)]
    if pa.types.is_nested(column.type):
        return [column.flatten()]
    return None


def _lengths(column: pa.Array) -> pa.Array | None:
    """Bytes of each text or film of a column; None for other values."""
    if pa.types.is_dictionary(column.type):
        inner = _lengths(column.dictionary)
        return None if inner is None else inner.take(column.indices)
    kind = column.type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return pc.binary_length(column) if any(test(kind) for test in texts) else None
