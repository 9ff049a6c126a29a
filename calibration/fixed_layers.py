"""Layers that stay in float whatever is measured: they cost little and carry much."""

from __future__ import annotations

import onnx_ir

from mutoscope.calibration.layers import Layer

FIRST = "first of the component"
LAST = "last of the component"
CONDITIONING = "takes only numbers such as the timestep"


def find_fixed_layers(model: onnx_ir.Model, layers: list[Layer]) -> dict[str, str]:
    """Return why layers of a graph stay in float, by their names, for those that do.

    The first convolution sees the latents themselves and the last one makes the output: both are
    small, and errors in them are errors of every pixel. What makes the embedding of a timestep
    has one row, so that int8 gains nothing, and shifts all that comes after it.
    """
    reasons = {}
    before, after = _Reach(model, layers), _find_followed(layers)
    for layer in layers:
        if before.only_numbers(layer.input):
            reasons[layer.name] = CONDITIONING
        elif layer.kind == "convolution" and before.is_component_input(layer.input):
            reasons[layer.name] = FIRST
        elif layer.kind == "convolution" and layer.name not in after:
            reasons[layer.name] = LAST
    return reasons


class _Reach:
    """What lies before each value of a graph."""

    def __init__(self, model: onnx_ir.Model, layers: list[Layer]) -> None:
        nodes = {layer.node for layer in layers}
        self._inputs: dict[onnx_ir.Value, frozenset[onnx_ir.Value]] = {
            value: frozenset([value]) for value in model.graph.inputs
        }
        # Those that no layer has changed: latents that a picture's, embedded, are put beside.
        self._untouched = dict(self._inputs)
        for node in model.graph:
            # A timestep is repeated for each of a batch, whose size is that of the latents.
            is_size = node.op_type in ("Shape", "Size")
            taken = [value for value in node.inputs if value is not None and not is_size]
            inputs = frozenset[onnx_ir.Value]().union(*(self._get_inputs(v) for v in taken))
            untouched = frozenset[onnx_ir.Value]()
            if node not in nodes:
                untouched = untouched.union(*(self._untouched.get(v, untouched) for v in taken))
            for value in node.outputs:
                self._inputs[value], self._untouched[value] = inputs, untouched

    def _get_inputs(self, value: onnx_ir.Value) -> frozenset[onnx_ir.Value]:
        return self._inputs.get(value, frozenset())

    def is_component_input(self, value: onnx_ir.Value) -> bool:
        """Whether a value holds an input, other than numbers, that no layer has changed."""
        return any(not _is_row(source) for source in self._untouched.get(value, ()))

    def only_numbers(self, value: onnx_ir.Value) -> bool:
        """Whether a value depends on no input but numbers and rows of numbers."""
        return all(_is_row(source) for source in self._get_inputs(value))


def _is_row(value: onnx_ir.Value) -> bool:
    """Whether an input of a graph is a number, or a vector for each of the batch."""
    rank = 0 if value.shape is None else value.shape.rank()
    # Of two axes: a pooled text embedding is one, token ids are not.
    return rank < 2 or (rank == 2 and value.dtype != onnx_ir.DataType.INT64)


def _find_followed(layers: list[Layer]) -> set[str]:
    """The names of the layers that have another one behind them."""
    nodes, followed = {layer.node for layer in layers}, set()
    leads: dict[onnx_ir.Node, bool] = {}
    for layer in reversed(layers):
        if _leads_to(layer.node, nodes, leads):
            followed.add(layer.name)
    return followed


def _leads_to(
    node: onnx_ir.Node, nodes: set[onnx_ir.Node], leads: dict[onnx_ir.Node, bool]
) -> bool:
    """Whether one of `nodes` lies behind a node."""
    stack = [node]
    while stack:
        current = stack[-1]
        users = [user for value in current.outputs for user in value.consumers()]
        unknown = [user for user in users if user not in leads and user not in nodes]
        if current in leads:
            stack.pop()
        elif any(user in nodes or leads.get(user, False) for user in users):
            leads[current] = True
        elif unknown:
            stack.extend(unknown)
        else:
            leads[current] = False
    return leads[node]
