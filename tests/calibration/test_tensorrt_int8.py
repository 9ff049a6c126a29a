"""The form for TensorRT: what is in it, and that TensorRT builds it for every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from mutoscope.calibration.fixed_layers import find_fixed_layers
from mutoscope.calibration.graph_editing import find_producer, read_constant
from mutoscope.calibration.layers import find_layers
from mutoscope.calibration.quantized_graphs import (
    LayerQuantization,
    make_int8_graph_for_tensorrt,
    save_graph,
)
from mutoscope.runtime.manifest import Manifest
from tests.calibration.text_graphs import save_text_graph
from tests.tensorrt_build import build_component, make_cases

# Whether TensorRT takes a graph does not depend on its ranges.
RANGE = (-4.0, 4.0)
# A build of a UNet takes 10 to 70 seconds.
FAMILIES = ("tiny", "float16", "sdxl", "modelscope", "i2vgen", "svd")
DTYPES = {"tiny_bundle": np.float32, "float16_bundle": np.float16}


def choose_layers(source: Path) -> dict[str, LayerQuantization]:
    """Return all layers of a graph that are not fixed."""
    model = onnx_ir.load(source)
    layers = find_layers(model)
    fixed = find_fixed_layers(model, layers)
    return {layer.name: LayerQuantization(RANGE) for layer in layers if layer.name not in fixed}


def build_int8(bundle: Path, component: str, preset: str, folder: Path) -> int:
    """Return the size of the plan of a component whose layers are all int8 that may be."""
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13 (Linux, x86-64)")
    source, target = bundle / component / "model.onnx", folder / f"{component}.onnx"
    save_graph(make_int8_graph_for_tensorrt(source, choose_layers(source)), target)
    onnx.checker.check_model(str(target), full_check=True)
    return build_component(bundle, component, preset, folder, graph=target)


@pytest.mark.parametrize("fixture", ["tiny_bundle", "float16_bundle"])
def test_tensorrt_builds_an_int8_decoder(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    assert build_int8(request.getfixturevalue(fixture), "vae_decoder", "any", tmp_path) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("family", "preset"), make_cases(FAMILIES))
def test_tensorrt_builds_the_int8_graphs_of_every_family(
    family: str, preset: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = request.getfixturevalue(f"{family}_bundle")
    for component in Manifest.load(bundle / "manifest.json").components:
        assert build_int8(bundle, component, preset, tmp_path) > 0


@pytest.fixture(params=DTYPES, name="case")
def make_case(
    request: pytest.FixtureRequest,
) -> tuple[onnx_ir.Model, onnx_ir.Model, dict[str, LayerQuantization], type]:
    """A denoiser's graph, its int8 form, the layers that are int8, and what it computes in."""
    source = request.getfixturevalue(request.param) / "unet" / "model.onnx"
    wanted = choose_layers(source)
    model = make_int8_graph_for_tensorrt(source, wanted)
    return onnx_ir.load(source), model, wanted, DTYPES[request.param]


Case = tuple[onnx_ir.Model, onnx_ir.Model, dict[str, LayerQuantization], type]


def read(value: onnx_ir.Value | None) -> np.ndarray:
    array = read_constant(value)
    assert array is not None
    return array


def test_only_inputs_of_layers_are_quantized_and_each_once(case: Case) -> None:
    plain, model, wanted, dtype = case
    inputs = {layer.input for layer in find_layers(plain) if layer.name in wanted}
    nodes = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert len(nodes) == len(inputs)
    assert len({node.inputs[0] for node in nodes}) == len(nodes)
    for node in nodes:
        scale, zero_point = read(node.inputs[1]), read(node.inputs[2])
        assert (scale.dtype, scale.shape) == (dtype, ())
        assert (zero_point.dtype, zero_point.item()) == (np.int8, 0)
        for user in node.outputs[0].consumers():
            assert user.op_type == "DequantizeLinear"
            takers = {taker.op_type for taker in user.outputs[0].consumers()}
            assert takers <= {"Conv", "MatMul", "Gemm"}


def test_weights_are_int8_for_each_channel_of_the_output(case: Case) -> None:
    plain, model, wanted, dtype = case
    shapes = {layer.name: layer.read_weight().shape for layer in find_layers(plain)}
    found = {}
    for node in model.graph:
        weight = find_producer(node.inputs[1], "DequantizeLinear") if len(node.inputs) > 1 else None
        if weight is None or node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        values, scales, zero_points = (read(value) for value in weight.inputs)
        axis = 0 if node.op_type == "Conv" else 1
        assert weight.attributes["axis"].as_int() == axis
        assert (values.dtype, scales.dtype, zero_points.dtype) == (np.int8, dtype, np.int8)
        assert scales.shape == zero_points.shape == (values.shape[axis],)
        assert not zero_points.any()
        assert weight.inputs[0] is not None
        found[str(weight.inputs[0].name).removesuffix(".int8")] = values.shape
    assert found == {name: shapes[name] for name in wanted}


def test_biases_and_sums_stay_as_they_were(case: Case) -> None:
    plain, model, wanted, dtype = case
    for node in model.graph:
        if node.op_type == "Conv":
            assert len(node.inputs) == 2 or read(node.inputs[2]).dtype == dtype
        if node.op_type == "Add":
            assert all(find_producer(value, "DequantizeLinear") is None for value in node.inputs)
    sums = [[node.op_type for node in graph].count("Add") for graph in (plain.graph, model.graph)]
    assert sums[0] == sums[1] > 0
    assert not any(str(name).endswith(".bias_scales") for name in model.graph.initializers)
    assert len(wanted) > 100


def test_a_range_too_narrow_for_float16_still_has_a_scale(tmp_path: Path) -> None:
    text = "(float16[n, 4] x) => (float16[n, 4] y) { a = MatMul (x, W) y = Relu (a) }"
    path = save_text_graph(tmp_path / "model.onnx", text, {"W": np.eye(4, dtype=np.float16)})
    for limits in ((0, 0), (-1e-7, 1e-7)):
        model = make_int8_graph_for_tensorrt(path, {"W": LayerQuantization(limits)})
        (node,) = [node for node in model.graph if node.op_type == "QuantizeLinear"]
        assert read(node.inputs[1]) > 0


def test_the_graph_imports_nothing_but_onnx_and_is_typed_throughout(
    case: Case, tmp_path: Path
) -> None:
    plain, model, _, _ = case
    assert dict(model.opset_imports) == dict(plain.opset_imports) == {"": 20}
    save_graph(model, tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    typed = onnx.load(tmp_path / "model.onnx")
    onnx.shape_inference.infer_shapes(typed, check_type=True, strict_mode=True)
