"""Make a graph that also returns what its layers see: ranges, means and samples of the values.

What is measured of a value is computed right behind the node that makes it, so that the value can
be freed as early as in the plain graph, and every figure is small: one run returns a few megabytes,
whatever the size of the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.graph_editing import Inserter
from mutoscope.calibration.layers import Layer, find_layers, find_weight_dtype

# How many values of each observed value a run returns.
NUM_SAMPLES: Final = 4096

# The input that the observed graph has beside those of the component: float64 [1] from 0 to 1. It
# moves the places where samples are taken, so that runs see different ones.
OFFSET: Final = "statistics.offset"
# The outputs that it has beside those of the component. The figures of all points are concatenated;
# a point has as many minima, maxima and means as channels, NUM_SAMPLES samples, and one size.
MINIMUM, MAXIMUM, MEAN = "statistics.minimum", "statistics.maximum", "statistics.mean"
SAMPLES, SIZES = "statistics.samples", "statistics.sizes"
STATISTICS: Final = (MINIMUM, MAXIMUM, MEAN, SAMPLES, SIZES)

_REDUCTIONS: Final = {MINIMUM: "ReduceMin", MAXIMUM: "ReduceMax", MEAN: "ReduceMean"}
# Below 1 by more than float64 needs to tell places in a tensor apart.
_FRACTION_LIMIT: Final = 1.0 - 1e-6


@dataclass(frozen=True)
class ObservedPoint:
    """A value that is observed, once for all layers that it belongs to.

    Attributes:
        inputs_of: The names of the layers that take it.
        outputs_of: The names of the layers that return it.
        num_channels: How many channels it has.
        first_channel: Where its channels begin among those of all points.
    """

    inputs_of: tuple[str, ...]
    outputs_of: tuple[str, ...]
    num_channels: int
    first_channel: int

    def __str__(self) -> str:
        """Return what it is: `the input of unet.conv_in.weight`."""
        kind, names = ("input", self.inputs_of) if self.inputs_of else ("output", self.outputs_of)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"the {kind} of {names[0]}{more}"


@dataclass(frozen=True)
class ObservedGraph:
    """A graph with statistics among its outputs.

    Attributes:
        model: The graph, without its weights.
        data_folder: Where the files of the weights lie.
        points: What it observes, in the order of its outputs.
    """

    model: onnx_ir.Model
    data_folder: Path
    points: tuple[ObservedPoint, ...]


@dataclass
class _Value:
    """A value to observe, and the layers found so far that take or return it."""

    value: onnx_ir.Value
    layer: Layer
    num_axes: int
    num_channels: int
    inputs_of: list[str] = field(default_factory=list)
    outputs_of: list[str] = field(default_factory=list)


def make_observed_graph(source: Path) -> ObservedGraph:
    """Return the graph at `source` with statistics of its layers among the outputs.

    Observed are the inputs of all layers and the outputs of convolutions.

    Args:
        source: A graph in float32 or float16; nothing is written.

    Raises:
        CalibrationError: The graph has no layers.
    """
    model = onnx_ir.load(source)
    values = _find_values(find_layers(model))
    if not values:
        raise CalibrationError(
            f"{source.parent.name}/{source.name} has no convolution or linear layer: "
            "choose other components"
        )
    _observe(model.graph, values)
    points, first_channel = [], 0
    for value in values:
        names = tuple(value.inputs_of), tuple(value.outputs_of)
        points.append(ObservedPoint(*names, value.num_channels, first_channel))
        first_channel += value.num_channels
    return ObservedGraph(model, source.parent, tuple(points))


def _find_values(layers: Sequence[Layer]) -> list[_Value]:
    """The values to observe, one for each pair of a value and the axis of its channels."""
    found: dict[tuple[onnx_ir.Value, str], _Value] = {}

    def find(value: onnx_ir.Value, layer: Layer, num_axes: int, num_channels: int) -> _Value:
        new = _Value(value, layer, num_axes, num_channels)
        return found.setdefault((value, layer.kind), new)

    for layer in layers:
        shape = layer.read_weight().shape
        if layer.kind == "linear":
            find(layer.input, layer, 2, shape[0]).inputs_of.append(layer.name)
            continue
        group = layer.node.attributes.get("group")
        num_inputs = shape[1] * (1 if group is None else group.as_int())
        find(layer.input, layer, len(shape), num_inputs).inputs_of.append(layer.name)
        find(layer.output, layer, len(shape), shape[0]).outputs_of.append(layer.name)
    return list(found.values())


def _observe(graph: onnx_ir.Graph, values: Sequence[_Value]) -> None:
    """Add what measures the values, and the outputs that collect it."""
    parts: dict[str, list[onnx_ir.Value]] = {name: [] for name in STATISTICS}
    places = _add_places(graph)
    for value in values:
        for name, part in _measure(graph, value, places).items():
            parts[name].append(part)
    for name, inputs in parts.items():
        node = onnx_ir.node("Concat", inputs, {"axis": 0})
        graph.append(node)
        (output,) = node.outputs
        output.name = name
        output.dtype = onnx_ir.DataType.INT64 if name == SIZES else onnx_ir.DataType.FLOAT
        output.shape = onnx_ir.Shape([None])
        graph.outputs.append(output)


def _add_places(graph: onnx_ir.Graph) -> onnx_ir.Value:
    """Add the input OFFSET and return where samples are taken: float64 [S], parts of the whole.

    There is one in each of S equal parts of a tensor, at random inside, for steps of equal length
    would meet some channels more often than others.
    """
    offset = onnx_ir.val(OFFSET, onnx_ir.DataType.DOUBLE, [1])
    graph.inputs.append(offset)
    random = np.random.default_rng(0).random(NUM_SAMPLES)
    insert = Inserter(graph, graph[0])

    def constant(name: str, array: Any) -> onnx_ir.Value:
        return insert.register(onnx_ir.tensor(np.asarray(array), name=f"statistics.{name}"))

    moved = insert.add("Add", [constant("random", random), offset])
    inside = insert.add("Sub", [moved, insert.add("Floor", [moved])])
    scaled = insert.add("Mul", [inside, constant("scale", _FRACTION_LIMIT / NUM_SAMPLES)])
    return insert.add("Add", [scaled, constant("parts", np.arange(NUM_SAMPLES) / NUM_SAMPLES)])


def _measure(
    graph: onnx_ir.Graph, observed: _Value, places: onnx_ir.Value
) -> dict[str, onnx_ir.Value]:
    """Add the statistics of a value behind the node that makes it; return them by output."""
    nodes: list[onnx_ir.Node] = []
    constant = Inserter(graph, graph[0]).constant

    def add(op_type: str, inputs: list[onnx_ir.Value], **attributes: Any) -> onnx_ir.Value:
        nodes.append(onnx_ir.node(op_type, inputs, attributes))
        return nodes[-1].outputs[0]

    layer, value = observed.layer, observed.value
    if find_weight_dtype(layer) == np.float16:
        value = add("Cast", [value], to=onnx_ir.DataType.FLOAT)
    flat = add("Reshape", [value, constant([-1])])
    size = add("Shape", [flat])
    double = add("Cast", [size], to=onnx_ir.DataType.DOUBLE)
    indices = add("Cast", [add("Mul", [places, double])], to=onnx_ir.DataType.INT64)
    parts = {SAMPLES: add("Gather", [flat, indices]), SIZES: size}
    axes = [axis for axis in range(observed.num_axes) if axis != 1]
    if layer.kind == "linear":
        value = add("Reshape", [flat, constant([-1, observed.num_channels])])
    for name, op_type in _REDUCTIONS.items():
        parts[name] = add(op_type, [value, constant(axes)], keepdims=0)
    # Inputs of the graph are there when the places are, which are made first of all.
    producer = observed.value.producer() or places.producer()
    assert producer is not None
    graph.insert_after(producer, nodes)
    return parts
