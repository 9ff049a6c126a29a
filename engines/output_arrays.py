"""What every engine asks of the arrays that it is to write results into."""

from __future__ import annotations

from collections.abc import Collection, Mapping

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


def choose_outputs(
    name: str,
    specs: Mapping[str, TensorSpec],
    outputs: Mapping[str, Array],
    wanted: Collection[str] | None,
) -> list[str]:
    """Return the names of the outputs that a run returns, in the order of the graph.

    Args:
        name: What to call the graph in messages.
        specs: The outputs that the graph declares.
        outputs: The arrays that the run is given.
        wanted: See `mutoscope.engines.engine.Engine.run`.

    Raises:
        EngineError: An output is unknown, or there is an array for one that is not wanted.
    """
    if wanted is None:
        return list(specs)
    for unknown in set(wanted) - specs.keys():
        raise EngineError(f"{name} has no output {unknown!r}: it returns {', '.join(specs)}")
    for unwanted in outputs.keys() - set(wanted):
        raise EngineError(
            f"{name}: there is an array for {unwanted}, which is not among the wanted outputs "
            f"{', '.join(wanted)}: leave it out"
        )
    return [output_name for output_name in specs if output_name in wanted]
