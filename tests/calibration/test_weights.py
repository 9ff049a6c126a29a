from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import quant_utils

from mutoscope.calibration.weights import quantize_bias, quantize_weight

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
