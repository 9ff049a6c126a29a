from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import quant_utils

from mutoscope.calibration.layers import Layer, find_layers
from mutoscope.calibration.weights import find_bias_shift, quantize_bias, quantize_weight
from tests.calibration.text_graphs import run_graph, save_text_graph

FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)
# Half a step of int8, and what float32 adds.
HALF_STEP = 0.5 + 1e-3
# A scale in float16 may be smaller by half of its last bit, so that the largest value is cut.
FLOAT16_HALF_STEP = HALF_STEP + 127 * 2.0**-11
# Sums of a hundred products in another order.
ROUNDING = 1e-4

weights = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=4, max_side=4),
    elements=st.floats(-8, 8, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0),
)


@given(weight=weights, axis=st.integers(0, 1))
def test_a_weight_is_quantized_as_onnxruntime_does_it(weight: NDArray, axis: int) -> None:
    found = quantize_weight(weight, axis, FLOAT32)
    for index in range(weight.shape[axis]):
        channel = weight.take(index, axis)
        if not channel.any():  # onnxruntime takes the scale 1
            assert not found.values.take(index, axis).any()
            assert found.scales[index] > 0
            continue
        zero_point, scale = quant_utils.compute_data_quant_params(
            channel.ravel(), TensorProto.INT8, True
        )
        expected = quant_utils.quantize_nparray(
            TensorProto.INT8, channel.ravel(), scale, zero_point
        )
        # onnxruntime divides in float64 and rounds then.
        assert found.scales[index] == pytest.approx(float(scale), rel=1e-6)
        assert np.abs(found.values.take(index, axis).ravel() - expected.astype(int)).max() <= 1
        assert zero_point == 0


@pytest.mark.parametrize(
    ("dtype", "half_step"), [(FLOAT32, HALF_STEP), (FLOAT16, FLOAT16_HALF_STEP)]
)
@given(weight=weights, axis=st.integers(0, 1))
def test_no_weight_moves_by_more_than_half_a_step_of_its_channel(
    weight: NDArray, axis: int, dtype: np.dtype, half_step: float
) -> None:
    found = quantize_weight(weight, axis, dtype)
    assert found.scales.dtype == dtype
    assert found.values.dtype == np.int8
    assert found.values.min() >= -127
    error = np.moveaxis(np.abs(found.dequantize() - weight), axis, -1)
    assert (error <= half_step * found.scales.astype(np.float32)).all()


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16])
def test_a_channel_of_zeros_has_a_scale_too(dtype: np.dtype) -> None:
    weight = np.zeros((2, 3), np.float32)
    weight[1] = 1e-9
    found = quantize_weight(weight, 0, dtype)
    assert (found.scales > 0).all()
    assert not found.values.any()


def test_a_bias_is_in_units_of_input_scale_times_weight_scale() -> None:
    weight = quantize_weight(np.diag([127.0, 254.0]).astype(np.float32), 0, FLOAT32)
    bias = quantize_bias(np.array([3.0, -10.0], np.float32), 0.5, weight)
    assert bias.dtype == np.int32
    assert bias.tolist() == [6, -10]


LINEAR = "(float[n, 6] x) => (float[n, 5] y) { p = MatMul (x, W)  y = Add (p, B) }"
GEMM = "(float[n, 6] x) => (float[n, 5] y) { y = Gemm <transB = 1> (x, W, B) }"
CONVOLUTION = "(float[n, 6, h, w] x) => (float[n, 4, i, j] y) { y = Conv (x, W, B) }"
GROUPED = "(float[n, 6, h, w] x) => (float[n, 4, i, j] y) { y = Conv <group = 2> (x, W, B) }"
VIDEO = "(float[n, 6, f, h, w] x) => (float[n, 4, g, i, j] y) { y = Conv (x, W, B) }"


@pytest.mark.parametrize(
    ("text", "shape", "input_shape"),
    [
        (LINEAR, (6, 5), (64, 6)),
        (GEMM, (5, 6), (64, 6)),
        (CONVOLUTION, (4, 6, 3, 3), (4, 6, 16, 16)),
        (GROUPED, (4, 3, 3, 3), (4, 6, 16, 16)),
        (VIDEO, (4, 6, 3, 1, 1), (2, 6, 9, 8, 8)),
    ],
    ids=["linear", "gemm", "convolution", "grouped", "video"],
)
def test_a_corrected_bias_keeps_the_mean_output(
    text: str, shape: tuple[int, ...], input_shape: tuple[int, ...], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal(shape, dtype=np.float32)
    bias = random.standard_normal(5 if 5 in shape else 4, dtype=np.float32)
    # Channels that are not around zero are what makes the mean of an error differ from zero.
    x = random.standard_normal(input_shape, dtype=np.float32)
    x += np.arange(1, 7, dtype=np.float32).reshape(1, 6, *[1] * (len(input_shape) - 2))
    path = save_text_graph(tmp_path / "float.onnx", text, {"W": weight, "B": bias})
    layer = read_layer(path)
    found = quantize_weight(layer.read_weight(), layer.output_axis, FLOAT32)
    means = x.mean(axis=tuple(i for i in range(x.ndim) if i != 1))
    shift = find_bias_shift(layer, layer.read_weight(), found, means)
    assert shift.shape == bias.shape
    rounded = found.dequantize().T if layer.is_transposed else found.dequantize()
    expected = find_channel_means(path, x)
    errors = []
    for index, candidate in enumerate((bias, bias + shift)):
        weights = {"W": np.ascontiguousarray(rounded), "B": candidate.astype(np.float32)}
        changed = save_text_graph(tmp_path / f"{index}.onnx", text, weights)
        errors.append(np.abs(find_channel_means(changed, x) - expected))
    assert errors[0].max() > 0.01
    # What is left of a convolution is that its edges are seen less often than its middle.
    assert errors[1].max() < (ROUNDING if layer.kind == "linear" else 0.1 * errors[0].max())


def read_layer(path: Path) -> Layer:
    (layer,) = find_layers(onnx_ir.load(path))
    return layer


def find_channel_means(path: Path, x: NDArray) -> NDArray:
    (y,) = run_graph(path, {"x": x})
    return y.mean(axis=tuple(i for i in range(y.ndim) if i != 1))
