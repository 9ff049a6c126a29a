"""Run an ONNX graph with OpenVINO on the CPU, in the precision that was asked for or not at all.

OpenVINO is imported when the first graph is opened. It is used directly, not through onnxruntime,
whose OpenVINO execution provider lists no device on processors of other vendors.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mutoscope.engines.engine import Array, Tensors, TensorSpec, check_feeds
from mutoscope.engines.errors import EngineError
from mutoscope.engines.options import PRECISIONS, Memory, check_threads_and_memory
from mutoscope.engines.output_arrays import check_outputs, choose_outputs

_DEVICE = "CPU"
# A compiled graph holds the weights again (330 MB for 216 MB), so few are kept: a clip is decoded
# in chunks of one length and a shorter last one, which a next clip has again.
_NUM_SHAPES = {"normal": 2, "low": 1}
# Where in OpenVINO's sources an error was raised.
_SOURCE_LINE = re.compile(r"Exception from |Check '|FrontEnd API failed with ")

_Shapes = tuple[tuple[int, ...], ...]


class OpenvinoEngine:
    """One ONNX graph, compiled for each shape that it is run with.

    Compiling takes as long as a few runs and makes runs 1.25 to 1.4 times faster than one compiled
    graph for all shapes. See `mutoscope.engines.engine.Engine`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        precision: str = "f32",
        num_threads: int | None = None,
        memory: Memory = "normal",
    ) -> None:
        """Read the graph at `path`; it is compiled by `prepare` or by the first run.

        Args:
            path: The ONNX file; its external data is found beside it and mapped.
            precision: What it computes in, "f32" or "bf16"; inputs and outputs keep their types.
            num_threads: Threads for a run; None leaves it to OpenVINO, which takes one for each
                core.
            memory: "low" keeps one compiled shape in place of two, and gives the memory of a run
                back after it. The weights of a compiled shape are in memory all the same.

        Raises:
            EngineError: OpenVINO is not installed or this processor lacks the precision; or the
                file is absent or is not a graph that OpenVINO takes.
        """
        check_precision(precision)
        check_threads_and_memory(num_threads, memory)
        self._name = f"{Path(path).parent.name}/{Path(path).name}"
        self._precision = precision
        self._num_threads = num_threads
        self._memory = memory
        self._model: Any = _read_graph(Path(path))
        self._inputs = {port.any_name: _read_spec(port) for port in self._model.inputs}
        self._outputs = {port.any_name: _read_spec(port) for port in self._model.outputs}
        # By the shapes of the inputs, the last one that was used at the end.
        self._requests: dict[_Shapes, Any] = {}

    @property
    def device(self) -> str:
        """Always "cpu"."""
        return _DEVICE.lower()

    @property
    def properties(self) -> Mapping[str, str]:
        """The engine, its version, the processor, the precision that was compiled."""
        return {
            "engine": "openvino",
            "version": str(import_openvino().__version__),
            "device": str(_make_core().get_property(_DEVICE, "FULL_DEVICE_NAME")),
            "precision": self._precision,
        }

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs by name, in the order of the graph; axes that vary are named after them."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """The outputs by name, in the order of the graph."""
        return self._outputs

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """Nothing: it does not say."""
        return {}

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compile for inputs of these shapes, unless that has been done."""
        stand_ins = {
            name: np.broadcast_to(np.zeros((), self._find_dtype(name)), shape)
            for name, shape in shapes.items()
        }
        self._find_request(stand_ins)

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> Tensors:
        """Return the wanted outputs for these inputs, written to `outputs` where given."""
        request = self._find_request(feeds)
        check_outputs(self._name, self._outputs, feeds, outputs or {})
        names = choose_outputs(self._name, self._outputs, outputs or {}, wanted)
        results = dict(outputs or {})
        # All of them, since it writes where an earlier run had it write what is not wanted now.
        for port in request.model_outputs:
            if port.any_name not in results:
                results[port.any_name] = np.empty(port.shape, port.element_type.to_dtype())
        tensor = import_openvino().Tensor
        try:
            for name, array in results.items():
                request.set_tensor(name, tensor(array, shared_memory=True))
            # What is shared is not copied; OpenVINO copies arrays that it cannot read in place.
            request.infer(dict(feeds), share_inputs=True, share_outputs=True)
            if self._memory == "low":
                request.get_compiled_model().release_memory()
        except (RuntimeError, ValueError) as err:
            raise EngineError(f"{self._name} failed: {_join_lines(err)}") from err
        return {name: results[name] for name in names}

    def close(self) -> None:
        """Free the graph and all that was compiled of it."""
        self._model = None
        self._requests.clear()

    def _find_dtype(self, name: str) -> str:
        return self._inputs[name].dtype if name in self._inputs else "float32"

    def _find_request(self, feeds: Mapping[str, Array]) -> Any:
        """The request for inputs of these shapes, compiled if need be; raises `EngineError`."""
        if self._model is None:
            raise EngineError(f"{self._name} is closed: open it again")
        check_feeds(self._name, self._inputs, feeds)
        shapes = tuple(feeds[name].shape for name in self._inputs)
        request = self._requests.pop(shapes, None)
        if request is None:
            # Room first, so that no more than the allowed number is ever in memory.
            while len(self._requests) >= _NUM_SHAPES[self._memory]:
                del self._requests[next(iter(self._requests))]
            request = self._compile(shapes)
        self._requests[shapes] = request
        return request

    def _compile(self, shapes: _Shapes) -> Any:
        """A request of the graph compiled for these shapes."""
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self._precision,
            # Pinned threads of two processes share a core while another one idles.
            "ENABLE_CPU_PINNING": False,
        }
        if self._num_threads is not None:
            options["INFERENCE_NUM_THREADS"] = self._num_threads
        model = self._model.clone()
        try:
            model.reshape(dict(zip(self._inputs, map(list, shapes), strict=True)))
            if self._precision != "f32" and _has_as_many_positions_as_heads(model):
                options["SNIPPETS_MODE"] = "DISABLE"
            compiled = _make_core().compile_model(model, _DEVICE, options)
        except RuntimeError as err:
            raise EngineError(f"{self._name} cannot be compiled: {_join_lines(err)}") from err
        self._check_compiled(compiled)
        return compiled.create_infer_request()

    def _check_compiled(self, compiled: Any) -> None:
        """Raise `EngineError` unless what was compiled is what was asked for."""
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if precision != self._precision:
            raise EngineError(
                f"{self._name} was asked for in {self._precision} and OpenVINO compiled it in "
                f"{precision}: use engine 'openvino:{precision}' or 'onnxruntime'"
            )
        num_threads = compiled.get_property("INFERENCE_NUM_THREADS")
        if self._num_threads not in (None, num_threads):
            raise EngineError(
                f"num_threads is {self._num_threads}, of which OpenVINO takes {num_threads} on "
                f"this machine: use {num_threads} or less"
            )


def _read_graph(path: Path) -> Any:
    """The graph, its weights mapped; raises `EngineError`."""
    frontends = import_openvino().frontend
    failures = (
        frontends.GeneralFailure,
        frontends.OpConversionFailure,
        frontends.OpValidationFailure,
        RuntimeError,
    )
    try:
        # By its name: Core.read_model tries every format, and those log what is not theirs.
        frontend = frontends.FrontEndManager().load_by_framework("onnx")
        model = frontend.convert(frontend.load(str(path)))
    except failures as err:
        raise EngineError(f"{path} cannot be loaded: {_join_lines(err)}") from err
    if not model.outputs:
        raise EngineError(f"{path} cannot be loaded: it returns nothing (an empty file?)")
    return model


def _has_as_many_positions_as_heads(model: Any) -> bool:
    """Whether attention in a graph of fixed shapes swaps two axes of one length.

    In bfloat16 OpenVINO 2026.4 then computes something else: 12 dB in place of 45. Without its code
    generator ("snippets") it is right, though a fifth slower.
    """
    for node in model.get_ops():
        if node.get_type_name() == "Transpose":
            shape = node.input(0).get_partial_shape()
            order = node.input(1).get_source_output().get_node()
            is_fixed = order.get_type_name() == "Constant" and shape.is_static
            # [B, S, H, D] -> [B, H, S, D]
            if is_fixed and order.data.tolist() == [0, 2, 1, 3] and shape[1] == shape[2]:
                return True
    return False


def check_precision(precision: str) -> None:
    """Raise `EngineError` unless OpenVINO is installed and computes in `precision` here."""
    if precision not in PRECISIONS:
        raise EngineError(
            f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}: use f32"
        )
    capabilities = _make_core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    if PRECISIONS[precision] not in capabilities:
        raise EngineError(
            f"this processor does not compute in {precision} (it offers {', '.join(capabilities)})"
            ": use engine 'openvino:f32'"
        )


@functools.cache
def import_openvino() -> ModuleType:
    """Return the package, without its usage reporting; raises `EngineError` if it is absent."""
    # Importing OpenVINO sends a usage event over the network, from a process of its own, and writes
    # to the user's home, unless this package is missing; nothing else needs it.
    telemetry = "openvino_telemetry"
    is_open = telemetry not in sys.modules
    if is_open:
        sys.modules[telemetry] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as err:
        raise EngineError(
            f"engine 'openvino' cannot be imported ({err}): pip install 'mutoscope[openvino]'"
        ) from err
    finally:
        if is_open:
            del sys.modules[telemetry]
    module: ModuleType = openvino
    return module


@functools.cache
def _make_core() -> Any:
    """OpenVINO's devices; one for the process, as its documentation advises."""
    return import_openvino().Core()


def _join_lines(err: Exception) -> str:
    """The message of an error of OpenVINO in one line."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    said = [line for line in lines if not _SOURCE_LINE.match(line)]
    return " ".join(said or lines) or type(err).__name__


def _read_spec(port: Any) -> TensorSpec:
    name = port.any_name
    # OpenVINO does not keep the names of axes.
    shape = tuple(
        f"{name}_{index}" if length.is_dynamic else length.get_length()
        for index, length in enumerate(port.partial_shape)
    )
    return TensorSpec(name, port.element_type.to_dtype().name, shape)
