"""Run an ONNX graph with onnxruntime, on the execution provider that was asked for or not at all.

onnxruntime is imported when the first graph is opened.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mutoscope.engines.engine import Array, Tensors, TensorSpec, check_feeds
from mutoscope.engines.errors import EngineError, ExecutionProviderError
from mutoscope.engines.onnxruntime_buffers import DeviceBuffers
from mutoscope.engines.onnxruntime_module import (
    LOG_SEVERITY_FATAL,
    error_types,
    first_line,
    import_onnxruntime,
)
from mutoscope.engines.onnxruntime_placement import PlacementCheck
from mutoscope.engines.onnxruntime_providers import (
    ExecutionProvider,
    check_provider_options,
    find_execution_provider,
    list_devices,
    list_others,
    make_cache_options,
    preload_cuda,
)
from mutoscope.engines.options import (
    DEFAULT_EXECUTION_PROVIDER,
    Memory,
    check_threads_and_memory,
)
from mutoscope.engines.output_arrays import check_outputs, choose_outputs

# What runs on CUDA, and onnxruntime's name of the memory where inputs and outputs are kept.
_BUFFER_DEVICES = {"cuda": "cuda", "tensorrt": "cuda"}
_DEVICE_ID = "device_id"

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
        allow_cpu_nodes: bool = False,
        provider_options: Iterable[tuple[str, str]] = (),
        cache: Path | None = None,
    ) -> None:
        """Load the graph at `path`.

        Args:
            path: The ONNX file; its external data is found beside it.
            execution_provider: A name that `find_execution_provider` knows. "tensorrt" has "cuda"
                behind it, for nodes that TensorRT does not take.
            num_threads: Threads for one operator on the CPU; None leaves it to onnxruntime, which
                takes one for each core.
            memory: "low" leaves the weights in their file, where the operating system can drop
                them, and gives the memory of a run back after it. On a CPU it is slower by a
                fifth or so, and results may differ by rounding; not so with a graph that is built.
            is_built: The graph was made by `mutoscope.engines.onnxruntime_build` for this machine:
                nothing is left to optimise.
            allow_cpu_nodes: Whether the CPU may run what another execution provider does not take.
                If not, it may run the arithmetic of shapes alone: see
                `mutoscope.engines.onnxruntime_placement`.
            provider_options: onnxruntime's options of the execution provider. "device_id" is the
                number of the device, of plugins too.
            cache: A folder for what "tensorrt" and "tensorrt-rtx" build of the graph; None builds
                it in each session.

        Raises:
            ExecutionProviderError: The execution provider is unknown, is not in this build of
                onnxruntime, does not start on this machine, or leaves nodes to the CPU.
            EngineError: The file is absent or is not a graph that onnxruntime can run.
        """
        check_threads_and_memory(num_threads, memory)
        provider = find_execution_provider(execution_provider)
        given = dict(provider_options)
        check_provider_options(provider, given)
        if cache is not None:
            given = {**make_cache_options(provider, cache), **given}
        self._name = f"{Path(path).parent.name}/{Path(path).name}"
        self._device = provider.name
        is_on_cpu = provider.name == DEFAULT_EXECUTION_PROVIDER
        options = _make_options(import_onnxruntime(), num_threads, memory, is_built=is_built)
        is_checked = not (is_on_cpu or allow_cpu_nodes)
        self._placement = PlacementCheck(self._name, provider) if is_checked else None
        if self._placement is not None:
            self._placement.prepare(options)
        unfolded = _UNFOLDED if memory == "low" and not is_built else None
        session = _open_session(str(path), options, provider, given, unfolded)
        if self._placement is not None and self._placement.check_loaded(session):
            self._placement = None
        self._session: Any = session
        self._run_options: Any = None
        self._binding: Any = None
        # The shapes and types of the last inputs, which were right.
        self._checked: dict[str, Any] | None = None
        # What the binding is of: the outputs, numpy's description of each array, with its address.
        self._bound: tuple[list[str], dict[str, Any]] | None = None
        if memory == "low" and is_on_cpu:
            self._run_options = import_onnxruntime().RunOptions()
            self._run_options.add_run_config_entry(*_SHRINK_ARENA)
        self._inputs = {node.name: _read_spec(node) for node in session.get_inputs()}
        self._outputs = {node.name: _read_spec(node) for node in session.get_outputs()}
        self._buffers = self._make_buffers(provider, int(given.get(_DEVICE_ID, 0)))

    def _make_buffers(self, provider: ExecutionProvider, device_id: int) -> DeviceBuffers | None:
        """Memory of the device for inputs and outputs; None where there is none to take."""
        if provider.name not in _BUFFER_DEVICES or list_devices(provider):
            return None
        return DeviceBuffers(
            self._session,
            self._inputs,
            self._outputs,
            device=_BUFFER_DEVICES[provider.name],
            device_id=device_id,
        )

    @property
    def device(self) -> str:
        """The short name of the execution provider."""
        return self._device

    @property
    def properties(self) -> Mapping[str, str]:
        """The engine, its version, its execution provider."""
        return {
            "engine": "onnxruntime",
            "version": str(import_onnxruntime().__version__),
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
        """The inputs and outputs that stay on a device; of the rest onnxruntime does not say."""
        return {} if self._buffers is None else {"buffers": self._buffers.size_bytes}

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Nothing: a session takes all shapes alike."""

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> Tensors:
        """Return the wanted outputs for these inputs, written to `outputs` where given."""
        if self._session is None:
            raise EngineError(f"{self._name} is closed: open it again")
        described = {name: (array.shape, array.dtype) for name, array in feeds.items()}
        if described != self._checked:
            check_feeds(self._name, self._inputs, feeds)
            self._checked = described
        names = choose_outputs(self._name, self._outputs, outputs or {}, wanted)
        try:
            if self._buffers is not None:
                results = self._run_on_device(self._buffers, feeds, outputs or {}, names)
            elif outputs:
                results = self._run_into(feeds, outputs, names)
            else:
                arrays = self._session.run(names, dict(feeds), self._run_options)
                results = dict(zip(names, arrays, strict=True))
        except error_types() as err:
            raise EngineError(f"{self._name} failed: {first_line(err)}") from err
        if self._placement is not None:
            self._check_first_run(self._placement)
        return results

    def _check_first_run(self, placement: PlacementCheck) -> None:
        """Refuse a session of which the first run did work on the CPU."""
        try:
            placement.check_run(self._session)
        except ExecutionProviderError:
            self.close()
            raise
        self._placement = None

    def _run_on_device(
        self,
        buffers: DeviceBuffers,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array],
        names: list[str],
    ) -> Tensors:
        """Run in memory of the device, and copy the results to where they are wanted."""
        check_outputs(self._name, self._outputs, feeds, outputs)
        results = buffers.run(feeds, names, self._run_options)
        for name, array in outputs.items():
            if array.shape != results[name].shape:
                raise EngineError(
                    f"{self._name} failed: the array for {name} has the shape "
                    f"{list(array.shape)}, the result {list(results[name].shape)}"
                )
            np.copyto(array, results[name])
        return {**results, **outputs}

    def _run_into(
        self, feeds: Mapping[str, Array], outputs: Mapping[str, Array], names: list[str]
    ) -> Tensors:
        """Run through a binding of these arrays, the last one where it is of the same memory."""
        feeds = {name: np.asarray(array, order="C") for name, array in feeds.items()}
        arrays = {**feeds, **outputs}
        key = names, {name: array.__array_interface__ for name, array in arrays.items()}
        if key != self._bound:
            check_outputs(self._name, self._outputs, feeds, outputs)
            self._bound = None
            self._binding = self._bind(feeds, outputs, names)
        self._session.run_with_iobinding(self._binding, self._run_options)
        # A device copies inputs when they are bound, and what is not given is allocated only once.
        if self._device == DEFAULT_EXECUTION_PROVIDER and len(outputs) == len(names):
            self._bound = key
            return {name: outputs[name] for name in names}
        values = zip(names, self._binding.get_outputs(), strict=True)
        return {n: outputs[n] if n in outputs else value.numpy() for n, value in values}

    def _bind(
        self, feeds: Mapping[str, Array], outputs: Mapping[str, Array], names: list[str]
    ) -> Any:
        """Return onnxruntime's binding of these arrays; it keeps pointers, not the arrays."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name in names:
            if name in outputs:
                array = outputs[name]
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            else:
                binding.bind_output(name)
        return binding

    def close(self) -> None:
        """Free the session and its memory."""
        if self._placement is not None:
            self._placement.close(self._session)
        self._session = self._binding = self._bound = self._buffers = self._placement = None


def _open_session(
    path: str,
    options: Any,
    provider: ExecutionProvider,
    provider_options: Mapping[str, str],
    disabled_optimizers: list[str] | None,
) -> Any:
    """A session on the execution provider, or an error; never one on the CPU in its place."""
    missing = preload_cuda() if provider.name in _BUFFER_DEVICES else ()
    try:
        # Without enable_fallback=0, onnxruntime answers a provider that fails with the CPU.
        session = import_onnxruntime().InferenceSession(
            path,
            options,
            providers=_add_provider(options, provider, provider_options),
            enable_fallback=0,
            disabled_optimizers=disabled_optimizers,
        )
    except error_types() as err:
        given = ", ".join(f"{key}={value}" for key, value in provider_options.items())
        raise EngineError(
            f"{path} cannot be loaded{f' with {given}' if given else ''}: {first_line(err)}"
        ) from err
    if provider.full_name not in session.get_providers():
        reason = (
            f"{', '.join(missing)} missing: pip install '{provider.package}[cuda,cudnn]'"
            if missing
            else "driver or libraries missing?"
        )
        raise ExecutionProviderError(
            f"execution provider {provider.name!r} is in this onnxruntime build but does not start "
            f"on this machine ({reason}): use {list_others(provider)}"
        )
    session.disable_fallback()
    return session


def _add_provider(
    options: Any, provider: ExecutionProvider, provider_options: Mapping[str, str]
) -> list[tuple[str, dict[str, str]]] | None:
    """Put a plugin into the options of a session; return what else a session is asked for."""
    devices = list_devices(provider)
    if not devices:
        providers = [(provider.full_name, dict(provider_options))]
        if provider.name == "tensorrt":
            cuda = {k: v for k, v in provider_options.items() if k == _DEVICE_ID}
            providers.append((find_execution_provider("cuda").full_name, cuda))
        return providers
    remaining = dict(provider_options)
    text = remaining.pop(_DEVICE_ID, "0")
    if not text.isdecimal() or int(text) >= len(devices):
        raise ExecutionProviderError(
            f"provider option {_DEVICE_ID} is {text!r}; {provider.name!r} finds {len(devices)} "
            f"device(s) here: use 0{f' to {len(devices) - 1}' if len(devices) > 1 else ''}"
        )
    options.add_provider_for_devices([devices[int(text)]], remaining)
    return None


def _make_options(
    onnxruntime: ModuleType, num_threads: int | None, memory: Memory, *, is_built: bool
) -> Any:
    """The options of a session.

    What low memory turns off copies every weight when a graph is loaded: prepacking, and the layout
    changes of the highest level. A built graph has both done, in a file that is mapped as it is.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_SEVERITY_FATAL
    # A plan of a whole run is one block, beside that of the last plan: up to 1.7 times the peak,
    # and no faster where shapes may vary.
    options.enable_mem_pattern = False
    # Or the threads of one graph still wait for work in a loop while the next graph runs, and take
    # the cores from its own: a clip of four graphs on two cores took 1.5 times as long.
    options.add_session_config_entry("session.force_spinning_stop", "1")
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
    onnxruntime = import_onnxruntime()
    options = _make_options(onnxruntime, None, "normal", is_built=False)
    options.optimized_model_filepath = str(target)
    for name, value in (
        ("optimized_model_external_initializers_file_name", data_name),
        ("optimized_model_external_initializers_min_size_in_bytes", _MIN_EXTERNAL_BYTES),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(f"session.{name}", value)
    provider = find_execution_provider(DEFAULT_EXECUTION_PROVIDER).full_name
    try:
        onnxruntime.InferenceSession(str(source), options, providers=[provider], enable_fallback=0)
    except error_types() as err:
        raise EngineError(f"{source} cannot be built: {first_line(err)}") from err


def _read_spec(node: Any) -> TensorSpec:
    dtype = _NUMPY_TYPES.get(node.type, node.type.removeprefix("tensor(").removesuffix(")"))
    # An axis without a length and without a name is None.
    shape = tuple(f"{node.name}_{i}" if n is None else n for i, n in enumerate(node.shape))
    return TensorSpec(node.name, dtype, shape)
