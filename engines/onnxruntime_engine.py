"""Run an ONNX graph with onnxruntime, on the execution provider that was asked for or not at all.

onnxruntime is imported when the first graph is opened.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mutoscope.engines.engine import Array, Tensors, TensorSpec, check_feeds
from mutoscope.engines.errors import EngineError, ExecutionProviderError
from mutoscope.engines.options import (
    DEFAULT_EXECUTION_PROVIDER,
    Memory,
    check_threads_and_memory,
)
from mutoscope.engines.output_arrays import check_outputs

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

# onnxruntime writes its log to stderr. Everything it logs as an error it also raises.
_LOG_SEVERITY_FATAL = 4

# Folding would convert weights that are stored in float16 once, into memory of their own; without
# it each is converted right before its use, in every run.
_UNFOLDED = ["ConstantFolding"]
# A key of onnxruntime's run configuration: free what the run allocated and does not use any more.
_SHRINK_ARENA = ("memory.enable_memory_arena_shrinkage", "cpu:0")
# Smaller weights stay in a built graph itself.
_MIN_EXTERNAL_BYTES = "1024"

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
        is_built: bool = False,
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
                fifth or so, and results may differ by rounding; not so with a graph that is built.
            is_built: The graph was made by `mutoscope.engines.onnxruntime_build` for this machine:
                nothing is left to optimise.

        Raises:
            ExecutionProviderError: The execution provider is unknown, is not in this build of
                onnxruntime, or does not start on this machine.
            EngineError: The file is absent or is not a graph that onnxruntime can run.
        """
        provider = find_execution_provider(execution_provider)
        check_threads_and_memory(num_threads, memory)
        onnxruntime = _import_onnxruntime()
        self._name = f"{Path(path).parent.name}/{Path(path).name}"
        self._device = execution_provider
        options = _make_options(onnxruntime, num_threads, memory, is_built=is_built)
        try:
            # Without enable_fallback=0, onnxruntime answers a provider that fails with the CPU.
            session = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=[provider],
                enable_fallback=0,
                disabled_optimizers=_UNFOLDED if memory == "low" and not is_built else None,
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
        self._binding: Any = None
        # What the binding is of: numpy's description of each array, with its address.
        self._bound: dict[str, Any] | None = None
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
    def properties(self) -> Mapping[str, str]:
        """The engine, its version, its execution provider."""
        return {
            "engine": "onnxruntime",
            "version": str(_import_onnxruntime().__version__),
            "device": self._device,
            "precision": "as the graph",
        }

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs by name, in the order of the graph."""
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
        """Nothing: a session takes all shapes alike."""

    def run(
        self, feeds: Mapping[str, Array], outputs: Mapping[str, Array] | None = None
    ) -> Tensors:
        """Return all outputs for these inputs, written to `outputs` where given."""
        if self._session is None:
            raise EngineError(f"{self._name} is closed: open it again")
        check_feeds(self._name, self._inputs, feeds)
        try:
            if outputs:
                return self._run_into(feeds, outputs)
            arrays = self._session.run(None, dict(feeds), self._run_options)
        except _error_types() as err:
            raise EngineError(f"{self._name} failed: {_first_line(err)}") from err
        return dict(zip(self._outputs, arrays, strict=True))

    def _run_into(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> Tensors:
        """Run through a binding of these arrays, the last one where it is of the same memory."""
        feeds = {name: np.asarray(array, order="C") for name, array in feeds.items()}
        arrays = {**feeds, **outputs}
        key = {name: array.__array_interface__ for name, array in arrays.items()}
        if key != self._bound:
            check_outputs(self._name, self._outputs, feeds, outputs)
            self._bound = None
            self._binding = self._bind(feeds, outputs)
        self._session.run_with_iobinding(self._binding, self._run_options)
        # A device copies inputs when they are bound, and what is not given is allocated only once.
        if self._device == DEFAULT_EXECUTION_PROVIDER and len(outputs) == len(self._outputs):
            self._bound = key
            return dict(outputs)
        values = zip(self._outputs, self._binding.get_outputs(), strict=True)
        return {n: outputs[n] if n in outputs else value.numpy() for n, value in values}

    def _bind(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> Any:
        """Return onnxruntime's binding of these arrays; it keeps pointers, not the arrays."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name in self._outputs:
            if name in outputs:
                array = outputs[name]
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            else:
                binding.bind_output(name)
        return binding

    def close(self) -> None:
        """Free the session and its memory."""
        self._session = self._binding = self._bound = None


def _make_options(
    onnxruntime: ModuleType, num_threads: int | None, memory: Memory, *, is_built: bool
) -> Any:
    """The options of a session.

    What low memory turns off copies every weight when a graph is loaded: prepacking, and the layout
    changes of the highest level. A built graph has both done, in a file that is mapped as it is.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_SEVERITY_FATAL
    # A plan of a whole run is one block, beside that of the last plan: up to 1.7 times the peak,
    # and no faster where shapes may vary.
    options.enable_mem_pattern = False
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    level = onnxruntime.GraphOptimizationLevel
    if is_built:
        options.graph_optimization_level = level.ORT_DISABLE_ALL
    elif memory == "low":
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.graph_optimization_level = level.ORT_ENABLE_EXTENDED
    return options


def write_optimized(source: Path, target: Path, data_name: str) -> None:
    """Write a graph as onnxruntime runs it on this processor, weights prepacked.

    Args:
        source: The ONNX file.
        target: Where the optimised graph goes.
        data_name: The name of its external data, which goes beside it.

    Raises:
        EngineError: onnxruntime does not load the graph, or cannot write it.
    """
    onnxruntime = _import_onnxruntime()
    options = _make_options(onnxruntime, None, "normal", is_built=False)
    options.optimized_model_filepath = str(target)
    for name, value in (
        ("optimized_model_external_initializers_file_name", data_name),
        ("optimized_model_external_initializers_min_size_in_bytes", _MIN_EXTERNAL_BYTES),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(f"session.{name}", value)
    provider = find_execution_provider(DEFAULT_EXECUTION_PROVIDER)
    try:
        onnxruntime.InferenceSession(str(source), options, providers=[provider], enable_fallback=0)
    except _error_types() as err:
        raise EngineError(f"{source} cannot be built: {_first_line(err)}") from err


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
