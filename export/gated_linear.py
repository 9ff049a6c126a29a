"""Make two linear layers of one whose output is cut in halves, as in a GEGLU.

Nothing is copied then to take the halves apart. It is done in the plain graph, and not in the one
for processors, because the halves of a weight [in, 2 * out] do not lie together in the file of the
weights: a graph that reads all of it and one that reads its halves could not share that file.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir

from mutoscope.calibration.graph_editing import Inserter, count_axes, find_nodes, find_producer


def split_gated_linears(model: onnx_ir.Model) -> int:
    """Split linear layers whose output is cut in two halves, in place; return how many.

    Source: x @ [A, B] + [a, b] is [x @ A + a, x @ B + b].
    """
    count = 0
    for split in find_nodes(model.graph, "Split"):
        add = find_producer(split.inputs[0], "Add")
        product = find_producer(add.inputs[0], "MatMul") if add is not None else None
        if add is None or product is None or not _cuts_in_halves(split):
            continue
        weight, bias = (_get_weight(node) for node in (product, add))
        if weight is None or bias is None or weight.shape[1:] != bias.shape:
            continue
        insert = Inserter(model.graph, split)
        halves = []
        for half in (0, 1):
            matrix = insert.register(_take_half(weight, half))
            linear = insert.add("MatMul", [product.inputs[0], matrix])
            shift = insert.register(_take_half(bias, half))
            halves.append(insert.add("Add", [linear, shift]))
        onnx_ir.convenience.replace_all_uses_with(list(split.outputs), halves)
        model.graph.remove([split, add, product], safe=True)
        count += 1
    return count


def _cuts_in_halves(split: onnx_ir.Node) -> bool:
    """Whether a Split cuts the last axis in the middle."""
    rank = count_axes(split.inputs[0])
    is_last = rank is not None and split.attributes["axis"].as_int() in (-1, rank - 1)
    return is_last and len(split.outputs) == 2 and len(split.inputs) == 1


def _get_weight(node: onnx_ir.Node) -> onnx_ir.TensorProtocol | None:
    """The second input of a node, if that is an initialiser and nothing else takes the output."""
    value = node.inputs[1]
    is_alone = len(node.outputs[0].consumers()) == 1
    return value.const_value if value is not None and is_alone else None


def _take_half(whole: onnx_ir.TensorProtocol, half: int) -> onnx_ir.LazyTensor:
    """Return the first or the second half of the last axis, read when it is written."""
    shape = list(whole.shape.numpy())
    return onnx_ir.LazyTensor(
        functools.partial(_read_half, whole, half),
        whole.dtype,
        onnx_ir.Shape([*shape[:-1], shape[-1] // 2]),
        name=f"{whole.name}.{half}",
    )


def _read_half(whole: onnx_ir.TensorProtocol, half: int) -> onnx_ir.TensorProtocol:
    array = whole.numpy()
    size = array.shape[-1] // 2
    return onnx_ir.tensor(np.ascontiguousarray(array[..., half * size : (half + 1) * size]))
