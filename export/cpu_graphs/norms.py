"""Group norms whose scale and shift are one operator."""

from __future__ import annotations

import onnx_ir

from mutoscope.calibration.graph_editing import (
    Inserter,
    find_nodes,
    find_producer,
    is_weight,
)


def join_scale_and_shift(model: onnx_ir.Model) -> int:
    """Make the product and the sum behind a group norm one BatchNormalization.

    The exporter writes a group norm as an InstanceNormalization of the groups, then scale and shift
    of each channel. With mean 0 and variance 1 a BatchNormalization is just these two, in one pass
    over the memory; onnxruntime has no group norm for processors.
    """
    graph, count = model.graph, 0
    for add in find_nodes(graph, "Add"):
        scaled, shift = find_producer(add.inputs[0], "Mul"), add.inputs[1]
        restored = find_producer(scaled.inputs[0], "Reshape") if scaled is not None else None
        if scaled is None or restored is None or len(scaled.outputs[0].consumers()) != 1:
            continue
        norm, scale = find_producer(restored.inputs[0], "InstanceNormalization"), scaled.inputs[1]
        channels = _count_channels(scale, restored.outputs[0])
        if norm is None or scale is None or shift is None or channels is None:
            continue
        if _count_channels(shift, restored.outputs[0]) != channels:
            continue
        insert = Inserter(graph, add)
        insert.replace(
            insert.add(
                "BatchNormalization",
                [
                    restored.outputs[0],
                    insert.reshape_weight(scale, [channels]),
                    insert.reshape_weight(shift, [channels]),
                    insert.fill(channels, 0.0),
                    insert.fill(channels, 1.0),
                ],
                epsilon=0.0,
            )
        )
        count += 1
    return count


def _count_channels(weight: onnx_ir.Value | None, value: onnx_ir.Value) -> int | None:
    """The C of a weight [C, 1, ...], if it is one for the second axis of a value."""
    if weight is None or not is_weight(weight) or weight.shape is None or value.shape is None:
        return None
    shape = list(weight.shape)
    if len(shape) != value.shape.rank() - 1 or any(length != 1 for length in shape[1:]):
        return None
    return int(shape[0]) if isinstance(shape[0], int) else None
