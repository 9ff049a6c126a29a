"""A TensorRT plan, loaded from its file: its weights, its tensors, and what runs it."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mutoscope.engines.engine import TensorSpec
from mutoscope.engines.errors import EngineError
from mutoscope.engines.tensorrt_files import read_file, write_file
from mutoscope.engines.tensorrt_module import (
    TENSORRT_RTX,
    TITLES,
    ErrorLog,
    describe_parser_errors,
    load_tensorrt,
)

if TYPE_CHECKING:
    import tensorrt


class TensorrtPlan:
    """A plan that TensorRT has on the GPU.

    Attributes:
        name: What to call it in messages.
        version: That of TensorRT.
        inputs: The inputs by name, with their limits.
        outputs: The outputs by name.
    """

    def __init__(
        self,
        path: Path,
        *,
        engine_name: str,
        weights: Path | None,
        weight_budget_bytes: int | None,
        allow_host_code: bool,
    ) -> None:
        """Load a plan; raises `EngineError` unless TensorRT takes it and its weights."""
        self.name = f"{path.parent.name}/{path.name}"
        self.engine_name = engine_name
        self._trt = load_tensorrt(engine_name)
        self.version = self._trt.__version__
        self.log = ErrorLog(self._trt)
        self._runtime = self._trt.Runtime(self.log.logger)
        # TensorRT 11.4 gives an object that crashes where it cannot use the driver.
        self.log.check(f"{TITLES[engine_name]} {self.version} does not start")
        # A version-compatible plan brings code for the processor.
        self._runtime.engine_host_code_allowed = allow_host_code
        self._engine = self._deserialize(path)
        if weights is not None:
            self._refit(weights)
        self._weight_budget_bytes = weight_budget_bytes
        if weight_budget_bytes is not None:
            self._set_weight_budget(weight_budget_bytes)
        tensors = [
            self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)
        ]
        modes = {name: self._engine.get_tensor_mode(name) for name in tensors}
        is_input = self._trt.TensorIOMode.INPUT
        self.inputs = {n: self._read_input(n) for n, mode in modes.items() if mode == is_input}
        self.outputs = {n: self._read_output(n) for n, mode in modes.items() if mode != is_input}

    @property
    def weights_bytes(self) -> int | None:
        """How much of the weights is on the GPU; None if TensorRT does not say."""
        # TensorRT 10.3 has no such figure.
        if not hasattr(self._trt, "EngineStat"):
            return None
        total = self._engine.get_engine_stat(self._trt.EngineStat.TOTAL_WEIGHTS_SIZE)
        if self._weight_budget_bytes is None:
            return total
        streamable = self._engine.streamable_weights_size
        return total - streamable + min(self._weight_budget_bytes, streamable)

    def close(self) -> None:
        """Free it; what runs it must be gone before."""
        # TensorRT frees an object when nothing refers to it: the engine, then what made it.
        del self._engine
        del self._runtime

    def make_context(
        self, *, cuda_graphs: bool, runtime_cache: Path | None
    ) -> tuple[tensorrt.IExecutionContext, RuntimeCache | None]:
        """Return what runs the plan, and what is compiled for that.

        Args:
            cuda_graphs: Whether TensorRT for RTX is to record runs by itself.
            runtime_cache: Where TensorRT for RTX keeps what it compiles.
        """
        cache = None
        # Its working memory is given to it, as much as the shapes need.
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.engine_name == TENSORRT_RTX:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            # Compiled later, in the background, the kernels would change between two steps of one
            # clip, and results with them.
            config.dynamic_shapes_kernel_specialization_strategy = (
                self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            if cuda_graphs:
                config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if runtime_cache is not None:
                cache = RuntimeCache(config, runtime_cache)
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(f"{self.name} cannot be prepared: {self.log.join()}")
        return context, cache

    def _deserialize(self, path: Path) -> tensorrt.ICudaEngine:
        try:
            # Mapped, not read: TensorRT copies what it needs.
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # ValueError: an empty file.
        except (OSError, ValueError) as err:
            raise EngineError(f"{path} cannot be read ({err}): build the engine again") from err
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(
                f"{path} is not loaded by {TITLES[self.engine_name]} {self.version}: "
                f"{self.log.join()}: build the engine again on this machine"
            )
        return engine

    def _refit(self, weights: Path) -> None:
        """Put the weights of a graph into the plan."""
        refitter = self._trt.Refitter(self._engine, self.log.logger)
        parser = self._trt.OnnxParserRefitter(refitter, self.log.logger)
        if not parser.refit_from_file(str(weights)):
            raise EngineError(
                f"{self.name} does not take the weights of {weights}: "
                f"{describe_parser_errors(parser, self.log)}: build it again of this graph"
            )
        if not refitter.refit_cuda_engine():
            raise EngineError(
                f"{self.name} does not take the weights of {weights}: {self.log.join()}: "
                "build it again of this graph"
            )

    def _set_weight_budget(self, budget_bytes: int) -> None:
        streamable = self._engine.streamable_weights_size
        if not streamable:
            raise EngineError(
                f"{self.name} cannot stream its weights, so that weight_budget_bytes "
                f"({budget_bytes}) does nothing: build it with weight streaming, or leave it out"
            )
        self.log.errors.clear()
        # Before there is a context; more than all is all.
        self._engine.weight_streaming_budget_v2 = budget_bytes
        self.log.check(f"{self.name} does not take weight_budget_bytes {budget_bytes}")

    def _read_input(self, name: str) -> TensorSpec:
        self._check_location(name)
        minimum = maximum = self._engine.get_tensor_shape(name)
        if -1 in tuple(minimum):
            minimum, _, maximum = self._engine.get_tensor_profile_shape(name, 0)
        shape = tuple(
            least if least == greatest else f"{name}_{index}"
            for index, (least, greatest) in enumerate(zip(minimum, maximum, strict=True))
        )
        return TensorSpec(name, self._find_dtype(name), shape, tuple(minimum), tuple(maximum))

    def _read_output(self, name: str) -> TensorSpec:
        self._check_location(name)
        # The plan does not keep the names of axes; those that vary are -1.
        shape = tuple(
            length if length >= 0 else f"{name}_{index}"
            for index, length in enumerate(self._engine.get_tensor_shape(name))
        )
        return TensorSpec(name, self._find_dtype(name), shape)

    def _check_location(self, name: str) -> None:
        """Raise `EngineError` for a tensor that TensorRT keeps on the processor."""
        if self._engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
            raise EngineError(
                f"{self.name}: {name} is a shape, which is not supported: use engine 'onnxruntime'"
            )

    def _find_dtype(self, name: str) -> str:
        dtype = self._engine.get_tensor_dtype(name)
        try:
            return np.dtype(self._trt.nptype(dtype)).name
        except TypeError as err:
            raise EngineError(
                f"{self.name}: {name} is of a type that numpy does not have ({dtype}): export the "
                "graph with inputs and outputs in float32 or float16"
            ) from err


class RuntimeCache:
    """What TensorRT for RTX compiles when it runs, kept in a file."""

    def __init__(self, config: tensorrt.IRuntimeConfig, path: Path) -> None:
        """Have what is made with `config` use the file, if that is of this GPU and driver."""
        self._path = path
        self._saved = read_file(path)
        self._cache = config.create_runtime_cache()
        # What is refused (another driver, a damaged file) is compiled again and replaced.
        if self._saved:
            self._cache.deserialize(self._saved)
        if not config.set_runtime_cache(self._cache):
            raise EngineError(f"TensorRT for RTX does not keep what it compiles in {path}")

    def save(self) -> None:
        """Write what was compiled, if that is more than was read; raises `EngineError`."""
        blob = self._cache.serialize()
        # None after a fault of the GPU, which was reported when it happened.
        data = b"" if blob is None else bytes(memoryview(blob))
        if data and data != self._saved:
            write_file(self._path, data)
