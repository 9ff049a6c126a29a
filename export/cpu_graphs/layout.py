"""Transposes that onnxruntime does fast, and temporal convolutions in two dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx_ir

from mutoscope.calibration.graph_editing import (
    Inserter,
    count_axes,
    find_nodes,
    is_weight,
)


def merge_transposed_axes(model: onnx_ir.Model) -> int:
    """Transpose a matrix where a permutation of many axes moves whole groups of them.

    [B, H, W, F, C] to [B, F, C, H, W] is [B, H * W, F * C] to [B, F * C, H * W], for which
    onnxruntime has a kernel; it walks over all other permutations of more than one axis element by
    element. [B, C, F, H, W] to [B, H, W, F, C] has one group too many, and takes that after its
    frames went to the front, which moves blocks of H * W.
    """
    graph, count = model.graph, 0
    for node in find_nodes(graph, "Transpose"):
        source, permutation = node.inputs[0], list(node.attributes["perm"].as_ints())
        if source is None or len(permutation) != count_axes(source) or permutation[0] != 0:
            continue
        insert = Inserter(graph, node)
        groups = _group_axes(permutation)
        is_reversed = groups[1:] == sorted(groups[1:], reverse=True)
        if len(groups) == 4 and is_reversed and len(groups[1]) > 1:
            # Swap the first two groups of three, so that these two are one group.
            middle = [
                axis for group in (groups[0], groups[2], groups[3], groups[1]) for axis in group
            ]
            source = insert.add("Transpose", [source], perm=middle)
            permutation = [middle.index(axis) for axis in permutation]
            groups = _group_axes(permutation)
        # One axis that moves alone has a kernel too.
        if len(groups) != 3 or min(len(groups[1]), len(groups[2])) == 1:
            continue
        insert.replace(_transpose_groups(insert, source, permutation, groups))
        count += 1
    return count


def _group_axes(permutation: Sequence[int]) -> list[list[int]]:
    """Return the axes in their new order, those that stay neighbours in one list; 0 is alone."""
    groups = [[permutation[0]]]
    for before, axis in itertools.pairwise(permutation):
        if axis == before + 1 and before != 0:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


def _transpose_groups(
    insert: Inserter,
    source: onnx_ir.Value,
    permutation: Sequence[int],
    groups: Sequence[Sequence[int]],
) -> onnx_ir.Value:
    """Return the transpose of [A, B, C] to [A, C, B], where B and C are groups of axes."""
    shape = insert.add("Shape", [source])
    last = groups[1]  # it is last in the source, and next to the batch in the result
    size = insert.add("Gather", [shape, insert.constant(last)], axis=0)
    length = insert.add("ReduceProd", [size], keepdims=1)
    merged = insert.add("Concat", [insert.constant([0]), insert.constant([-1]), length], axis=0)
    swapped = insert.add("Transpose", [insert.add("Reshape", [source, merged])], perm=[0, 2, 1])
    result_shape = insert.add("Gather", [shape, insert.constant(permutation)], axis=0)
    return insert.add("Reshape", [swapped, result_shape])


def flatten_temporal_convolutions(model: onnx_ir.Model) -> int:
    """Make (k, 1, 1) convolutions on [B, C, F, H, W] (k, 1) ones on [B, C, F, H * W].

    onnxruntime has a blocked layout for two dimensions only. The weight keeps its bytes.
    """
    graph, count = model.graph, 0
    for node in find_nodes(graph, "Conv"):
        source, weight = node.inputs[:2]
        sizes = _read_temporal_sizes(node)
        if source is None or weight is None or sizes is None:
            continue
        channels_out, channels_in, length = sizes
        pads = node.attributes["pads"].as_ints()
        insert = Inserter(graph, node)
        flat = insert.add("Reshape", [source, insert.constant([0, 0, 0, -1])])
        convolved = insert.add(
            "Conv",
            [
                flat,
                insert.reshape_weight(weight, [channels_out, channels_in, length, 1]),
                *node.inputs[2:],
            ],
            kernel_shape=[length, 1],
            pads=[pads[0], 0, pads[3], 0],
            strides=[1, 1],
            dilations=[1, 1],
            group=1,
        )
        pixels = insert.add("Shape", [source], start=3)
        result_shape = insert.add("Concat", [insert.constant([0, 0, 0]), pixels], axis=0)
        insert.replace(insert.add("Reshape", [convolved, result_shape]))
        count += 1
    return count


def _read_temporal_sizes(node: onnx_ir.Node) -> tuple[int, int, int] | None:
    """The channels out and in and the frames of a convolution over frames alone, else plain."""
    weight = node.inputs[1]
    shape = [] if weight is None or weight.shape is None else list(weight.shape)
    if not is_weight(weight) or len(shape) != 5 or shape[3:] != [1, 1]:
        return None
    plain = {"strides": (1, 1, 1), "dilations": (1, 1, 1), "group": 1, "auto_pad": "NOTSET"}
    attributes = node.attributes
    if any(attributes[name].value != value for name, value in plain.items() if name in attributes):
        return None
    if "pads" not in attributes or any(attributes["pads"].as_ints()[axis] for axis in (1, 2, 4, 5)):
        return None
    channels_out, channels_in, length = (int(size) for size in shape[:3] if isinstance(size, int))
    return channels_out, channels_in, length
