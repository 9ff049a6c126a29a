"""The numbers in versions, and in the names of what GPUs can run."""

from __future__ import annotations

import re


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numbers of a version: `10.3.0` as (10, 3, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def parse_target(target: str) -> int:
    """Return the number of a compute capability: `sm86` as 86."""
    return int(target.removeprefix("sm"))
