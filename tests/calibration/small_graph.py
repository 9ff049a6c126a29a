"""A graph with each kind of layer, as exports and their rewriting for processors leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper, parser

CHANNELS = 4
# The linear layers q, k and v take one value.
LAYERS = [
    "net.conv.weight",
    "net.time.weight",
    "net.q.weight",
    "net.k.weight",
    "net.v.weight",
    "net.temporal.weight",
    "net.out.weight",
]
# The value that each layer takes, and those that convolutions return.
INPUTS = dict(zip(LAYERS, ["scaled", "time", *["rows"] * 3, "clip", "last"], strict=True))
OUTPUTS = {"net.conv.weight": "features", "net.temporal.weight": "moved"}
# The axis of the channels.
CHANNEL_AXES = {
    "scaled": 1,
    "time": -1,
    "rows": -1,
    "clip": 1,
    "moved": 1,
    "features": 1,
    "last": -1,
}

_GRAPH = """
<ir_version: 9, opset_import: ["" : 20]>
net (float[B, 4, h, w] sample, float[1] timestep) => (float[B, w, F, h, 2] out_sample) {
  scaled = Mul (sample, timestep)
  features = Conv <pads = [1, 1, 1, 1], group = 2> (scaled, W0, B0)
  active = Relu (features)
  rows = Transpose <perm = [0, 2, 3, 1]> (active)
  time = Reshape (timestep, matrix)
  shift = Gemm <transB = 1> (time, W1, B1)
  q = MatMul (rows, W2)
  k = MatMul (rows, W3)
  k_biased = Add (k, B3)
  v = MatMul (rows, W4)
  sum = Sum (q, k_biased, v, shift)
  channels = Transpose <perm = [0, 3, 1, 2]> (sum)
  clip = Unsqueeze (channels, frame_axis)
  moved = Conv <pads = [1, 0, 0, 1, 0, 0]> (clip, W5)
  last = Transpose <perm = [0, 4, 2, 3, 1]> (moved)
  out_sample = MatMul (last, W6)
}
"""
_SHAPES = [(6, 2, 3, 3), (5, 1), (6, 5), (6, 5), (6, 5), (7, 5, 3, 1, 1), (7, 2)]


def save_small_graph(
    path: Path,
    stored: Literal["float32", "float16"] = "float32",
    *,
    outside: bool = False,
) -> Path:
    """Write the graph.

    Args:
        path: The ONNX file.
        stored: The type of the weights; float16 ones are converted before their use.
        outside: Whether the weights lie in a file of their own.
    """
    random = np.random.default_rng(3)
    model = parser.parse_model(_GRAPH)
    arrays: dict[str, NDArray[Any]] = {
        "matrix": np.array([1, 1]),
        "frame_axis": np.array([2]),
        "B0": random.normal(size=6).astype(np.float32),
        "B1": random.normal(size=5).astype(np.float32),
        "B3": random.normal(size=5).astype(np.float32),
    }
    for index, (name, shape) in enumerate(zip(LAYERS, _SHAPES, strict=True)):
        weight = random.normal(size=shape).astype(stored)
        arrays[name] = weight
        for node in model.graph.node:
            node.input[:] = [name if used == f"W{index}" else used for used in node.input]
    if stored == "float16":
        _convert_weights(model)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        model,
        path,
        save_as_external_data=outside,
        location=f"{path.name}.data",
        size_threshold=100,  # shapes must lie in the graph itself
    )
    return path


def make_feeds(seed: int, timestep: float = 2.0, size: int = 6) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    sample = random.normal(size=(2, CHANNELS, size, size + 1)).astype(np.float32)
    return {"sample": sample, "timestep": np.array([timestep], np.float32)}


def compute_values(path: Path, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Return the values that are to be observed, as onnxruntime makes them."""
    model = onnx.load(path)
    names = list(CHANNEL_AXES)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return dict(zip(names, session.run(names, feeds), strict=True))


def _convert_weights(model: onnx.ModelProto) -> None:
    """Put a Cast behind each weight, right before the node that takes it."""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        for name in set(node.input) & set(LAYERS):
            cast = onnx.helper.make_node("Cast", [name], [f"{name}.cast"], to=1)
            model.graph.node.append(cast)
            node.input[:] = [f"{name}.cast" if used == name else used for used in node.input]
        model.graph.node.append(node)
