"""Build TensorRT engines of a bundle's graphs, for a GPU that need not be in this machine.

TensorRT for RTX compiles for a GPU without having one, so that a graph that TensorRT cannot read,
or cannot plan for a range of sizes, is found anywhere.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutoscope.runtime.manifest import LimitsRecord, Manifest, TensorRecord

# The Jetson Orin is SM 8.7; of what TensorRT for RTX compiles for, SM 8.6 is next to it.
COMPUTE_CAPABILITY = "SM86"
MAX_BATCH = 2
MAX_FRAMES = 16
# The largest clip is this many of the smallest that the bundle takes, along each side.
MAX_MULTIPLE = 4

Shape = tuple[int, ...]


class TensorrtError(Exception):
    """TensorRT cannot read a graph, or cannot build an engine of it."""


@dataclass(frozen=True)
class InputRange:
    """What an engine is to take of one input: its smallest, usual and largest shape."""

    minimum: Shape
    optimum: Shape
    maximum: Shape


@dataclass(frozen=True)
class EngineBuild:
    """What a build gave."""

    size_bytes: int
    seconds: float


def build_component(bundle: Path, name: str) -> EngineBuild:
    """Return one engine of a component for batch 1 to 2 and all of its sizes.

    Raises:
        TensorrtError: It cannot be built.
    """
    manifest = Manifest.load(bundle / "manifest.json")
    component = manifest.components[name]
    graph = bundle / component.variants[component.default_variant]
    return build_engine(graph, make_ranges(manifest, component.inputs))


def make_ranges(manifest: Manifest, inputs: dict[str, TensorRecord]) -> dict[str, InputRange]:
    """Return for each input the range of its shapes, from the limits of the bundle."""
    axes = make_axis_ranges(manifest)
    ranges = {}
    for name, tensor in inputs.items():
        sizes = [
            axes[axis] if isinstance(axis, str) else (axis, axis, axis) for axis in tensor.shape
        ]
        minimum, optimum, maximum = (tuple(size[i] for size in sizes) for i in range(3))
        ranges[name] = InputRange(minimum, optimum, maximum)
    return ranges


def build_engine(graph: Path, ranges: dict[str, InputRange]) -> EngineBuild:
    """Return an engine of a graph for one range of shapes; raises `TensorrtError`."""
    import tensorrt_rtx as trt

    started = time.perf_counter()
    log = _make_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = [f"{error.node_operator()}: {error.desc()}" for error in errors]
        raise TensorrtError(f"{graph.parent.name} cannot be parsed: {'; '.join(reasons)}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, COMPUTE_CAPABILITY), 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        profile.set_shape(name, ranges[name].minimum, ranges[name].optimum, ranges[name].maximum)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise TensorrtError(f"{graph.parent.name} cannot be built: {'; '.join(log.errors)}")
    return EngineBuild(engine.nbytes, time.perf_counter() - started)


def make_axis_ranges(manifest: Manifest) -> dict[str, tuple[int, int, int]]:
    """Return the least, usual and largest size of every axis that graphs have."""
    limits, scale = manifest.limits, manifest.latents.vae_scale_factor_spatial
    height, width = _make_side(limits, "height"), _make_side(limits, "width")
    most = min(limits.num_frames.maximum or MAX_FRAMES, MAX_FRAMES)
    lengths = [tokenizer.max_length for tokenizer in manifest.tokenizers.values()]
    return {
        "batch": (1, MAX_BATCH, MAX_BATCH),
        "num_frames": (limits.num_frames.minimum, most, most),
        "height": height,
        "width": width,
        "latent_height": _divide(height, scale),
        "latent_width": _divide(width, scale),
        **({"sequence": (1, max(lengths), max(lengths))} if lengths else {}),
    }


def _make_side(limits: LimitsRecord, name: str) -> tuple[int, int, int]:
    minimum: int = getattr(limits, name).minimum
    return minimum, 2 * minimum, MAX_MULTIPLE * minimum


def _divide(sizes: tuple[int, int, int], scale: int) -> tuple[int, int, int]:
    minimum, optimum, maximum = (size // scale for size in sizes)
    return minimum, optimum, maximum


def _make_log(trt: Any) -> Any:
    """Return a logger that keeps the errors and prints nothing."""

    class ErrorLog(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(re.sub(r"\s+", " ", message))

    return ErrorLog()
