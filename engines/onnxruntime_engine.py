"""Run an ONNX graph with onnxruntime, on the execution provider that was asked for or not at all.

onnxruntime is imported when the first graph is opened.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from mutoscope.engines.engine import Array, Tensors, TensorSpec, check_feeds
from mutoscope.engines.errors import EngineError, ExecutionProviderError

# Short name: name in onnxruntime, and the package whose onnxruntime has it.
EXECUTION_PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime"),
    "directml": ("DmlExecutionProvider", "onnxruntime-directml"),
    "migraphx": ("MIGraphXExecutionProvider", "onnxruntime-migraphx"),
    "qnn": ("QNNExecutionProvider", "onnxruntime-qnn"),
}
DEFAULT_EXECUTION_PROVIDER = "cpu"

Memory = Literal["normal", "low"]
MEMORY_MODES: tuple[Memory, ...] = ("normal", "low")

# onnxruntime writes its log to stderr. Everything it logs as an error it also raises.
_LOG_SEVERITY_FATAL = 4

# Folding would convert weights that are stored in float16 once, into memory of their own; without
# it each is converted right before its use, in every run.
_UNFOLDED = ["ConstantFolding"]
# A key of onnxruntime's run configuration: free what the run allocated and does not use any more.
_SHRINK_ARENA = ("memory.enable_memory_arena_shrinkage", "cpu:0")

_NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "str",
}


class OnnxruntimeEngine:
    """One ONNX graph in an onnxruntime session. See `mutoscope.engines.engine.Engine`."""

    def __init__(
        self,
        path: str | Path,
        *,
        execution_provider: str = DEFAULT_EXECUTION_PROVIDER,
        num_threads: int | None = None,
        memory: Memory = "normal",
    ) -> None:
        """Load the graph at `path`.

        Args:
            path: The ONNX file; its external data is found beside it.
            execution_provider: A short name from EXECUTION_PROVIDERS. onnxruntime may still run
                single nodes that a device cannot (shape arithmetic, mostly) on the CPU.
            num_threads: Threads for one operator on the CPU; None leaves it to onnxruntime, which
                takes one for each core.
            memory: "low" leaves the weights in their file, where the operating system can drop
                them, and gives the memory of a run back after it. On a CPU it is slower by a
                fifth or so; results may differ by rounding.

        Raises:
            ExecutionProviderError: The execution provider is unknown, is not in this build of
                onnxruntime, or does not start on this machine.
            EngineError: The file is absent or is not a graph that onnxruntime can run.
        """
        provider = find_execution_provider(execution_provider)
        if num_threads is not None and num_threads < 1:
            raise EngineError(f"num_threads is {num_threads}; it must be at least 1: use 1")
        if memory not in MEMORY_MODES:
            raise EngineError(
                f"memory is {memory!r}; it must be one of {', '.join(MEMORY_MODES)}: use low"
            )
        onnxruntime = _import_onnxruntime()
        self._name = f"{Path(path).parent.name}/{Path(path).name}"
        self._device = execution_provider
        options = _make_options(onnxruntime, num_threads, memory)
        try:
            # Without enable_fallback=0, onnxruntime answers a provider that fails with the CPU.
            session = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=[provider],
                enable_fallback=0,
                disabled_optimizers=_UNFOLDED if memory == "low" else None,
            )
        except _error_types() as err:
            raise EngineError(f"{path} cannot be loaded: {_first_line(err)}") from err
        if provider not in session.get_providers():
            raise ExecutionProviderError(
                f"execution provider {execution_provider!r} is in this onnxruntime build but does "
                f"not start on this machine (driver or libraries missing?): use {_available()}"
            )
        session.disable_fallback()
        self._session: Any = session
        self._run_options: Any = None
        if memory == "low" and execution_provider == DEFAULT_EXECUTION_PROVIDER:
            self._run_options = onnxruntime.RunOptions()
            self._run_options.add_run_config_entry(*_SHRINK_ARENA)
        self._inputs = {node.name: _read_spec(node) for node in session.get_inputs()}
        self._outputs = {node.name: _read_spec(node) for node in session.get_outputs()}

    @property
    def device(self) -> str:
        """The short name of the execution provider."""
        return self._device

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs by name, in the order of the graph."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """The outputs by name, in the order of the graph."""
        return self._outputs

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        """Return all outputs, new arrays, for these inputs; raises `EngineError`."""
        if self._session is None:
            raise EngineError(f"{self._name} is closed: open it again")
        check_feeds(self._name, self._inputs, feeds)
        try:
            arrays = self._session.run(None, dict(feeds), self._run_options)
        except _error_types() as err:
            raise EngineError(f"{self._name} failed: {_first_line(err)}") from err
        return dict(zip(self._outputs, arrays, strict=True))

    def close(self) -> None:
        """Free the session and its memory."""
        self._session = None


def _make_options(onnxruntime: ModuleType, num_threads: int | None, memory: Memory) -> Any:
    """The options of a session.

    What low memory turns off copies every weight when a graph is loaded (prepacking, and the layout
    changes of the highest level), or plans a whole run as one block, beside that of the last plan.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_SEVERITY_FATAL
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    if memory == "low":
        options.add_session_config_entry("session.disable_prepacking", "1")
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_EXTENDED
        options.enable_mem_pattern = False
    return options


def list_execution_providers() -> list[str]:
    """Return the short names of the execution providers in this build of onnxruntime."""
    built_in = _import_onnxruntime().get_available_providers()
    return [name for name, (provider, _) in EXECUTION_PROVIDERS.items() if provider in built_in]


def find_execution_provider(name: str) -> str:
    """Return onnxruntime's name for a short name; raises `ExecutionProviderError`."""
    if name not in EXECUTION_PROVIDERS:
        raise ExecutionProviderError(
            f"execution provider {name!r} is unknown (known: {', '.join(EXECUTION_PROVIDERS)}): "
            f"use {_available()}"
        )
    provider, package = EXECUTION_PROVIDERS[name]
    if provider not in _import_onnxruntime().get_available_providers():
        raise ExecutionProviderError(
            f"execution provider {name!r} is not in this onnxruntime build "
            f"(available: {_available()}): {_install_command(package)}"
        )
    return provider


def _install_command(package: str) -> str:
    """The builds of onnxruntime fill one folder, so one must go before another comes."""
    if package == "onnxruntime":
        return f"pip install --force-reinstall {package}"
    return f"pip uninstall -y onnxruntime && pip install {package}"


def _available() -> str:
    return ", ".join(list_execution_providers())


@functools.cache
def _import_onnxruntime() -> ModuleType:
    import onnxruntime

    # Loading and device discovery log outside of any session.
    onnxruntime.set_default_logger_severity(_LOG_SEVERITY_FATAL)
    module: ModuleType = onnxruntime
    return module


@functools.cache
def _error_types() -> tuple[type[Exception], ...]:
    """The exceptions of onnxruntime, which have no common base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (getattr(state, name) for name in dir(state))
    found = (kind for kind in own if isinstance(kind, type) and issubclass(kind, Exception))
    return (*found, ValueError, RuntimeError)


def _first_line(err: Exception) -> str:
    lines = str(err).strip().splitlines()
    return lines[0] if lines else type(err).__name__


def _read_spec(node: Any) -> TensorSpec:
    dtype = _NUMPY_TYPES.get(node.type, node.type.removeprefix("tensor(").removesuffix(")"))
    # An axis without a length and without a name is None.
    shape = tuple(f"{node.name}_{i}" if n is None else n for i, n in enumerate(node.shape))
    return TensorSpec(node.name, dtype, shape)
