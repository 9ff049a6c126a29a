"""How long each layer takes on the engine at hand, in float and in int8.

Layers that take one value share its quantized form, so they are measured, and decided on, together:
a **group**. Each distinct group runs alone, with its sizes in a real clip, and with all that its
int8 form needs around it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from mutoscope.calibration.graph_editing import Inserter
from mutoscope.calibration.graph_session import open_graph
from mutoscope.calibration.layers import Layer, find_layers
from mutoscope.calibration.quantized_graphs import (
    LayerQuantization,
    make_int8_graph_for_processors,
    save_graph,
)
from mutoscope.engines.engine import Engine, Tensors
from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle_writer import explain_write_errors

# Runs of each that count, after one that does not; the median of few is steady, since both forms
# run in turn.
_COUNT = 7
_RANGE = (-4.0, 4.0)  # of the random values; no kernel's time depends on it


@dataclass(frozen=True)
class GroupTiming:
    """How long the layers that take one value need, all together.

    Attributes:
        layers: Their names.
        seconds_float: Of one pass, in the float graph.
        seconds_int8: In int8, what quantizes its input included.
        error: How far the output of one pass of the component moves when the group alone is in
            int8, relative (L2); None where it was not measured.
    """

    layers: tuple[str, ...]
    seconds_float: float
    seconds_int8: float
    error: float | None = None

    @property
    def seconds_saved(self) -> float:
        """What int8 gains; negative where it loses."""
        return self.seconds_float - self.seconds_int8


def group_layers(layers: list[Layer]) -> list[list[Layer]]:
    """Return layers of one graph in groups that take the same value, in their order."""
    groups: dict[onnx_ir.Value, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.input, []).append(layer)
    return list(groups.values())


def measure_groups(
    source: Path,
    names: set[str],
    feeds: Tensors,
    options: EngineOptions,
    *,
    is_dynamic: bool = False,
) -> list[GroupTiming]:
    """Return how long each group of layers takes.

    Args:
        source: The float32 graph that the engine runs.
        names: The layers that may become int8.
        feeds: Inputs of the graph, as large as those of a clip.
        options: The engine.
        is_dynamic: Whether the ranges of inputs are found at run time.

    Raises:
        EngineError: A layer does not run on it.
    """
    model = onnx_ir.load(source)
    layers = [layer for layer in find_layers(model) if layer.name in names]
    groups = group_layers(layers)
    names_of_inputs = [str(group[0].input.name) for group in groups]
    shapes = _find_shapes(source, names_of_inputs, feeds, options.num_threads)
    known: dict[Any, tuple[float, float]] = {}
    timings = []
    for group in groups:
        shape = shapes[str(group[0].input.name)]
        key = (shape, tuple(_describe(layer) for layer in group))
        if key not in known:
            known[key] = _measure_group(group, shape, options, is_dynamic=is_dynamic)
        timings.append(GroupTiming(tuple(layer.name for layer in group), *known[key]))
    return timings


def _describe(layer: Layer) -> tuple[Any, ...]:
    """All of a layer that its time depends on."""
    attributes = sorted((n, str(a.value)) for n, a in layer.node.attributes.items())
    has_bias = layer.add is not None or len(layer.node.inputs) > 2
    return layer.node.op_type, layer.read_weight().shape, has_bias, tuple(attributes)


def _find_shapes(
    source: Path, names: list[str], feeds: Tensors, num_threads: int | None
) -> dict[str, tuple[int, ...]]:
    """The shapes that values of a graph have with these inputs."""
    model = onnx_ir.load(source)
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    outputs = []
    for name in names:
        if name in values:
            node = onnx_ir.node("Shape", [values[name]])
            producer = values[name].producer()
            assert producer is not None
            model.graph.insert_after(producer, node)
            node.outputs[0].name = f"shape of {name}"
            node.outputs[0].dtype = onnx_ir.DataType.INT64
            outputs.append(node.outputs[0])
    model.graph.outputs.extend(outputs)
    session = open_graph(model, source.parent, num_threads)
    # Without a name, a session returns all outputs.
    wanted = [str(value.name) for value in outputs]
    arrays = session.run(wanted, dict(feeds)) if wanted else []
    shapes = {n: a.shape for n, a in feeds.items() if n in names}
    found = (str(value.name).removeprefix("shape of ") for value in outputs)
    shapes.update({n: tuple(int(x) for x in array) for n, array in zip(found, arrays, strict=True)})
    return shapes


def _measure_group(
    group: list[Layer], shape: tuple[int, ...], options: EngineOptions, *, is_dynamic: bool
) -> tuple[float, float]:
    """Seconds of a group in float and in int8, medians of runs in turn."""
    value = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    limits = None if is_dynamic else _RANGE
    ranges = {
        layer.name: LayerQuantization(limits, limits if layer.kind == "convolution" else None)
        for layer in group
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("float.onnx", "int8.onnx")]
        with explain_write_errors(paths[0]):
            onnx_ir.save(_cut_out(group, shape), paths[0])
            save_graph(make_int8_graph_for_processors(paths[0], ranges), paths[1])
        engines = [open_engine(path, options) for path in paths]
        try:
            return race(engines, {"x": value})
        finally:
            for engine in engines:
                engine.close()


def race(engines: list[Engine], feeds: Mapping[str, Any]) -> tuple[float, float]:
    """Return the seconds of a run of two engines, medians of runs in turn."""
    seconds: list[list[float]] = [[] for _ in engines]
    for engine in engines:
        engine.prepare({name: array.shape for name, array in feeds.items()})
        engine.run(feeds)
    for _ in range(_COUNT):
        for engine, spent in zip(engines, seconds, strict=True):
            started = time.perf_counter()
            engine.run(feeds)
            spent.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _cut_out(group: list[Layer], shape: tuple[int, ...]) -> onnx_ir.Model:
    """A model of a group of layers alone, which takes "x"."""
    rank = onnx_ir.Shape([f"axis_{index}" for index in range(len(shape))])
    x = onnx_ir.val("x", onnx_ir.DataType.FLOAT, rank)
    end = onnx_ir.node("Identity", [x])  # only a place to insert before
    graph = onnx_ir.Graph([x], [], nodes=[end], opset_imports={"": 20}, name="layers")
    insert = Inserter(graph, end)
    for layer in group:
        weight = insert.register(onnx_ir.tensor(layer.read_weight(), name=layer.name))
        bias = layer.read_bias()
        inputs = [x, weight]
        shift = None
        if bias is not None:
            shift = insert.register(onnx_ir.tensor(bias, name=f"{layer.name}.bias.float"))
        if shift is not None and layer.add is None:
            inputs.append(shift)
        attributes = {n: a.value for n, a in layer.node.attributes.items() if n != "transB"}
        output = insert.add(layer.node.op_type, inputs, **attributes)
        if shift is not None and layer.add is not None:
            output = insert.add("Add", [output, shift])
        # The layer itself will be replaced, which an output of the graph cannot be.
        output = insert.add("Identity", [output])
        output.name = f"{layer.name}.output"
        output.dtype = onnx_ir.DataType.FLOAT
        graph.outputs.append(output)
    graph.remove(end)
    return onnx_ir.Model(graph, ir_version=10)
