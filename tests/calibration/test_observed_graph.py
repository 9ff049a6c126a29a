from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from numpy.typing import NDArray

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.graph_session import open_graph
from mutoscope.calibration.observed_graph import (
    MAXIMUM,
    MEAN,
    MINIMUM,
    NUM_SAMPLES,
    OFFSET,
    SAMPLES,
    SIZES,
    STATISTICS,
    ObservedGraph,
    make_observed_graph,
)
from tests.calibration.small_graph import (
    CHANNEL_AXES,
    INPUTS,
    LAYERS,
    OUTPUTS,
    compute_values,
    make_feeds,
    save_small_graph,
)

# Two sessions add up the same numbers in another order.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_graph(tmp_path_factory.mktemp("small") / "model.onnx")


def run(
    graph: ObservedGraph, feeds: dict[str, NDArray[Any]], offset: float = 0.0
) -> dict[str, NDArray[Any]]:
    session = open_graph(graph.model, graph.data_folder)
    found = session.run(STATISTICS, {**feeds, OFFSET: np.array([offset])})
    return dict(zip(STATISTICS, found, strict=True))


def split_channels(graph: ObservedGraph, figures: NDArray[Any]) -> list[NDArray[Any]]:
    return np.split(figures, [point.first_channel for point in graph.points[1:]])


def name_value(point_inputs: tuple[str, ...], point_outputs: tuple[str, ...]) -> str:
    return INPUTS[point_inputs[0]] if point_inputs else OUTPUTS[point_outputs[0]]


def test_every_layer_is_observed_and_shared_values_once(source: Path) -> None:
    points = make_observed_graph(source).points
    assert sorted(name for point in points for name in point.inputs_of) == sorted(LAYERS)
    assert sorted(name for point in points for name in point.outputs_of) == sorted(OUTPUTS)
    assert ("net.q.weight", "net.k.weight", "net.v.weight") in [p.inputs_of for p in points]


def test_a_value_with_channels_at_two_axes_is_observed_for_both(source: Path) -> None:
    model = onnx.load(source)
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[0] == "last":
            node.input[0] = "moved"
    (weight,) = [w for w in model.graph.initializer if w.name == "net.out.weight"]
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ones((7, 2), np.float32), weight.name))
    path = source.with_name("two_axes.onnx")
    onnx.save(model, path)
    points = [
        p
        for p in make_observed_graph(path).points
        if p.outputs_of or p.inputs_of == ("net.out.weight",)
    ]
    assert [(p.inputs_of, p.outputs_of) for p in points] == [
        ((), ("net.conv.weight",)),
        ((), ("net.temporal.weight",)),
        (("net.out.weight",), ()),
    ]


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_ranges_and_means_of_channels_are_those_of_the_values(stored: Any, tmp_path: Path) -> None:
    path = save_small_graph(tmp_path / "model.onnx", stored)
    graph, feeds = make_observed_graph(path), make_feeds(1)
    values, found = compute_values(path, feeds), run(graph, feeds)
    for name, reduce in ((MINIMUM, np.min), (MAXIMUM, np.max), (MEAN, np.mean)):
        for point, figures in zip(graph.points, split_channels(graph, found[name]), strict=True):
            value_name = name_value(point.inputs_of, point.outputs_of)
            value = np.moveaxis(values[value_name], CHANNEL_AXES[value_name], 0)
            expected = reduce(value.reshape(len(value), -1), axis=1)
            np.testing.assert_allclose(figures, expected, rtol=ROUNDING, atol=ROUNDING)


def test_sizes_are_those_of_whole_values(source: Path) -> None:
    graph, feeds = make_observed_graph(source), make_feeds(1)
    values, found = compute_values(source, feeds), run(graph, feeds)
    names = [name_value(point.inputs_of, point.outputs_of) for point in graph.points]
    assert found[SIZES].tolist() == [values[name].size for name in names]


def test_samples_are_values_from_all_over_the_tensor(source: Path) -> None:
    graph, feeds = make_observed_graph(source), make_feeds(1, timestep=1.0, size=64)
    size = feeds["sample"].size
    feeds["sample"] = np.arange(size, dtype=np.float32).reshape(feeds["sample"].shape)
    (index,) = [i for i, p in enumerate(graph.points) if "net.conv.weight" in p.inputs_of]
    samples = run(graph, feeds)[SAMPLES].reshape(-1, NUM_SAMPLES)[index]
    parts = np.arange(NUM_SAMPLES) * (size / NUM_SAMPLES)
    assert (samples >= np.floor(parts)).all()
    assert (samples < parts + size / NUM_SAMPLES).all()
    # Equal steps would stand at one place in all parts, and so at few channels if those come last.
    assert len(np.unique(samples % 8)) == 8


def test_samples_stand_elsewhere_with_another_offset(source: Path) -> None:
    graph, feeds = make_observed_graph(source), make_feeds(1, size=64)
    first, second = (run(graph, feeds, offset)[SAMPLES] for offset in (0.0, 0.4))
    assert np.mean(first[:NUM_SAMPLES] == second[:NUM_SAMPLES]) < 0.5


@pytest.mark.parametrize("offset", [0.0, 0.5, 1.0])
def test_small_values_are_repeated_in_the_samples(source: Path, offset: float) -> None:
    graph, feeds = make_observed_graph(source), make_feeds(1, timestep=3.0)
    (index,) = [i for i, p in enumerate(graph.points) if "net.time.weight" in p.inputs_of]
    samples = run(graph, feeds, offset)[SAMPLES].reshape(-1, NUM_SAMPLES)[index]
    assert (samples == 3.0).all()


def test_statistics_stand_right_behind_what_makes_the_value(source: Path) -> None:
    nodes = list(make_observed_graph(source).model.graph)
    measures = {"ReduceMin", "ReduceMax", "ReduceMean", "Gather"}
    for name in {*OUTPUTS.values(), "rows"}:
        (index,) = [i for i, node in enumerate(nodes) if node.outputs[0].name == name]
        users = {id(user) for user in nodes[index].outputs[0].consumers()}
        (first_layer,) = [
            i
            for i, node in enumerate(nodes)
            if id(node) in users and node.op_type not in {"Reshape", *measures}
        ][:1]
        assert measures <= {node.op_type for node in nodes[index + 1 : first_layer]}


def test_weights_in_a_file_are_found_and_the_folder_stays_as_it_was(tmp_path: Path) -> None:
    path = save_small_graph(tmp_path / "own" / "model.onnx", outside=True)
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    graph = make_observed_graph(path)
    tensors = [value.const_value for value in graph.model.graph.initializers.values()]
    assert any(isinstance(tensor, onnx_ir.ExternalTensor) for tensor in tensors)
    assert np.isfinite(run(graph, make_feeds(1))[MEAN]).all()
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_graph_without_layers_is_refused(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[N] x) => (float[N] y) {y = Relu (x)}'
    )
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(CalibrationError, match=r"model.onnx has no convolution or linear layer: "):
        make_observed_graph(tmp_path / "model.onnx")
