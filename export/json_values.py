"""Settings of diffusers as JSON can hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def make_json_value(value: Any) -> Any:
    """Return a setting with what JSON lacks written as text.

    diffusers has infinities among its defaults (`lambda_min_clipped` of the DPM solvers), and JSON
    has no number for them.
    """
    if isinstance(value, Mapping):
        return {str(key): make_json_value(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # an array or a tensor
        return make_json_value(value.tolist())
    if isinstance(value, list | tuple):
        return [make_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)
