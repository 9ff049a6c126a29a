"""What every engine asks of the arrays that it is to write results into."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mutoscope.engines.engine import Array, TensorSpec
from mutoscope.engines.errors import EngineError


def check_outputs(
    name: str,
    specs: Mapping[str, TensorSpec],
    feeds: Mapping[str, Array],
    outputs: Mapping[str, Array],
) -> None:
    """Raise `EngineError` unless results may be written into the arrays in `outputs`.

    Lengths that depend on the inputs are left to the engine.

    Args:
        name: What to call the graph in messages.
        specs: The outputs that the graph declares.
        feeds: The inputs of the run.
        outputs: An array for some or all of the outputs.
    """
    taken = dict(feeds)
    for output_name, array in outputs.items():
        spec = specs.get(output_name)
        if spec is None:
            raise EngineError(
                f"{name} has no output {output_name!r}: it returns {', '.join(specs)}"
            )
        fits = len(array.shape) == len(spec.shape) and all(
            isinstance(axis, str) or length == axis
            for length, axis in zip(array.shape, spec.shape, strict=True)
        )
        if array.dtype.name != spec.dtype or not fits:
            raise EngineError(
                f"{name}: the array for {output_name} is {array.dtype}{list(array.shape)}; "
                f"the graph returns {spec}"
            )
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise EngineError(
                f"{name}: the array for {output_name} must be C-contiguous and writeable: "
                f"use np.empty({list(array.shape)}, np.{spec.dtype})"
            )
        for other, used in taken.items():
            if np.may_share_memory(array, used):
                raise EngineError(
                    f"{name}: the array for {output_name} shares memory with {other}: "
                    "give it memory of its own"
                )
        taken[output_name] = array
