"""The layers of a graph that can be quantized, found by what they are and named by their weights.

A component has several graphs (plain, rewritten for processors, in float16). A layer has the same
name in all of them, that of its weight, so that what is measured on one holds for the others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from mutoscope.calibration.graph_editing import (
    FLOAT16_SUFFIX,
    count_axes,
    find_producer,
    find_user,
    is_weight,
    read_array,
)

LayerKind = Literal["convolution", "linear"]
_KINDS: dict[str, LayerKind] = {"Conv": "convolution", "MatMul": "linear", "Gemm": "linear"}


@dataclass(frozen=True)
class Layer:
    """A convolution or a linear layer.

    Attributes:
        name: That of its weight; the same in every graph of a component.
        kind: "convolution" has its channels at axis 1, "linear" at the last one.
        node: The Conv, MatMul or Gemm.
        add: The Add that gives a MatMul its bias; None where it has none or the node has it.
    """

    name: str
    kind: LayerKind
    node: onnx_ir.Node
    add: onnx_ir.Node | None = None

    @property
    def input(self) -> onnx_ir.Value:
        """The value that the layer takes."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> onnx_ir.Value:
        """The value that the layer returns, its bias added."""
        return self.last_node.outputs[0]

    @property
    def last_node(self) -> onnx_ir.Node:
        """The node that makes the output."""
        return self.add or self.node

    @property
    def output_axis(self) -> int:
        """The axis of what `read_weight` returns that counts the output's channels."""
        return 0 if self.kind == "convolution" else 1

    @property
    def is_transposed(self) -> bool:
        """Whether the weight of a Gemm is [out, in]."""
        attribute = self.node.attributes.get("transB")
        return attribute is not None and bool(attribute.as_int())

    def read_weight(self) -> NDArray[np.float32]:
        """Return the weight, float32: [out, in, ...] of a convolution, else [in, out]."""
        weight = read_weight(self.node.inputs[1])
        return np.ascontiguousarray(weight.T) if self.is_transposed else weight

    def read_bias(self) -> NDArray[np.float32] | None:
        """Return the bias, float32 [out]; None if the layer has none."""
        if self.add is not None:
            return read_weight(_find_bias(self.add, self.node.outputs[0]))
        return read_weight(self.node.inputs[2]) if len(self.node.inputs) > 2 else None


def find_layers(model: onnx_ir.Model) -> list[Layer]:
    """Return the layers of a graph in the order in which they run."""
    layers, seen = [], Counter[str]()
    for node in model.graph:
        kind = _KINDS.get(node.op_type)
        if kind is None or node.domain or not is_weight(node.inputs[1]) or not _is_layer(node):
            continue
        weight = _find_source(node.inputs[1])
        # What a graph for processors has in another shape is called NAME[SHAPE].
        name = str(weight.name).partition("[")[0].removesuffix(FLOAT16_SUFFIX)
        seen[name] += 1
        if seen[name] > 1:  # equal weights are stored once
            name = f"{name}#{seen[name]}"
        add = find_user(node.outputs[0], "Add") if node.op_type == "MatMul" else None
        # A product that is an output of the graph is taken without its bias as well.
        if add is not None and (
            node.outputs[0].is_graph_output() or _find_bias(add, node.outputs[0]) is None
        ):
            add = None
        layers.append(Layer(name, kind, node, add))
    return layers


def find_weight_dtype(layer: Layer) -> np.dtype[np.floating]:
    """Return what a layer computes in: float32 or float16, however its weight is stored."""
    cast = find_producer(layer.node.inputs[1], "Cast")
    if cast is not None:
        return onnx_ir.DataType(cast.attributes["to"].as_int()).numpy()
    dtype = _find_source(layer.node.inputs[1]).dtype
    assert dtype is not None
    return dtype.numpy()


def _is_layer(node: onnx_ir.Node) -> bool:
    """Whether a node with a weight has no more to it than a weight and a bias."""
    if node.op_type == "MatMul":
        return count_axes(_find_source(node.inputs[1])) == 2
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not (is_weight(bias) and count_axes(_find_source(bias)) == 1):
        return False
    # What a Gemm can also do, each with the value that does nothing.
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    return all(node.attributes[n].value == plain[n] for n in plain if n in node.attributes)


def _find_bias(add: onnx_ir.Node, product: onnx_ir.Value) -> onnx_ir.Value | None:
    """The other input of an Add, if it is a weight with a number for each channel."""
    (other,) = [value for value in add.inputs if value is not product] or [None]
    if other is None or not is_weight(other):
        return None
    node = product.producer()
    assert node is not None
    channels, biases = _find_source(node.inputs[1]).shape, _find_source(other).shape
    assert channels is not None
    return other if biases is not None and list(biases) == [channels[-1]] else None


def _find_source(value: onnx_ir.Value | None) -> onnx_ir.Value:
    """The initialiser behind a weight, which may be stored in another type."""
    cast = find_producer(value, "Cast")
    source = value if cast is None else cast.inputs[0]
    assert source is not None
    return source


def read_weight(value: onnx_ir.Value | None) -> NDArray[np.float32]:
    """Return what `is_weight` says is a weight, in float32."""
    tensor = _find_source(value).const_value
    assert tensor is not None
    return np.asarray(read_array(tensor)).astype(np.float32, copy=False)
