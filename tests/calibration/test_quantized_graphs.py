from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import QuantType, quant_utils
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.layers import find_layers
from mutoscope.calibration.quantized_graphs import (
    LayerQuantization,
    find_int8_scale,
    find_uint8_scale,
    make_int8_graph_for_processors,
    make_int8_graph_for_tensorrt,
    save_graph,
)
from tests.calibration.small_graph import LAYERS, make_feeds, save_small_graph
from tests.calibration.text_graphs import count_run_operators, run_graph, save_text_graph

# What random weights and inputs of this kind lose by int8: 1.5 % was measured, and more than 50 %
# where a scale, an axis or a bias is wrong.
INT8_ERROR = 0.05
# A value between two levels may be rounded either way, which the next layers carry on.
STEPS = 3.0
limits = st.floats(-1e4, 1e4, width=32)
Make = Callable[[Path, dict[str, LayerQuantization]], onnx_ir.Model]

NETWORK = """(float[n, 4, h, w] x) => (float[n, 3] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, conv, conv_bias)
    b = Conv <group = 2, strides = [2, 2]> (a, grouped)
    c = GlobalAveragePool (b)
    d = Flatten (c)
    e = MatMul (d, linear)
    f = Add (e, linear_bias)
    g = Add (f, d)
    z = Gemm <transB = 1> (g, gemm, gemm_bias)
    y = Relu (z)
}"""
SHAPES = {
    "conv": (6, 4, 3, 3), "conv_bias": (6,), "grouped": (6, 3, 3, 3),
    "linear": (6, 6), "linear_bias": (6,), "gemm": (3, 6), "gemm_bias": (3,),
}  # fmt: skip
NETWORK_LAYERS = ["conv", "grouped", "linear", "gemm"]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    weights = {n: random.standard_normal(s, dtype=np.float32) for n, s in SHAPES.items()}
    return save_text_graph(tmp_path_factory.mktemp("network") / "model.onnx", NETWORK, weights)


@pytest.fixture(scope="module")
def feeds() -> dict[str, NDArray[np.float32]]:
    return {"x": np.random.default_rng(1).standard_normal((5, 4, 9, 8), dtype=np.float32)}


def find_ranges(path: Path, feeds: dict[str, NDArray]) -> dict[str, tuple[float, float]]:
    """Return the range of every value of a float32 graph."""
    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    target = path.with_name("all.onnx")
    onnx.save(model, target)
    values = {**feeds, **dict(zip(names, run_graph(target, feeds), strict=True))}
    return {
        name: (float(array.min()), float(array.max()))
        for name, array in values.items()
        if array.dtype == np.float32
    }


def choose(path: Path, feeds: dict[str, NDArray]) -> dict[str, LayerQuantization]:
    """Return all layers of a graph with the ranges that they have on these inputs."""
    ranges = find_ranges(path, feeds)
    return {
        layer.name: LayerQuantization(
            ranges[str(layer.input.name)],
            ranges[str(layer.output.name)] if layer.kind == "convolution" else None,
        )
        for layer in find_layers(onnx_ir.load(path))
    }


def quantize_by_onnxruntime(path: Path, feeds: dict[str, NDArray], *, for_tensorrt: bool) -> Path:
    """Write what onnxruntime's own quantizer makes with the same ranges."""
    ranges = {
        name: tuple(np.array(number, np.float32) for number in limits)
        for name, limits in find_ranges(path, feeds).items()
    }
    float_outputs = ["MatMul", "Gemm", *(["Conv"] if for_tensorrt else [])]
    quantizer = QDQQuantizer(
        onnx.load(path),
        True,
        False,
        QuantType.QInt8,
        QuantType.QInt8 if for_tensorrt else QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, ranges),
        [],
        [],
        ["Conv", "MatMul", "Gemm"],
        {
            "ActivationSymmetric": for_tensorrt,
            "QuantizeBias": not for_tensorrt,
            "OpTypesToExcludeOutputQuantization": float_outputs,
        },
    )
    quantizer.quantize_model()
    target = path.with_name("reference.onnx")
    quantizer.model.save_model_to_file(str(target))
    return target


def read_initializers(path: Path) -> dict[str, NDArray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(
    ("make", "for_tensorrt"),
    [(make_int8_graph_for_processors, False), (make_int8_graph_for_tensorrt, True)],
    ids=["processors", "tensorrt"],
)
def test_the_numbers_are_those_of_onnxruntimes_quantizer(
    make: Make, for_tensorrt: bool, network: Path, feeds: dict[str, NDArray], tmp_path: Path
) -> None:
    save_graph(make(network, choose(network, feeds)), tmp_path / "model.onnx")
    found = read_initializers(tmp_path / "model.onnx")
    reference = quantize_by_onnxruntime(network, feeds, for_tensorrt=for_tensorrt)
    expected = read_initializers(reference)
    for name in NETWORK_LAYERS:
        values = expected[f"{name}_quantized"]
        values = values.T if name == "gemm" else values
        np.testing.assert_array_equal(found[f"{name}.int8"], values)
        np.testing.assert_allclose(found[f"{name}.scales"], expected[f"{name}_scale"], rtol=1e-6)
        assert not found[f"{name}.zero_points"].any()
    activations = {"x": "x", "d": "d", "g": "g"}
    if not for_tensorrt:
        activations |= {"a": "conv.output", "b": "grouped.output"}
    for name, ours in activations.items():
        separator = "_" if ours.endswith("output") else "."
        for part in ("scale", "zero_point"):
            mine, theirs = found[f"{ours}{separator}{part}"], expected[f"{name}_{part}"]
            np.testing.assert_allclose(mine, theirs, rtol=1e-6)
            assert mine.dtype == theirs.dtype
    if not for_tensorrt:
        np.testing.assert_array_equal(found["conv.bias"], expected["conv_bias_quantized"])
        assert found["conv.bias"].dtype == np.int32
    results = [run_graph(path, feeds)[0] for path in (tmp_path / "model.onnx", reference)]
    step = find_ranges(network, feeds)["y"][1] / 255
    assert np.abs(results[0] - results[1]).max() <= STEPS * step


@pytest.mark.parametrize("make", [make_int8_graph_for_processors, make_int8_graph_for_tensorrt])
def test_an_int8_graph_computes_about_the_same(make: Make, tmp_path: Path) -> None:
    path, feeds = save_small_graph(tmp_path / "model.onnx", outside=True), make_feeds(0)
    save_graph(make(path, choose_small(path)), tmp_path / "int8.onnx")
    onnx.checker.check_model(str(tmp_path / "int8.onnx"), full_check=True)
    (expected,), (found,) = (run_graph(tmp_path / n, feeds) for n in ("model.onnx", "int8.onnx"))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < error < INT8_ERROR


def choose_small(path: Path) -> dict[str, LayerQuantization]:
    """Return all layers of the small graph with the ranges that they have on its inputs."""
    plain = save_small_graph(path.with_name("plain.onnx"))
    return choose(plain, make_feeds(0))


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_on_a_processor_every_layer_runs_in_int8(stored: str, tmp_path: Path) -> None:
    path = save_small_graph(tmp_path / "model.onnx", stored)  # type: ignore[arg-type]
    save_graph(make_int8_graph_for_processors(path, choose_small(path)), tmp_path / "int8.onnx")
    counts = count_run_operators(tmp_path / "int8.onnx", tmp_path / "run.onnx")
    # A convolution with groups and one over frames, five axes, are QLinearConv too.
    assert counts["QLinearConv"] == 2
    assert counts["MatMulIntegerToFloat"] == 5
    assert not counts.keys() & {"Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm"}


@pytest.mark.parametrize(
    "fixture", ["tiny_bundle", "sdxl_bundle", "modelscope_bundle", "i2vgen_bundle", "svd_bundle"]
)
def test_every_layer_of_every_denoiser_runs_in_int8(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = request.getfixturevalue(fixture) / "unet" / "model_cpu.onnx"
    layers = find_layers(onnx_ir.load(path))
    wanted = {layer.name: LayerQuantization((-4, 4), (-4, 4)) for layer in layers}
    save_graph(make_int8_graph_for_processors(path, wanted), tmp_path / "int8.onnx")
    onnx.checker.check_model(str(tmp_path / "int8.onnx"), full_check=True)
    kinds = [layer.kind for layer in layers]
    counts = count_run_operators(tmp_path / "int8.onnx", tmp_path / "run.onnx")
    assert counts["QLinearConv"] == kinds.count("convolution")
    assert counts["MatMulIntegerToFloat"] == kinds.count("linear")


def test_layers_that_share_an_input_share_its_quantization(tmp_path: Path) -> None:
    path = save_small_graph(tmp_path / "model.onnx")
    names = ["net.q.weight", "net.k.weight", "net.v.weight"]
    wanted = {name: LayerQuantization((-4, 4)) for name in names}
    for make in (make_int8_graph_for_processors, make_int8_graph_for_tensorrt):
        operators = [node.op_type for node in make(path, wanted).graph]
        assert operators.count("QuantizeLinear") == 1


def test_a_convolution_that_takes_another_ones_output_does_not_quantize_it_again(
    network: Path, feeds: dict[str, NDArray], tmp_path: Path
) -> None:
    wanted = {n: how for n, how in choose(network, feeds).items() if n in ("conv", "grouped")}
    save_graph(make_int8_graph_for_processors(network, wanted), tmp_path / "int8.onnx")
    counts = count_run_operators(tmp_path / "int8.onnx", tmp_path / "run.onnx")
    assert counts["QLinearConv"] == 2
    assert counts["QuantizeLinear"] == counts["DequantizeLinear"] == 1


def test_layers_that_are_not_wanted_stay_as_they_are(tmp_path: Path) -> None:
    path = save_small_graph(tmp_path / "model.onnx")
    wanted = {"net.q.weight": LayerQuantization((-4, 4))}
    for make in (make_int8_graph_for_processors, make_int8_graph_for_tensorrt):
        left = [layer.name for layer in find_layers(make(path, wanted))]
        assert left == [name for name in LAYERS if name != "net.q.weight"]


CHAIN = "(float[n, 4] x) => (float[n, 4] y) { a = MatMul (x, first) y = MatMul (a, second) }"


@pytest.mark.parametrize("make", [make_int8_graph_for_processors, make_int8_graph_for_tensorrt])
def test_a_layer_that_makes_the_output_keeps_its_name(make: Make, tmp_path: Path) -> None:
    weights = {"first": np.eye(4, dtype=np.float32), "second": 2 * np.eye(4, dtype=np.float32)}
    path = save_text_graph(tmp_path / "model.onnx", CHAIN, weights)
    wanted = {"first": LayerQuantization((-1, 1)), "second": LayerQuantization((-8, 8))}
    save_graph(make(path, wanted), tmp_path / "int8.onnx")
    model = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.output] == ["y"]
    # A scale of its own for each of two products, one right behind the other.
    x = np.array([[0.5, -0.25, 1.0, 0.0]], np.float32)
    (y,) = run_graph(tmp_path / "int8.onnx", {"x": x})
    np.testing.assert_allclose(y, 2 * x, atol=2 * 16 / 255)


@pytest.mark.parametrize("make", [make_int8_graph_for_processors, make_int8_graph_for_tensorrt])
def test_new_values_have_names_that_weights_do_not_have(make: Make, tmp_path: Path) -> None:
    weights = {f"val_{index}": np.eye(4, dtype=np.float32) for index in range(8)}
    sums = " ".join(f"s{i + 1} = MatMul (s{i}, val_{i})" for i in range(8))
    text = f"(float[n, 4] s0) => (float[n, 4] y) {{ {sums} y = Relu (s8) }}"
    path = save_text_graph(tmp_path / "model.onnx", text, weights)
    wanted = {"val_7": LayerQuantization((-1, 1))}
    save_graph(make(path, wanted), tmp_path / "int8.onnx")
    onnx.checker.check_model(str(tmp_path / "int8.onnx"), full_check=True)


def test_a_linear_layer_without_a_range_is_quantized_as_it_runs(tmp_path: Path) -> None:
    path, feeds = save_small_graph(tmp_path / "model.onnx"), make_feeds(0)
    names = [name for name in LAYERS if name not in ("net.conv.weight", "net.temporal.weight")]
    wanted = {name: LayerQuantization(None) for name in names}
    save_graph(make_int8_graph_for_processors(path, wanted), tmp_path / "int8.onnx")
    counts = count_run_operators(tmp_path / "int8.onnx", tmp_path / "run.onnx")
    assert counts["DynamicQuantizeMatMul"] == len(names)
    (expected,), (found,) = (run_graph(tmp_path / n, feeds) for n in ("model.onnx", "int8.onnx"))
    assert 0 < np.linalg.norm(found - expected) < INT8_ERROR * np.linalg.norm(expected)


def test_without_a_range_tensorrt_gets_the_weights_alone_in_int8(tmp_path: Path) -> None:
    path, feeds = save_small_graph(tmp_path / "model.onnx"), make_feeds(0)
    wanted = {name: LayerQuantization(None) for name in LAYERS}
    save_graph(make_int8_graph_for_tensorrt(path, wanted), tmp_path / "int8.onnx")
    onnx.checker.check_model(str(tmp_path / "int8.onnx"), full_check=True)
    model = onnx.load(tmp_path / "int8.onnx")
    assert "QuantizeLinear" not in {node.op_type for node in model.graph.node}
    assert {tensor.name for tensor in model.graph.initializer} >= {f"{n}.int8" for n in LAYERS}
    (expected,), (found,) = (run_graph(tmp_path / n, feeds) for n in ("model.onnx", "int8.onnx"))
    assert 0 < np.linalg.norm(found - expected) < INT8_ERROR * np.linalg.norm(expected)


@pytest.mark.parametrize("make", [make_int8_graph_for_processors, make_int8_graph_for_tensorrt])
def test_an_unknown_layer_is_refused(make: Make, tmp_path: Path) -> None:
    path = save_small_graph(tmp_path / "unet" / "model.onnx")
    with pytest.raises(CalibrationError, match=r"^unet/model\.onnx has no layer absent \(1 of 1 "):
        make(path, {"absent": LayerQuantization((-1, 1))})


def test_a_convolution_without_a_range_of_its_output_is_refused(tmp_path: Path) -> None:
    path = save_small_graph(tmp_path / "model.onnx")
    with pytest.raises(CalibrationError, match=r"net\.conv\.weight lacks a range: "):
        make_int8_graph_for_processors(path, {"net.conv.weight": LayerQuantization((-1, 1))})


def test_a_large_bias_of_a_channel_without_weights_is_kept(tmp_path: Path) -> None:
    text = "(float[n, 2, h, w] x) => (float[n, 2, h, w] y) { a = Conv (x, W, B) y = Relu (a) }"
    weights = {"W": np.zeros((2, 2, 1, 1), np.float32), "B": np.array([1, 5], np.float32)}
    weights["W"][0] = 1
    path = save_text_graph(tmp_path / "model.onnx", text, weights)
    wanted = {"W": LayerQuantization((0, 0.05), (0, 5))}
    save_graph(make_int8_graph_for_processors(path, wanted), tmp_path / "int8.onnx")
    (y,) = run_graph(tmp_path / "int8.onnx", {"x": np.zeros((1, 2, 1, 1), np.float32)})
    np.testing.assert_allclose(y.ravel(), [1, 5], atol=5 / 255)


@given(low=limits, size=st.floats(0, 1e4, width=32))
def test_a_uint8_scale_is_that_of_onnxruntime(low: float, size: float) -> None:
    found = np.float32(low), np.float32(low) + np.float32(size)
    scale, zero_point = find_uint8_scale((float(found[0]), float(found[1])))
    arrays = [np.array(number, np.float32) for number in found]
    expected_zero, expected_scale = quant_utils.compute_scale_zp(
        *arrays, *quant_utils.get_qmin_qmax_for_qType(TensorProto.UINT8)
    )
    assert (scale, zero_point) == (expected_scale, expected_zero)


@given(low=limits, size=st.floats(0, 1e4, width=32))
def test_an_int8_scale_is_that_of_onnxruntime(low: float, size: float) -> None:
    found = np.float32(low), np.float32(low) + np.float32(size)
    arrays = [np.array(number, np.float32) for number in found]
    zero_point, scale = quant_utils.compute_scale_zp(
        *arrays, *quant_utils.get_qmin_qmax_for_qType(TensorProto.INT8, symmetric=True), True
    )
    assert zero_point == 0
    assert find_int8_scale((float(found[0]), float(found[1]))) == pytest.approx(scale, rel=1e-6)


def test_weights_of_several_hard_links_are_read(tmp_path: Path) -> None:
    # As installers leave them that link what they install to what they keep.
    path = save_small_graph(tmp_path / "model.onnx")
    model = onnx_ir.load(path)
    onnx_ir.save(model, path, external_data="model.onnx.data", size_threshold_bytes=100)
    (tmp_path / "again.data").hardlink_to(tmp_path / "model.onnx.data")
    save_graph(make_int8_graph_for_processors(path, choose_small(path)), tmp_path / "int8.onnx")
    (expected,), (found,) = (run_graph(p, make_feeds(0)) for p in (path, tmp_path / "int8.onnx"))
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < INT8_ERROR


def test_openvino_reads_the_form_for_processors(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="pip install openvino")
    from mutoscope.engines.openvino_engine import OpenvinoEngine

    path, feeds = save_small_graph(tmp_path / "model.onnx"), make_feeds(0)
    save_graph(make_int8_graph_for_processors(path, choose_small(path)), tmp_path / "int8.onnx")
    (expected,) = run_graph(path, feeds)
    found = OpenvinoEngine(tmp_path / "int8.onnx", num_threads=1).run(feeds)["out_sample"]
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < INT8_ERROR
