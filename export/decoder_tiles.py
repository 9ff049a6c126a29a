"""Cut an exported decoder into graphs that decode a frame in tiles, with the result of the whole.

Only the graph is looked at, not what model it is of. All up to the first spatial Resize is the
head, which stays whole. The rest is cut before each group norm and each further Resize, into stages
in which a row depends on rows nearby only. A decoder that is not built so has no tiles.

The graphs lie beside the decoder's own and read the same weights file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.export.decoder_memory import (
    ARENA_FACTOR,
    count_weights,
    find_constants,
    find_peaks,
    fit_values,
    run_observed,
)
from mutoscope.runtime.decoding_records import (
    DecoderRecord,
    NormRecord,
    StageRecord,
    TilesRecord,
)
from mutoscope.runtime.errors import EngineError
from mutoscope.runtime.tiled_decoding import MEAN, RECIPROCAL_STD, decode_in_tiles

# Latents that the cut graph is compared with the whole one at, and the rows of a tile: those do not
# divide the height, and there are tiles at both edges and between them.
CHECK_HEIGHT, CHECK_WIDTH, CHECK_TILE_HEIGHT = 8, 4, 3
# Sums in another order, and the last rounding.
MAX_TILE_DIFFERENCE = 1

# One element depends on that element of the inputs, or the shape alone is changed.
_POINTWISE = {
    *("Abs", "Add", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish"),
    *("Identity", "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg", "PRelu", "Pow", "Reciprocal"),
    *("Relu", "Reshape", "Round", "Sigmoid", "Softplus", "Sqrt", "Squeeze", "Sub", "Tanh"),
    *("Transpose", "Unsqueeze"),
}
_NORM_VIEWS = {"Cast", "Identity", "Reshape"}


class _NoTilesError(Exception):
    """The graph is not built so that it can be cut."""


@dataclass(frozen=True)
class _Sizes:
    """What a piece needs: for each pixel of the frame, and its weights."""

    per_pixel: float
    weights_bytes: int


@dataclass(frozen=True)
class _Piece:
    """A part of the graph as it is cut out: nodes `start` to `stop`, and what they stand for."""

    start: int
    stop: int
    nodes: list[onnx.NodeProto]
    inputs: tuple[str, ...]
    norm: onnx.NodeProto | None = None


def add_tiles(record: DecoderRecord, bundle: Path, graph: str) -> DecoderRecord:
    """Write the graphs of a decoder's tiles; return its record with them, or as it is.

    Args:
        record: What is known of the decoder.
        bundle: The folder.
        graph: The path in the bundle of the decoder's graph, which is there.
    """
    if not record.independent_frames:
        return record
    written: list[Path] = []
    try:
        tiles = _Cutter(bundle, graph).write(written)
        _check_result(bundle, graph, tiles)
    except (_NoTilesError, EngineError):  # a cut that onnxruntime refuses is none either
        for path in written:
            path.unlink(missing_ok=True)
        return record
    return replace(record, tiles=tiles)


class _Cutter:
    """Cuts one decoder's graph."""

    def __init__(self, bundle: Path, graph: str) -> None:
        """Read the graph, and what its values look like."""
        self.bundle, self.path = bundle, PurePosixPath(graph)
        self.model = onnx.load(str(bundle / graph), load_external_data=False)
        self.nodes = list(self.model.graph.node)
        if len(self.model.graph.input) != 1 or len(self.model.graph.output) != 1:
            raise _NoTilesError("a decoder takes latents and makes frames")
        self.latents = self.model.graph.input[0].name
        self.frames = self.model.graph.output[0].name
        self.constants = find_constants(self.model.graph)
        self.position = {
            name: index for index, node in enumerate(self.nodes) for name in node.output
        }
        seen = run_observed(bundle / graph, self.model, CHECK_HEIGHT, CHECK_WIDTH)
        self.seen = {name: (array.dtype, array.shape) for name, array in seen.items()}
        self.scales = self._find_scales()
        self.values = fit_values(bundle / graph, self.model)

    def write(self, written: list[Path]) -> TilesRecord:
        """Write the graphs, adding their paths to `written`, and return the record."""
        pieces = self._cut()
        outputs = self._find_outputs(pieces)
        head, *stages = [
            self._save(piece, names, index, written)
            for index, (piece, names) in enumerate(zip(pieces, outputs, strict=True))
        ]
        sizes = [self._measure(onnx.load(str(path), load_external_data=False)) for path in written]
        scale = self._frames_scale()
        return TilesRecord(
            head=head,
            stages=tuple(
                self._describe(piece, names, graph)
                for piece, names, graph in zip(pieces[1:], outputs[1:], stages, strict=True)
            ),
            head_bytes_per_latent=math.ceil(sizes[0].per_pixel * ARENA_FACTOR * scale**2),
            bytes_per_pixel=math.ceil(max(s.per_pixel for s in sizes[1:]) * ARENA_FACTOR),
            weights_bytes=max(s.weights_bytes for s in sizes),
        )

    def _find_scales(self) -> dict[str, int]:
        """The scale of each value that is [1, C, H, W] and may be cut at.

        A Cast is left where it is: before it the value is smaller, or it is not.
        """
        scales: dict[str, int] = {}
        for name, (_, shape) in self.seen.items():
            if len(shape) != 4 or shape[0] != 1 or name in self.constants:
                continue
            scale = shape[2] // CHECK_HEIGHT
            fits = scale > 0 and shape[2:] == (CHECK_HEIGHT * scale, CHECK_WIDTH * scale)
            if fits and self.nodes[self.position[name]].op_type != "Cast":
                scales[name] = scale
        return scales

    def _frames_scale(self) -> int:
        _, shape = self.seen[self.frames]
        scale = shape[2] // CHECK_HEIGHT if len(shape) == 5 else 0
        if shape != (1, 1, CHECK_HEIGHT * scale, CHECK_WIDTH * scale, 3):
            raise _NoTilesError("frames are not a multiple of the latents in size")
        return scale

    def _cut(self) -> list[_Piece]:
        """The head and the stages."""
        live = [i for i, node in enumerate(self.nodes) if node.output[0] not in self.constants]
        resizes = [i for i in live if self.nodes[i].op_type == "Resize"]
        if not resizes:
            raise _NoTilesError("there is no Resize to cut at")
        norms = [i for i in live if self.nodes[i].op_type == "InstanceNormalization"]
        starts = sorted({*resizes, *(i for i in norms if i > resizes[0])})
        pieces = [_Piece(0, starts[0], [], (self.latents,))]
        for start, stop in zip(starts, [*starts[1:], len(self.nodes)], strict=True):
            norm = self.nodes[start] if start in norms else None
            pieces.append(_Piece(start, stop, [], (), norm))
        later: set[str] = set()
        filled: list[_Piece] = []
        for piece in reversed(pieces):
            made = [name for name, i in self.position.items() if piece.start <= i < piece.stop]
            targets = [name for name in made if name in later or name == self.frames]
            filled.append(self._fill(piece, targets))
            later |= set(filled[-1].inputs)
        return filled[::-1]

    def _fill(self, piece: _Piece, targets: list[str]) -> _Piece:
        """A piece with the nodes that its targets need, and the inputs that those have."""
        needed: set[int] = set()
        inputs: dict[str, None] = {}
        todo = list(targets)
        while todo:
            name = todo.pop()
            if name == self.latents or (name in self.scales and self.position[name] < piece.start):
                inputs[name] = None
            elif name in self.position and self.position[name] not in needed:
                node = self.nodes[self.position[name]]
                early = self.position[name] < piece.start
                if early and node.op_type == "InstanceNormalization":
                    raise _NoTilesError("a norm's result is cut where it has another shape")
                needed.add(self.position[name])
                todo += [value for value in node.input if value]
        nodes = [self.nodes[index] for index in sorted(needed)]
        return replace(piece, nodes=nodes, inputs=tuple(inputs))

    def _find_outputs(self, pieces: list[_Piece]) -> list[list[str]]:
        """What each piece makes that a later one takes; the last makes the frames."""
        taken = {name for piece in pieces for name in piece.inputs}
        return [
            [
                name
                for node in piece.nodes
                for name in node.output
                if piece.start <= self.position[name] < piece.stop
                and (name in taken or name == self.frames)
            ]
            for piece in pieces
        ]

    def _save(self, piece: _Piece, outputs: list[str], index: int, written: list[Path]) -> str:
        """Write the graph of a piece; return its path in the bundle."""
        nodes, extra = list(piece.nodes), list[onnx.TensorProto]()
        inputs = [self._make_info(name) for name in piece.inputs]
        if piece.norm is not None:
            at = nodes.index(piece.norm)
            nodes[at : at + 1], extra = _make_norm(piece.norm)
            shape = [1, self._count_groups(piece.norm), 1]
            inputs += [
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
                for name in (MEAN, RECIPROCAL_STD)
            ]
        read = {name for node in nodes for name in node.input}
        weights = [tensor for tensor in self.model.graph.initializer if tensor.name in read]
        graph = helper.make_graph(
            nodes,
            f"{self.path.parent.name}_{index:02}",
            inputs,
            [self._make_info(name) for name in outputs],
            [*weights, *extra],
        )
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        model.graph.CopyFrom(graph)
        path = self.path.with_name(f"{self.path.stem}_tiles_{index:02}{self.path.suffix}")
        written.append(self.bundle / path)
        onnx.save(model, str(written[-1]))
        return str(path)

    def _make_info(self, name: str) -> onnx.ValueInfoProto:
        """The declaration of a value at the edge of a piece."""
        for value in (*self.model.graph.input, *self.model.graph.output):
            if value.name == name:
                return value
        dtype, shape = self.seen[name]
        scale = self.scales[name]
        return helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(dtype),
            [1, shape[1], f"height_{scale}", f"width_{scale}"],
        )

    def _measure(self, model: onnx.ModelProto) -> _Sizes:
        """What a piece needs beside its weights, for each pixel of the frame."""
        values = dict(self.values)
        for node in model.graph.node:
            for name in node.output:
                if name.startswith(_NORM_PREFIX) and node.input[0] in values:
                    values[name] = values[node.input[0]]
        per_pixel, _ = find_peaks(model.graph, values, keeps_inputs=True)
        # What comes out is copied without its halo.
        copied = sum(values[value.name].per_pixel for value in model.graph.output)
        constants = find_constants(model.graph)
        return _Sizes(per_pixel + copied, count_weights(model.graph, constants))

    def _count_groups(self, norm: onnx.NodeProto) -> int:
        """The groups of a norm whose input is [1, groups, the rest of a frame]."""
        dtype, shape = self.seen[norm.input[0]]
        if len(shape) != 3 or shape[0] != 1 or dtype != np.float32:
            raise _NoTilesError("a norm is not a group norm in float32")
        return shape[1]

    def _describe(self, piece: _Piece, outputs: list[str], graph: str) -> StageRecord:
        """The record of a stage, whose nodes must be such that it can be cut."""
        inputs = {name: self.scales.get(name, 1) for name in piece.inputs}
        is_last = self.frames in outputs
        scale = min(inputs.values())
        if any(value % scale for value in inputs.values()) or (is_last and len(outputs) > 1):
            raise _NoTilesError("a stage's inputs do not fit together")
        reach = self._find_reach(piece, outputs)
        halo = max(math.ceil(reach[name] * scale / inputs[name]) for name in inputs)
        norm = None if piece.norm is None else self._describe_norm(piece)
        scales = {name: self.scales.get(name, self._frames_scale()) for name in outputs}
        return StageRecord(graph, inputs, scales, scale, halo, norm)

    def _describe_norm(self, piece: _Piece) -> NormRecord:
        """The record of a stage's norm."""
        assert piece.norm is not None
        name = piece.norm.input[0]
        while name not in piece.inputs:
            node = self.nodes[self.position[name]] if name in self.position else None
            if node is None or node.op_type not in _NORM_VIEWS:
                raise _NoTilesError("a norm does not start its stage")
            name = node.input[0]
        epsilon = next((a.f for a in piece.norm.attribute if a.name == "epsilon"), 1e-5)
        return NormRecord(name, self._count_groups(piece.norm), float(f"{epsilon:.6g}"))

    def _find_reach(self, piece: _Piece, outputs: list[str]) -> dict[str, int]:
        """For each value, how many of its rows the outputs depend on beyond their own."""
        reach = dict.fromkeys([*outputs, *piece.inputs], 0)
        for node in reversed(piece.nodes):
            names = [name for name in node.input if name and name not in self.constants]
            made = max((reach.get(name, 0) for name in node.output), default=0)
            if not names or not self._depends_on_pixels(node):
                continue
            added = made
            if node.op_type == "Conv":
                added = made + self._conv_reach(node)
            elif node.op_type == "Resize":
                added = math.ceil(made / self._resize_scale(node))
            elif node is not piece.norm and node.op_type not in _POINTWISE:
                raise _NoTilesError(f"{node.op_type} may look at the whole frame")
            for name in names:
                reach[name] = max(reach.get(name, 0), added)
        return reach

    def _depends_on_pixels(self, node: onnx.NodeProto) -> bool:
        """Whether a node's result is made of pixels, not of lengths alone."""
        return any(self.values[name].per_pixel > 0 for name in node.output if name)

    @staticmethod
    def _conv_reach(node: onnx.NodeProto) -> int:
        """The rows on each side that a convolution adds."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        kernel = list(attributes.get("kernel_shape", []))
        dilations = list(attributes.get("dilations", [1] * len(kernel)))
        pads = list(attributes.get("pads", [0] * 2 * len(kernel)))
        sides = [
            dilation * (size - 1) / 2 for dilation, size in zip(dilations, kernel, strict=True)
        ]
        plain = (
            len(kernel) == 2
            and set(attributes.get("strides", [1])) == {1}
            and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
            and pads == [*sides, *sides]
        )
        if not plain:
            raise _NoTilesError("a convolution changes the size, or is not of a plane")
        return int(sides[0])

    def _resize_scale(self, node: onnx.NodeProto) -> int:
        """The factor of a Resize that repeats rows and columns."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        repeats = (
            attributes.get("mode") == b"nearest"
            and attributes.get("coordinate_transformation_mode") == b"asymmetric"
            and attributes.get("nearest_mode") == b"floor"
        )
        source, result = self.scales.get(node.input[0], 0), self.scales.get(node.output[0], 0)
        if not repeats or not source or result % source:
            raise _NoTilesError("a Resize does not repeat rows")
        return result // source


_NORM_PREFIX = "tiles."


def _make_norm(norm: onnx.NodeProto) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes that stand for a norm whose statistics are inputs, and their constants."""
    name = _NORM_PREFIX + norm.output[0]
    value, weight, bias = norm.input
    axes = numpy_helper.from_array(np.array([0, 2], np.int64), f"{_NORM_PREFIX}axes")
    nodes = [
        helper.make_node("Sub", [value, MEAN], [f"{name}.centred"]),
        helper.make_node("Mul", [f"{name}.centred", RECIPROCAL_STD], [f"{name}.scaled"]),
        helper.make_node("Unsqueeze", [weight, axes.name], [f"{name}_weight"]),
        helper.make_node("Mul", [f"{name}.scaled", f"{name}_weight"], [f"{name}.weighted"]),
        helper.make_node("Unsqueeze", [bias, axes.name], [f"{name}_bias"]),
        helper.make_node("Add", [f"{name}.weighted", f"{name}_bias"], [norm.output[0]]),
    ]
    return nodes, [axes]


def _check_result(bundle: Path, graph: str, tiles: TilesRecord) -> None:
    """Refuse tiles that do not make the whole frame."""
    engine = OnnxruntimeEngine(bundle / graph, num_threads=1, memory="low")
    (name,) = engine.inputs
    channels = engine.inputs[name].shape[1]
    assert isinstance(channels, int)
    shape = (1, channels, 1, CHECK_HEIGHT, CHECK_WIDTH)
    latents = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    (whole,) = engine.run({name: latents}).values()
    engine.close()

    def open_graph(path: str) -> OnnxruntimeEngine:
        return OnnxruntimeEngine(bundle / path, num_threads=1, memory="low")

    frames = decode_in_tiles(open_graph, latents, tiles, CHECK_TILE_HEIGHT)
    if frames.shape != whole.shape[1:]:
        raise _NoTilesError("frames in tiles have another size")
    if np.abs(frames.astype(np.int16) - whole[0]).max() > MAX_TILE_DIFFERENCE:
        raise _NoTilesError("frames in tiles differ")
