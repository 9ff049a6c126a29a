"""To look through an ONNX graph, and to put other nodes in the place of some of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

CONTRIB_DOMAIN = "com.microsoft"
# Behind the name of a parameter that is stored in float16 and computed with in float32.
FLOAT16_SUFFIX = ".float16"


def find_nodes(graph: onnx_ir.Graph, op_type: str) -> Iterator[onnx_ir.Node]:
    """Yield the nodes of a type, but not those that make an output of the graph.

    The graph may be changed meanwhile.
    """
    for node in list(graph):
        if node.op_type == op_type and not any(value.is_graph_output() for value in node.outputs):
            yield node


def find_producer(value: onnx_ir.Value | None, op_type: str) -> onnx_ir.Node | None:
    """Return the node that makes a value, if it is of this type."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def find_user(value: onnx_ir.Value, op_type: str) -> onnx_ir.Node | None:
    """Return the only node that takes a value, if it is of this type."""
    users = value.consumers()
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None


def read_array(tensor: onnx_ir.TensorProtocol) -> NDArray[Any]:
    """Return the array of a tensor; one in a file is mapped, not copied.

    onnx_ir refuses files with several hard links, which installers make of what they keep.
    """
    if not isinstance(tensor, onnx_ir.ExternalTensor):
        return np.asarray(tensor.numpy())
    shape, offset = tuple(tensor.shape.numpy()), tensor.offset or 0
    if 0 in shape:
        return np.empty(shape, dtype=tensor.dtype.numpy())
    return np.memmap(tensor.path, tensor.dtype.numpy(), mode="r", offset=offset, shape=shape)


def read_constant(value: onnx_ir.Value | None) -> NDArray[Any] | None:
    """Return the array of an initialiser; None for what is computed."""
    if value is None or value.const_value is None:
        return None
    return read_array(value.const_value)


def read_scalar(value: onnx_ir.Value | None) -> float | None:
    """Return the number of an initialiser that holds one; None for anything else."""
    array = read_constant(value)
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])


def read_shape_entry(value: onnx_ir.Value | None, index: int) -> int | None:
    """Return an entry of a shape that is constant or concatenated, if that entry is constant."""
    concat = find_producer(value, "Concat")
    for part in [value] if concat is None else concat.inputs:
        shape = None if part is None or part.shape is None else list(part.shape)
        if shape is None or len(shape) != 1 or not isinstance(shape[0], int):
            return None  # nobody knows which entries come next
        if index < shape[0]:
            array = read_constant(part)
            return None if array is None else int(array[index])
        index -= shape[0]
    return None


def count_axes(value: onnx_ir.Value | None) -> int | None:
    """Return the number of axes of a value, where it is known."""
    return None if value is None or value.shape is None else value.shape.rank()


def is_weight(value: onnx_ir.Value | None) -> bool:
    """Whether a value is an initialiser, or one that is stored in another type."""
    if value is None:
        return False
    cast = find_producer(value, "Cast")
    source = value if cast is None else cast.inputs[0]
    return source is not None and source.const_value is not None


class Inserter:
    """Puts nodes into a graph, right before one that they will replace."""

    def __init__(self, graph: onnx_ir.Graph, before: onnx_ir.Node) -> None:
        """Insert before `before`."""
        self.graph, self.before = graph, before

    def add(
        self,
        op_type: str,
        inputs: Sequence[onnx_ir.Value | None],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> onnx_ir.Value:
        """Add a node of one output and return that."""
        node = onnx_ir.node(op_type, inputs, attributes, domain=domain)
        self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def constant(self, entries: Sequence[int]) -> onnx_ir.Value:
        """Return an int64 initialiser with these entries, one axis; equal ones are one."""
        name = f"constant.int64[{','.join(map(str, entries))}]"
        return self.register(onnx_ir.tensor(np.array(entries, dtype=np.int64), name=name))

    def fill(self, size: int, number: float) -> onnx_ir.Value:
        """Return a float32 initialiser of `size` times a number; equal ones are one."""
        name = f"constant.float32[{size}]={number:g}"
        return self.register(onnx_ir.tensor(np.full(size, number, dtype=np.float32), name=name))

    def reshape_weight(self, weight: onnx_ir.Value, shape: Sequence[int]) -> onnx_ir.Value:
        """Return a weight in another shape, which reads the same bytes of the weights file."""
        cast = find_producer(weight, "Cast")
        if cast is not None:
            source = self._reshape_initializer(cast.inputs[0], shape)
            return self.add("Cast", [source], to=cast.attributes["to"].as_int())
        return self._reshape_initializer(weight, shape)

    def replace(self, value: onnx_ir.Value) -> None:
        """Let all that took the output of the node that was inserted before take `value`."""
        onnx_ir.convenience.replace_all_uses_with(self.before.outputs[0], value)
        self.graph.remove(self.before, safe=True)

    def _reshape_initializer(
        self, value: onnx_ir.Value | None, shape: Sequence[int]
    ) -> onnx_ir.Value:
        if value is None or value.const_value is None:
            raise ValueError("what is reshaped must be a weight; see is_weight")
        name = f"{value.name}[{','.join(map(str, shape))}]"
        tensor = value.const_value
        reshaped: onnx_ir.TensorProtocol
        if isinstance(tensor, onnx_ir.ExternalTensor):
            reshaped = onnx_ir.ExternalTensor(
                tensor.location,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=onnx_ir.Shape(shape),
                name=name,
                base_dir=tensor.base_dir,
            )
        else:
            reshaped = onnx_ir.tensor(tensor.numpy().reshape(shape), name=name)
        return self.register(reshaped)

    def register(self, tensor: onnx_ir.TensorProtocol) -> onnx_ir.Value:
        """Return the initialiser of a tensor by its name, which is a new one if there is none."""
        name = str(tensor.name)
        if name not in self.graph.initializers:
            value = onnx_ir.Value(name=name, const_value=tensor)
            value.shape = onnx_ir.Shape(tensor.shape.numpy())
            value.dtype = tensor.dtype
            self.graph.register_initializer(value)
        return self.graph.initializers[name]
