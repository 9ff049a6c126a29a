"""Attention as one operator, and attention to a text that is the same for all frames only once."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir

from mutoscope.calibration.graph_editing import (
    CONTRIB_DOMAIN,
    Inserter,
    count_axes,
    find_nodes,
    find_producer,
    find_user,
    is_weight,
    read_constant,
    read_scalar,
    read_shape_entry,
)

MULTI_HEAD_ATTENTION = "MultiHeadAttention"
_SWAP_HEADS_AND_SEQUENCE = [0, 2, 1, 3]


def fuse_attention(model: onnx_ir.Model) -> int:
    """Make each attention without a mask one `com.microsoft.MultiHeadAttention`.

    It takes query, key and value as the linear layers give them [B, S, heads * D], so that the
    transposes around the products go, and never holds the scores of a whole sequence.

    Source: torch's translation of scaled_dot_product_attention; onnxruntime's contrib operators.
    """
    graph, count = model.graph, 0
    for softmax in find_nodes(graph, "Softmax"):
        found = _match_attention(softmax)
        if found is None:
            continue
        insert = Inserter(graph, found.output)
        insert.replace(
            insert.add(
                MULTI_HEAD_ATTENTION,
                [found.query, found.key, found.value],
                domain=CONTRIB_DOMAIN,
                num_heads=found.num_heads,
                scale=found.scale,
            )
        )
        count += 1
    return count


@dataclass(frozen=True)
class _Attention:
    """One attention: its inputs [B, S, heads * D], and the node that makes its output."""

    query: onnx_ir.Value
    key: onnx_ir.Value
    value: onnx_ir.Value
    output: onnx_ir.Node
    num_heads: int
    scale: float


def _match_attention(softmax: onnx_ir.Node) -> _Attention | None:
    """The attention around a softmax, if it is of the form that the exporter gives."""
    scores = find_producer(softmax.inputs[0], "MatMul")
    product = find_user(softmax.outputs[0], "MatMul")
    if scores is None or product is None or not _is_alone(scores):
        return None
    query, query_scale = _match_scaled(scores.inputs[0])
    key, key_scale = _match_scaled(scores.inputs[1])
    if query_scale is None or key_scale is None:
        return None
    heads = [_match_heads(value) for value in (query, _skip_last_transpose(key), product.inputs[1])]
    output = _match_join(product.outputs[0])
    if output is None or any(part is None for part in heads):
        return None
    reshapes = [part for part in heads if part is not None]
    num_heads = [read_shape_entry(part.inputs[1], 2) for part in reshapes]
    inputs = [part.inputs[0] for part in reshapes]
    if num_heads[0] is None or num_heads[0] < 1 or len(set(num_heads)) != 1:
        return None
    if any(count_axes(value) != 3 for value in (*inputs, output.outputs[0])):
        return None
    q, k, v = (value for value in inputs if value is not None)
    return _Attention(q, k, v, output, num_heads[0], query_scale * key_scale)


def _is_alone(node: onnx_ir.Node) -> bool:
    """Whether one node only takes the output."""
    return len(node.outputs[0].consumers()) == 1


def _match_scaled(value: onnx_ir.Value | None) -> tuple[onnx_ir.Value | None, float | None]:
    """What is multiplied by a number, and the number."""
    node = find_producer(value, "Mul")
    return (None, None) if node is None else (node.inputs[0], read_scalar(node.inputs[1]))


def _skip_last_transpose(value: onnx_ir.Value | None) -> onnx_ir.Value | None:
    """The key [B, heads, S, D] of what holds it as [B, heads, D, S].

    torch's translation merges the first two axes for it and splits them again.
    """
    split = find_producer(value, "Reshape")
    swap = find_producer(split.inputs[0], "Transpose") if split is not None else None
    merge = find_producer(swap.inputs[0], "Reshape") if swap is not None else None
    if merge is None or swap is None or _read_permutation(swap) != [0, 2, 1]:
        return None
    return merge.inputs[0]


def _match_heads(value: onnx_ir.Value | None) -> onnx_ir.Node | None:
    """The Reshape that splits [B, S, heads * D], before the heads go to the front."""
    swap = find_producer(value, "Transpose")
    if swap is None or _read_permutation(swap) != _SWAP_HEADS_AND_SEQUENCE:
        return None
    return find_producer(swap.inputs[0], "Reshape")


def _match_join(value: onnx_ir.Value) -> onnx_ir.Node | None:
    """The Reshape that joins the heads again, after they went to the back."""
    swap = find_user(value, "Transpose")
    if swap is None or _read_permutation(swap) != _SWAP_HEADS_AND_SEQUENCE:
        return None
    return find_user(swap.outputs[0], "Reshape")


def _read_permutation(transpose: onnx_ir.Node) -> list[int]:
    return list(transpose.attributes["perm"].as_ints())


def attend_once(model: onnx_ir.Model) -> int:
    """Let the pixels of all frames attend to a text together, where it was repeated for each frame.

    The text [B, S, D] is projected once instead of once for each frame, and no frame has a copy of
    its own; a query [B * F, H * W, C] is seen as [B, F * H * W, C].

    It takes the operators that `fuse_attention` makes.
    """
    graph, count = model.graph, 0
    for node in find_nodes(graph, MULTI_HEAD_ATTENTION):
        query, key, value = node.inputs[:3]
        projections = [find_producer(part, "MatMul") for part in (key, value)]
        if query is None or len(node.inputs) > 3 or any(part is None for part in projections):
            continue
        of_key, of_value = (part for part in projections if part is not None)
        text = _match_repeated(of_key.inputs[0])
        if text is None or of_value.inputs[0] is not of_key.inputs[0]:
            continue
        if not (is_weight(of_key.inputs[1]) and is_weight(of_value.inputs[1])):
            continue
        insert = Inserter(graph, node)
        batch = insert.add("Shape", [text], start=0, end=1)
        channels = insert.add("Shape", [query], start=2, end=3)
        joined = insert.add("Concat", [batch, insert.constant([-1]), channels], axis=0)
        attended = insert.add(
            MULTI_HEAD_ATTENTION,
            [
                insert.add("Reshape", [query, joined]),
                insert.add("MatMul", [text, of_key.inputs[1]]),
                insert.add("MatMul", [text, of_value.inputs[1]]),
            ],
            domain=CONTRIB_DOMAIN,
            num_heads=node.attributes["num_heads"].as_int(),
            scale=node.attributes["scale"].as_float(),
        )
        insert.replace(insert.add("Reshape", [attended, insert.add("Shape", [query])]))
        count += 1
    return count


def _match_repeated(value: onnx_ir.Value | None) -> onnx_ir.Value | None:
    """The [B, S, D] of a [B * F, S, D] that holds each of its slices F times, one after another."""
    merge = find_producer(value, "Reshape")
    expand = find_producer(merge.inputs[0], "Expand") if merge is not None else None
    unsqueeze = find_producer(expand.inputs[0], "Unsqueeze") if expand is not None else None
    if merge is None or expand is None or unsqueeze is None:
        return None
    axes = read_constant(unsqueeze.inputs[1])
    keeps_others = [read_shape_entry(expand.inputs[1], index) for index in (0, 2, 3)] == [1, 1, 1]
    source = unsqueeze.inputs[0]
    if axes is None or axes.tolist() != [1] or not keeps_others or count_axes(source) != 3:
        return None
    return source if count_axes(value) == 3 and read_shape_entry(merge.inputs[1], 0) == -1 else None
