"""Reading the JSON objects of a schedule table, with errors that say where a value stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mutoscope.runtime.errors import ScheduleError
from mutoscope.runtime.json_records import is_finite


class ScheduleReader:
    """Typed access to the fields of one JSON object; errors say where it stands."""

    def __init__(self, data: Any, where: str) -> None:
        """Read an object; `where` is what messages call it. Raises `ScheduleError` as the rest."""
        if not isinstance(data, dict):
            raise ScheduleError(f"{where} is {show(data)}; it must be an object")
        self.data: dict[str, Any] = data
        self.where = where

    def get(self, key: str) -> Any:
        """Return a field that must be there, of any type."""
        if key not in self.data:
            raise ScheduleError(f"{self.where}: {key} is missing")
        return self.data[key]

    def fail(self, key: str, value: Any, rule: str) -> ScheduleError:
        """Return the error of a value that breaks a rule."""
        return ScheduleError(f"{self.where}: {key} is {show(value)}; it must be {rule}")

    def whole(self, key: str, minimum: int) -> int:
        """Return a whole number of at least `minimum`."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.fail(key, value, f"a whole number >= {minimum}")
        return value

    def number(self, key: str) -> float:
        """Return a finite number."""
        value = self.get(key)
        if not is_finite_number(value):
            raise self.fail(key, value, "a finite number")
        return float(value)

    def optional_pair(self, key: str) -> tuple[float, float] | None:
        """Return two finite numbers; None if the field is absent or null."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 2 or not all(map(is_finite_number, value)):
            raise self.fail(key, value, "two finite numbers")
        return float(value[0]), float(value[1])

    def text(self, key: str) -> str:
        """Return a string."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.fail(key, value, "a string")
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a string; None if the field is absent or null."""
        return None if self.data.get(key) is None else self.text(key)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false; `default` if the field is absent."""
        value = self.data.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, value, "true or false")
        return value

    def items(self, key: str) -> list[Any]:
        """Return a list."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.fail(key, value, "a list")
        return value

    def objects(self, key: str, item: str) -> Iterator[ScheduleReader]:
        """Yield the objects of a list, each of which messages call `item` and its index."""
        for index, entry in enumerate(self.items(key)):
            yield ScheduleReader(entry, f"{self.where}: {item} {index}")


def is_finite_number(value: Any) -> bool:
    """Whether a JSON value is a number that float64 can hold."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and is_finite(value)


def show(value: Any) -> str:
    """A value in a few words, for one-line messages."""
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"
