"""Move outliers of activations into weights, where a norm before the layers can take them.

An activation that a few channels make large wastes the steps of int8 on all the others. Its
channels are divided by what their weights are multiplied by; the layer computes the same. The
division costs nothing where a LayerNormalization makes the activation: it is part of its scale and
shift.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models", equation 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.graph_editing import Inserter, find_producer, is_weight
from mutoscope.calibration.layers import Layer, read_weight

F32 = NDArray[np.float32]

# How much of the outliers goes to the weights; the paper's choice for most models.
STRENGTH = 0.5
_SMALLEST = 1e-5


def find_smoothing(
    layers: list[Layer],
    find_channel_maximum: Callable[[str], F32],
    strength: float = STRENGTH,
) -> dict[str, F32]:
    """Return what to divide the input channels of layers by, where a norm can take it.

    Args:
        layers: Those that will be quantized, of one graph.
        find_channel_maximum: Returns the largest magnitude of each channel of a layer's input,
            float32 [in], by the layer's name.
        strength: From 0, which leaves all to the activations, to 1, all to the weights.

    Returns:
        By the names of the layers, float32 [in]. All layers that take one activation have the same.
    """
    groups: dict[onnx_ir.Value, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.input, []).append(layer)
    found: dict[str, F32] = {}
    for value, group in groups.items():
        if _find_norm(value, group) is None:
            continue
        activations = np.maximum(find_channel_maximum(group[0].name), _SMALLEST)
        largest = [np.abs(layer.read_weight()).max(axis=1) for layer in group]
        weights = np.maximum(np.max(largest, axis=0), _SMALLEST)
        factors = (activations**strength / weights ** (1 - strength)).astype(np.float32)
        found.update({layer.name: factors for layer in group})
    return found


def smooth_norms(model: onnx_ir.Model, smoothed: Mapping[str, tuple[Layer, F32]]) -> None:
    """Divide scale and shift of the norms before these layers, in place.

    Raises:
        CalibrationError: Something else takes the norm's output as well.
    """
    groups: dict[onnx_ir.Value, list[tuple[Layer, F32]]] = {}
    for layer, factors in smoothed.values():
        groups.setdefault(layer.input, []).append((layer, factors))
    for value, group in groups.items():
        norm = _find_norm(value, [layer for layer, _ in group])
        if norm is None:
            raise CalibrationError(
                f"{group[0][0].name} cannot be smoothed: not all that takes its input is "
                "quantized: calibrate without smoothing"
            )
        insert, factors = Inserter(model.graph, norm), group[0][1]
        for index in (1, 2):
            weight = norm.inputs[index] if len(norm.inputs) > index else None
            if weight is None:
                continue
            tensor = onnx_ir.tensor(
                (read_weight(weight) / factors).astype(np.float32),
                name=f"{weight.name}.smoothed.{value.name}",
            )
            norm.replace_input_with(index, insert.register(tensor))


def _find_norm(value: onnx_ir.Value, group: Sequence[Layer]) -> onnx_ir.Node | None:
    """The norm that makes a value, if its scale can take the division and only `group` sees it."""
    taken_by = {layer.node for layer in group}
    cast = find_producer(value, "Cast")  # of a norm in a float16 graph, which is float32
    if cast is not None:
        if value.is_graph_output() or set(value.consumers()) != taken_by:
            return None
        (made,) = cast.inputs
        assert made is not None
        value, taken_by = made, {cast}
    norm = find_producer(value, "LayerNormalization")
    if norm is None or value.is_graph_output() or set(value.consumers()) != taken_by:
        return None
    return norm if is_weight(norm.inputs[1]) else None
