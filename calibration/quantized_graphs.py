"""Make a graph with some of its layers in int8: one form for processors, one for TensorRT.

No one form is fast on both (docs/decisions/0005-int8.md). Ranges, and so which layers, come from
whoever calls: a layer without a range stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.passes.common import (
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    TopologicalSortPass,
)

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.graph_editing import (
    CONTRIB_DOMAIN,
    Inserter,
    find_producer,
    read_array,
    read_constant,
)
from mutoscope.calibration.layers import Layer, find_layers, find_weight_dtype
from mutoscope.calibration.smoothing import smooth_norms
from mutoscope.calibration.weights import (
    QuantizedWeight,
    quantize_bias,
    quantize_weight,
)

F32 = NDArray[np.float32]
Range = tuple[float, float]

# The smaller ones, shapes among them, must lie in the graph itself.
_EXTERNAL_DATA_MINIMUM_BYTES = 1024

# Of an int32, half of what it holds: the correction of a bias comes after.
_MOST_BIAS_UNITS = 2.0**30


@dataclass(frozen=True)
class LayerQuantization:
    """How one layer becomes int8.

    Attributes:
        input: The range of its input. None is for linear layers: processors then find it at run
            time, and TensorRT gets the weights alone in int8.
        output: The range of a convolution's output.
        smoothing: What each channel of the input is divided by, and its weights are multiplied
            by, float32 [in]; None for nothing.
    """

    input: Range | None
    output: Range | None = None
    smoothing: F32 | None = None


@dataclass
class _Quantizer:
    """What both forms share: the graph, and what is in it already."""

    model: onnx_ir.Model
    # By the name of a value: its quantized form, the scale and the zero point.
    quantized: dict[str, tuple[onnx_ir.Value, onnx_ir.Value, onnx_ir.Value]] = field(
        default_factory=dict
    )

    def register(self, insert: Inserter, name: str, array: Any) -> onnx_ir.Value:
        return insert.register(onnx_ir.tensor(np.asarray(array), name=name))

    def quantize(
        self, insert: Inserter, value: onnx_ir.Value, scale: Any, zero_point: Any
    ) -> tuple[onnx_ir.Value, onnx_ir.Value, onnx_ir.Value]:
        """Return a value in int8 with its scale and zero point; once for all that take it."""
        known = find_producer(value, "DequantizeLinear")
        if known is not None:
            first, second, third = known.inputs
            assert first is not None
            assert second is not None
            assert third is not None
            return first, second, third
        name = str(value.name)
        if name not in self.quantized:
            parts = (
                self.register(insert, f"{name}.scale", scale),
                self.register(insert, f"{name}.zero_point", zero_point),
            )
            self.quantized[name] = (insert.add("QuantizeLinear", [value, *parts]), *parts)
        return self.quantized[name]

    def add_weight(
        self, insert: Inserter, layer: Layer, weight: QuantizedWeight
    ) -> tuple[onnx_ir.Value, onnx_ir.Value, onnx_ir.Value]:
        """Return a weight's values, scales and zero points."""
        return (
            self.register(insert, f"{layer.name}.int8", weight.values),
            self.register(insert, f"{layer.name}.scales", weight.scales),
            self.register(
                insert, f"{layer.name}.zero_points", np.zeros(len(weight.scales), np.int8)
            ),
        )


def make_int8_graph_for_processors(
    source: Path, layers: Mapping[str, LayerQuantization]
) -> onnx_ir.Model:
    """Return a graph as onnxruntime's CPU provider runs int8 fastest; OpenVINO reads it as well.

    Activations are uint8 with a zero point, weights int8 for each channel. A convolution is
    quantized at input and output, so that it runs as one QLinearConv, its bias int32. A linear
    layer is quantized at the input only, as one MatMulIntegerToFloat that adds the bias: a sum in
    float after it costs what the product saves where there are few channels.

    Args:
        source: A float32 graph, the one for processors if there is one.
        layers: What becomes int8, by the names of the layers.

    Raises:
        CalibrationError: There is no such layer, or a convolution has no range for its output.
    """

    def quantize(state: _Quantizer, layer: Layer, how: LayerQuantization) -> None:
        if layer.kind == "linear":
            _quantize_linear(state, layer, how)
        else:
            _quantize_convolution(state, layer, how)

    model = _make_model(source, layers, quantize)
    if layers:
        model.opset_imports[CONTRIB_DOMAIN] = 1
    return model


def _quantize_linear(state: _Quantizer, layer: Layer, how: LayerQuantization) -> None:
    """Put one operator for processors in the place of a linear layer and its bias."""
    insert = Inserter(state.model.graph, layer.last_node)
    weight, bias = _prepare_weight(layer, how, np.dtype(np.float32))
    w, w_scales, w_zeros = state.add_weight(insert, layer, weight)
    shift = None if bias is None else state.register(insert, f"{layer.name}.bias", bias)
    if how.input is None:
        op_type, inputs = "DynamicQuantizeMatMul", [layer.input, w, w_scales, w_zeros, shift]
    else:
        x, x_scale, x_zero = state.quantize(insert, layer.input, *find_uint8_scale(how.input))
        op_type, inputs = (
            "MatMulIntegerToFloat",
            [x, w, x_scale, w_scales, x_zero, w_zeros, shift],
        )
    insert.replace(insert.add(op_type, inputs, domain=CONTRIB_DOMAIN))


def _quantize_convolution(state: _Quantizer, layer: Layer, how: LayerQuantization) -> None:
    """Put what onnxruntime makes a QLinearConv of in the place of a convolution."""
    insert = Inserter(state.model.graph, layer.node)
    if how.input is None or how.output is None:
        raise CalibrationError(f"{layer.name} lacks a range: calibrate the bundle again")
    x, x_scale, x_zero = state.quantize(insert, layer.input, *find_uint8_scale(how.input))
    input_scale = read_constant(x_scale)
    assert input_scale is not None
    weight, bias = _prepare_weight(layer, how, np.dtype(np.float32), float(input_scale))
    w, w_scales, w_zeros = state.add_weight(insert, layer, weight)
    operands = [
        insert.add("DequantizeLinear", [x, x_scale, x_zero]),
        insert.add("DequantizeLinear", [w, w_scales, w_zeros], axis=weight.axis),
    ]
    if bias is not None:
        units = (np.float64(input_scale) * weight.scales).astype(np.float32)
        parts = [
            state.register(
                insert, f"{layer.name}.bias", quantize_bias(bias, float(input_scale), weight)
            ),
            state.register(insert, f"{layer.name}.bias_scales", units),
            state.register(insert, f"{layer.name}.bias_zeros", np.zeros(len(bias), np.int32)),
        ]
        operands.append(insert.add("DequantizeLinear", parts, axis=0))
    product = insert.add("Conv", operands, **_read_attributes(layer.node))
    out_scale, out_zero = find_uint8_scale(how.output)
    ends = [
        state.register(insert, f"{layer.name}.output_scale", out_scale),
        state.register(insert, f"{layer.name}.output_zero_point", out_zero),
    ]
    quantized = insert.add("QuantizeLinear", [product, *ends])
    insert.replace(insert.add("DequantizeLinear", [quantized, *ends]))


def make_int8_graph_for_tensorrt(
    source: Path, layers: Mapping[str, LayerQuantization]
) -> onnx_ir.Model:
    """Return a graph with the explicit quantization that TensorRT reads.

    Activations and weights are int8 with zero point 0, weights for each channel; only the inputs of
    layers are quantized, biases and sums stay in what the graph computes in, float32 or float16. On
    a CPU it is slower than the graph that it was made of.

    Args:
        source: A plain graph, in float16 if there is one.
        layers: What becomes int8, by the names of the layers.

    Raises:
        CalibrationError: There is no such layer.

    Source: "Explicit Quantization" in the documentation of TensorRT 10 and later.
    """

    def quantize(state: _Quantizer, layer: Layer, how: LayerQuantization) -> None:
        insert = Inserter(state.model.graph, layer.node)
        dtype = find_weight_dtype(layer)
        x = layer.input
        if how.input is not None:
            smallest = np.finfo(dtype).smallest_subnormal
            scale = np.asarray(max(find_int8_scale(how.input), smallest), dtype=dtype)
            x = insert.add("DequantizeLinear", state.quantize(insert, x, scale, np.int8(0)))
        weight, bias = _prepare_weight(layer, how, dtype)
        operands = [
            x,
            insert.add(
                "DequantizeLinear", state.add_weight(insert, layer, weight), axis=weight.axis
            ),
        ]
        attributes = _read_attributes(layer.node)
        attributes.pop("transB", None)
        if len(layer.node.inputs) > 2:
            assert bias is not None
            shift = state.register(insert, f"{layer.name}.bias", bias.astype(dtype))
            operands.append(shift)
        insert.replace(insert.add(layer.node.op_type, operands, **attributes))

    return _make_model(source, layers, quantize)


def save_graph(model: onnx_ir.Model, target: Path) -> int:
    """Write a graph, and all its weights in `target`.data; return the bytes of both."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, onnx_ir.ExternalTensor):
            name, array = value.const_value.name, read_array(value.const_value)
            value.const_value = onnx_ir.tensor(array, name=name)
    data = target.with_name(f"{target.name}.data")
    onnx_ir.save(
        model,
        target,
        external_data=data.name,
        size_threshold_bytes=_EXTERNAL_DATA_MINIMUM_BYTES,
    )
    return target.stat().st_size + data.stat().st_size


def find_uint8_scale(limits: Range) -> tuple[np.float32, np.uint8]:
    """Return scale and zero point of a range as uint8; 0 is exact.

    Source: onnxruntime.quantization.quant_utils.compute_scale_zp, which this equals
    (tests/calibration/test_quantized_graphs.py).
    """
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    exact = (high - low) / 255
    if exact < np.finfo(np.float32).tiny:  # a value that is always 0
        return np.float32(1), np.uint8(0)
    return np.float32(exact), np.uint8(np.clip(np.rint(-low / exact), 0, 255))


def find_int8_scale(limits: Range) -> np.float32:
    """Return the scale of a range as int8 whose zero point is 0."""
    exact = max(-limits[0], limits[1]) / 127
    return np.float32(1 if exact < np.finfo(np.float32).tiny else exact)


def _prepare_weight(
    layer: Layer,
    how: LayerQuantization,
    dtype: np.dtype[np.floating],
    input_scale: float | None = None,
) -> tuple[QuantizedWeight, F32 | None]:
    """The weight in int8, and the bias in float32 that belongs to it.

    With `input_scale`, the bias is to be in units of that times the scales of the weight.
    """
    weight, bias = layer.read_weight(), layer.read_bias()
    if how.smoothing is not None:
        weight = weight * how.smoothing[:, None]
    least: float | F32 = 0.0
    if input_scale is not None and bias is not None:
        least = (np.abs(bias) / (input_scale * _MOST_BIAS_UNITS)).astype(np.float32)
    return quantize_weight(weight, layer.output_axis, dtype, least), bias


def _make_model(
    source: Path,
    wanted: Mapping[str, LayerQuantization],
    quantize: Callable[[_Quantizer, Layer, LayerQuantization], None],
) -> onnx_ir.Model:
    """Load a graph and quantize the layers that are wanted."""
    model = onnx_ir.load(source)
    layers = {layer.name: layer for layer in find_layers(model)}
    unknown = sorted(set(wanted) - set(layers))
    if unknown:
        raise CalibrationError(
            f"{source.parent.name}/{source.name} has no layer {unknown[0]} ({len(unknown)} of "
            f"{len(wanted)} are unknown): calibrate the bundle again"
        )
    smooth_norms(
        model,
        {
            name: (layers[name], how.smoothing)
            for name, how in wanted.items()
            if how.smoothing is not None
        },
    )
    state = _Quantizer(model)
    for name, layer in layers.items():
        if name in wanted:
            _release_output(model.graph, layer)
            quantize(state, layer, wanted[name])
    for clean in (RemoveUnusedNodesPass(), TopologicalSortPass(), RemoveUnusedOpsetsPass()):
        clean(model)
    return model


def _release_output(graph: onnx_ir.Graph, layer: Layer) -> None:
    """Let an Identity make the output of the graph that a layer makes, so that it can go."""
    for old in {layer.node.outputs[0], layer.output}:
        if not old.is_graph_output():
            continue
        node = onnx_ir.node("Identity", [old])
        graph.append(node)
        (new,) = node.outputs
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.name = f"{layer.name}.output"
        graph.outputs[graph.outputs.index(old)] = new


def _read_attributes(node: onnx_ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}
