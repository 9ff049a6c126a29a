"""Read and write frozen dataclasses as JSON objects, checking every type on the way in.

Only what the manifest and its like need: nested dataclasses, `dict[str, T]`, `tuple[T, ...]`,
`T | None`, unions of plain types, and the plain types themselves. Fields that a file has and the
dataclass does not are ignored: a later version of the same format may add some.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from mutoscope.runtime.errors import BundleError

Record = TypeVar("Record")


def read_record(record_type: type[Record], value: Any, where: str) -> Record:
    """Return a `record_type` made from a parsed JSON value.

    Args:
        record_type: A dataclass.
        value: What `json.load` returned.
        where: What to call the value in messages, e.g. "manifest.json".

    Raises:
        BundleError: A field is missing or has the wrong type; the message names it.
    """
    return typing.cast(Record, _read(record_type, value, where))


def write_record(record: Any) -> Any:
    """Return the JSON value of a record: fields that are None are left out."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        pairs = ((f.name, getattr(record, f.name)) for f in dataclasses.fields(record))
        return {name: write_record(value) for name, value in pairs if value is not None}
    if isinstance(record, Mapping):
        return {key: write_record(value) for key, value in record.items()}
    if isinstance(record, tuple | list):
        return [write_record(value) for value in record]
    return record


def is_finite(number: float) -> bool:
    """Whether a float can hold a number of JSON, which may be whole and of any size."""
    return abs(number) <= sys.float_info.max


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _read_union(arguments, value, where)
    if origin is dict:
        _check(isinstance(value, dict), where, "an object")
        return {key: _read(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    if origin is tuple:
        _check(isinstance(value, list), where, "a list")
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if kind is float:
        _check(isinstance(value, int | float) and not isinstance(value, bool), where, "a number")
        _check(is_finite(value), where, "finite")
        return float(value)
    if kind is int:
        _check(isinstance(value, int) and not isinstance(value, bool), where, "a whole number")
        return value
    _check(isinstance(value, kind), where, f"of type {kind.__name__}")
    return value


def _read_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds[:-1]:
        if isinstance(kind, type) and isinstance(value, kind) and not isinstance(value, bool):
            return value
    return _read(kinds[-1], value, where)


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    _check(isinstance(value, dict), where, "an object")
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            found[field.name] = _read(
                hints[field.name], value[field.name], f"{where}: {field.name}"
            )
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise BundleError(f"{where}: {field.name} is missing")
    return kind(**found)


def _check(condition: bool, where: str, rule: str) -> None:
    if not condition:
        raise BundleError(f"{where} must be {rule}")
