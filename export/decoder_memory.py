"""Find out what an exported decoder needs in memory, and whether its frames are independent.

The sizes of all values in the graph are read from runs at two small sizes, where it is seen which
of them grow with the frame and which with its square (attention). What is alive at once at any
size then follows from the order of the nodes. Nothing is timed or sampled, so exports agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from mutoscope.runtime.decoding_records import DecoderRecord

# Lengths of square latents to run at; the larger one must be a multiple of the smaller.
SMALL, LARGE = 4, 8
# onnxruntime takes memory from the system in doubling blocks: on real sizes it held up to a third
# more than what was alive (docs/python-api.md).
ARENA_FACTOR = 4 / 3
# Batched arithmetic may round differently; another frame's influence is far larger.
MAX_INDEPENDENT_DIFFERENCE = 1

# The result takes the place of the first input where nobody else needs that, or is a view of it.
_IN_PLACE = {"Add", "Clip", "Div", "Erf", "Mul", "Round", "Sigmoid", "Sub", "Tanh"}
_VIEWS = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
_LOG_SEVERITY_FATAL = 4


@dataclass(frozen=True)
class Value:
    """How many bytes a value has: for each pixel, and for each pair of positions in the latents."""

    per_pixel: float
    per_latent_pair: float


def measure_decoder(path: Path) -> DecoderRecord:
    """Return what the manifest says of a decoder, from its graph at `path`.

    Args:
        path: An ONNX graph with one input, latents [B, C, F, h, w], and frames as its output.

    Source: within a third of what onnxruntime allocates with memory "low", for a Stable Diffusion
    1.5 decoder of 64 x 64 to 512 x 512 pixels (benchmarks/decode_memory.py).
    """
    model = onnx.load(str(path), load_external_data=False)
    constants = find_constants(model.graph)
    per_pixel, per_pair = find_peaks(model.graph, fit_values(path, model))
    return DecoderRecord(
        independent_frames=_has_independent_frames(path, model),
        bytes_per_pixel=_round_up(per_pixel * ARENA_FACTOR),
        bytes_per_latent_pair=_round_up(per_pair * ARENA_FACTOR),
        weights_bytes=count_weights(model.graph, constants),
    )


def fit_values(path: Path, model: onnx.ModelProto) -> dict[str, Value]:
    """Return how every value grows that depends on the input of the decoder at `path`."""
    small, large = (
        {name: array.nbytes for name, array in run_observed(path, model, side, side).items()}
        for side in (SMALL, LARGE)
    )
    (output,) = [value.name for value in model.graph.output]
    scale = int(np.sqrt(large[output] / 3)) // LARGE
    return {name: _fit(small[name], large[name], scale) for name in large}


def find_constants(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all values that depend on no input."""
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if all(name in constants for name in node.input if name):
            constants.update(node.output)
    return constants


def run_observed(
    path: Path, model: onnx.ModelProto, height: int, width: int
) -> dict[str, NDArray[Any]]:
    """Return every value that depends on the input, for one frame of random latents.

    Args:
        path: Where the model's weights are beside.
        model: The decoder.
        height: That of the latents.
        width: That of the latents.
    """
    constants = find_constants(model.graph)
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    listed = {value.name for value in model.graph.output}
    inner = [name for node in model.graph.node for name in node.output if name]
    inner = [name for name in inner if name not in constants and name not in listed]
    observed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inner)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_SEVERITY_FATAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent)
    )
    session = onnxruntime.InferenceSession(
        observed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    (latents,) = session.get_inputs()
    array = _make_latents(latents.shape[1], 1, height, width)
    arrays = session.run(names, {latents.name: array})
    return {latents.name: array, **dict(zip(names, arrays, strict=True))}


def _make_latents(channels: int, num_frames: int, height: int, width: int) -> NDArray[np.float32]:
    shape = (1, channels, num_frames, height, width)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _fit(small: int, large: int, scale: int) -> Value:
    """The growth of a value, from its size in bytes at both sizes."""
    if large == small:  # shapes and the like
        return Value(0, 0)
    ratio = (LARGE / SMALL) ** 2
    quadratic = max(large - small * ratio, 0) / (1 - 1 / ratio)
    return Value((large - quadratic) / (LARGE * scale) ** 2, quadratic / LARGE**4)


def find_peaks(
    graph: onnx.GraphProto, values: dict[str, Value], *, keeps_inputs: bool = False
) -> tuple[float, float]:
    """Return the most that is alive at once, linear and quadratic values apart.

    Args:
        graph: The nodes in the order of their execution.
        values: The size of each value that counts.
        keeps_inputs: Whether inputs stay alive to the end; if not, as if they came from a node.
    """
    uses: dict[str, int] = {value.name: 1 for value in graph.output}
    if keeps_inputs:
        uses |= {value.name: 1 for value in graph.input}
    for node in graph.node:
        for name in {*node.input}:
            uses[name] = uses.get(name, 0) + 1
    owner: dict[str, str] = {}  # whose memory a value lies in
    readers: dict[str, int] = {}
    alive = {value.name: values[value.name] for value in graph.input if value.name in values}
    for name in alive:
        owner[name], readers[name] = name, uses.get(name, 0)
    peaks = [0.0, 0.0]
    for node in graph.node:
        read = [name for name in dict.fromkeys(node.input) if name in owner]
        for name in node.output:
            if name not in values:
                continue
            host = _find_host(node, name, read, owner, readers, values)
            owner[name] = host or name
            readers[owner[name]] = readers.get(owner[name], 0) + uses.get(name, 1)
            alive.setdefault(owner[name], values[name])
        peaks[0] = max(peaks[0], sum(value.per_pixel for value in alive.values()))
        peaks[1] = max(peaks[1], sum(value.per_latent_pair for value in alive.values()))
        for name in read:
            readers[owner[name]] -= 1
            if not readers[owner[name]]:
                alive.pop(owner[name], None)
    return peaks[0], peaks[1]


def _find_host(
    node: onnx.NodeProto,
    output: str,
    read: list[str],
    owner: dict[str, str],
    readers: dict[str, int],
    values: dict[str, Value],
) -> str | None:
    """The value whose memory an output takes over, if any."""
    if node.op_type in _VIEWS and read:
        return owner[read[0]]
    if node.op_type in _IN_PLACE:
        for name in read:
            if readers[owner[name]] == 1 and values[owner[name]] == values[output]:
                return owner[name]
    return None


def count_weights(graph: onnx.GraphProto, constants: set[str]) -> int:
    """Return the bytes of all weights as the graph computes with them.

    A weight that is stored in float16 and followed by a Cast counts as float32.
    """
    types = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in types:
            target = next(item.i for item in node.attribute if item.name == "to")
            types[node.output[0]] = (target, types.pop(node.input[0])[1])
    return sum(
        int(np.prod(dims, dtype=np.int64)) * helper.tensor_dtype_to_np_dtype(data_type).itemsize
        for data_type, dims in types.values()
    )


def _has_independent_frames(path: Path, model: onnx.ModelProto) -> bool:
    """Whether two frames decoded together are the two decoded apart."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_SEVERITY_FATAL
    session: Any = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    name, channels = session.get_inputs()[0].name, session.get_inputs()[0].shape[1]
    latents = _make_latents(channels, 2, SMALL, SMALL)
    together = session.run(None, {name: latents})[0]
    apart = [session.run(None, {name: latents[:, :, [index]]})[0] for index in range(2)]
    if any(frames.shape[1] != 1 for frames in apart):
        return False
    difference = together.astype(np.int16) - np.concatenate(apart, axis=1)
    return bool(np.abs(difference).max() <= MAX_INDEPENDENT_DIFFERENCE)


def _round_up(value: float) -> float:
    """To whole bytes, which is precise enough and reads better."""
    return float(np.ceil(value))
