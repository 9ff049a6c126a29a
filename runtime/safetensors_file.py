"""Read float32 tensors of a safetensors file, row by row; strictly, and without the library.

Such a file is the length of a header (8 bytes, little-endian), the header (JSON: for each tensor
its type, its shape and where its values lie, beside texts under `__metadata__`), and the values.

Source: https://huggingface.co/docs/safetensors, "Format"; equal to what the library reads
(tests/runtime/test_safetensors_file.py).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mutoscope.runtime.errors import BundleError

F32 = NDArray[np.float32]

# What is read at most, here and in libmutoscope: a damaged file must not take much memory or time.
MAXIMUM_HEADER_BYTES = 64 << 20
MAXIMUM_RANK = 8

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_DTYPE, _ITEM_BYTES = "F32", 4


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor lies in the file, in bytes from its beginning."""

    shape: tuple[int, ...]
    start: int


class SafetensorsFile:
    """The tensors of one file, of which only the header is in memory."""

    def __init__(self, path: Path, name: str) -> None:
        """Read the header.

        Args:
            path: The file.
            name: What to call it in messages.

        Raises:
            BundleError: It is damaged, or has tensors that are not float32.
        """
        self._path = path
        self._name = name
        header, start, size = self._read_header()
        self.metadata = self._read_metadata(header.pop(_METADATA, {}))
        self._tensors = self._read_tensors(header, start, size)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, by its name."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def read_row(self, name: str, index: int) -> F32:
        """Return `tensor[index : index + 1]`, a new array; raises `BundleError`."""
        tensor = self._tensors[name]
        count = math.prod(tensor.shape[1:])
        offset = tensor.start + index * count * _ITEM_BYTES
        try:
            with self._path.open("rb") as file:
                values = np.fromfile(file, "<f4", count, offset=offset)
        except OSError as err:
            raise self._fail(f"cannot be read: {err.strerror}") from err
        if values.size != count or not np.isfinite(values).all():
            raise self._fail(f"has a damaged tensor {name!r}")
        return values.astype(np.float32, copy=False).reshape(1, *tensor.shape[1:])

    def _read_header(self) -> tuple[dict[str, Any], int, int]:
        """The header, where the values begin, and the size of the file."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
                start = _LENGTH_BYTES + length
                if size < start:
                    raise self._fail(f"has a header of {length} bytes, which it cannot hold")
                if length > MAXIMUM_HEADER_BYTES:
                    raise self._fail(
                        f"has a header of {length} bytes, more than {MAXIMUM_HEADER_BYTES}"
                    )
                text = file.read(length)
        except OSError as err:
            raise self._fail(f"cannot be read: {err.strerror}") from err
        try:
            header = json.loads(text.decode("utf-8"), object_pairs_hook=_make_object)
        except (ValueError, RecursionError) as err:
            raise self._fail("has a header that is not JSON") from err
        if not isinstance(header, dict):
            raise self._fail("has a header that is not an object")
        return header, start, size

    def _read_metadata(self, value: Any) -> dict[str, str]:
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise self._fail(f"has {_METADATA} that are not texts")
        return value

    def _read_tensors(self, header: dict[str, Any], start: int, size: int) -> dict[str, _Tensor]:
        """Every tensor, checked: they follow each other and fill the file."""
        tensors: dict[str, _Tensor] = {}
        places: list[tuple[int, int]] = []
        for name, record in header.items():
            if not isinstance(record, dict) or record.get("dtype") != _DTYPE:
                raise self._fail(f"has a tensor {name!r} that is not {_DTYPE}")
            shape: Any = record.get("shape")
            offsets: Any = record.get("data_offsets")
            if not _are_counts(shape, 1) or not _are_counts(offsets, 0) or len(offsets) != 2:
                raise self._fail(f"has a tensor {name!r} without a shape or a place")
            if len(shape) > MAXIMUM_RANK:
                raise self._fail(
                    f"has a tensor {name!r} of {len(shape)} axes, more than {MAXIMUM_RANK}"
                )
            first, last = offsets
            if last - first != math.prod(shape) * _ITEM_BYTES:
                raise self._fail(f"has a tensor {name!r} whose shape is not that of its values")
            tensors[name] = _Tensor(tuple(shape), start + first)
            places.append((start + first, start + last))
        end = start
        for first, last in sorted(places):
            if first != end:
                raise self._fail("has tensors that overlap or leave gaps")
            end = last
        if end != size:
            raise self._fail(f"has {size} bytes; its tensors end after {end}")
        return tensors

    def _fail(self, what: str) -> BundleError:
        return BundleError(f"{self._name} {what} (damaged?): copy or export it again")


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose names must differ."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is there twice")
    return value


def _are_counts(values: Any, minimum: int) -> bool:
    """Whether a value of JSON is a list of whole numbers that a file could have."""
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and minimum <= value < 2**63
        for value in values
    )
