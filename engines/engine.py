"""What every engine offers: named tensors in, named tensors out, on one device."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from mutoscope.engines.errors import EngineError

Array = NDArray[Any]
Tensors = dict[str, Array]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: Its name in the graph.
        dtype: Name of the numpy type, e.g. "float32".
        shape: Length of each axis; a string names an axis that may vary, the same name always
            stands for the same length.
        minimum: The least length of each axis of an input; None where the engine has no limits.
        maximum: The greatest length of each axis, likewise.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    minimum: tuple[int, ...] | None = None
    maximum: tuple[int, ...] | None = None

    def __str__(self) -> str:
        """Return the type and the shape in one word: `float32[1, 77, D]`."""
        return f"{self.dtype}[{', '.join(str(length) for length in self.shape)}]"


class Engine(Protocol):
    """One graph, loaded on one device.

    An engine may be used from one thread at a time.
    """

    @property
    def device(self) -> str:
        """Where it runs, for people: "cpu", "cuda"."""

    @property
    def properties(self) -> Mapping[str, str]:
        """What runs, to be kept with results: "engine", its "version", "device", "precision"."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs by name, in the order of the graph."""

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """The outputs by name, in the order of the graph."""

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """What it holds on its device, by what for: "weights", "activations", "buffers".

        Empty where the engine does not know.
        """

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Do now what the first run with inputs of these shapes would do before it; raises as run.

        An engine that compiles for fixed shapes does it here, so that it can be timed apart.
        """

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> Tensors:
        """Return outputs for these inputs, in the order of the graph.

        Args:
            feeds: An array for each input; not changed.
            outputs: Where results go, by the name of the output: C-contiguous arrays of the right
                type and shape, which come back as they are. The other outputs are new arrays.
            wanted: The outputs to return, those in `outputs` among them; None for all. What is not
                wanted is not copied, and not computed where the engine can leave it out.

        Raises:
            EngineError: An input is missing, unknown or of the wrong type or shape, an output is
                unknown, or the graph failed.
        """

    def close(self) -> None:
        """Free the memory; it can be called again, but run cannot."""


def check_feeds(name: str, inputs: Mapping[str, TensorSpec], feeds: Mapping[str, Array]) -> None:
    """Raise `EngineError` unless the arrays in `feeds` are what the graph takes.

    Args:
        name: What to call the graph in messages.
        inputs: The inputs that the graph declares.
        feeds: An array for each of them.
    """
    for missing in inputs.keys() - feeds.keys():
        raise EngineError(f"{name} needs an input {missing!r}: pass {', '.join(inputs)}")
    for unknown in feeds.keys() - inputs.keys():
        raise EngineError(f"{name} has no input {unknown!r}: it takes {', '.join(inputs)}")
    lengths: dict[str, int] = {}
    for input_name, spec in inputs.items():
        array = feeds[input_name]
        fits = len(array.shape) == len(spec.shape) and all(
            length == (lengths.setdefault(axis, length) if isinstance(axis, str) else axis)
            for length, axis in zip(array.shape, spec.shape, strict=True)
        )
        if array.dtype.name != spec.dtype or not fits:
            known = ", ".join(f"{axis} = {length}" for axis, length in lengths.items())
            raise EngineError(
                f"{name}: {input_name} is {array.dtype}{list(array.shape)}; "
                f"the graph takes {spec}" + (f" with {known}" if known and not fits else "")
            )
        if spec.minimum and spec.maximum:
            _check_range(name, spec, array.shape, spec.minimum, spec.maximum)


def _check_range(
    name: str,
    spec: TensorSpec,
    shape: tuple[int, ...],
    minimum: tuple[int, ...],
    maximum: tuple[int, ...],
) -> None:
    """Raise `EngineError` unless every axis is within what the engine was built for."""
    bounds = list(zip(minimum, shape, maximum, strict=True))
    if not all(least <= length <= greatest for least, length, greatest in bounds):
        ranges = ", ".join(
            f"{low}" if low == high else f"{low} to {high}" for low, _, high in bounds
        )
        raise EngineError(
            f"{name}: {spec.name} has the shape {list(shape)}; this engine was built for "
            f"[{ranges}]: build it for these sizes"
        )
