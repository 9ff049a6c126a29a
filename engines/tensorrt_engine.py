"""Runs a TensorRT plan through numpy arrays, with memory on the GPU that is kept between runs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from mutoscope.engines.cuda_device import list_gpus
from mutoscope.engines.cuda_memory import CudaGraph, CudaStream, DeviceBuffer
from mutoscope.engines.engine import Array, Tensors, TensorSpec, check_feeds
from mutoscope.engines.errors import EngineError
from mutoscope.engines.options import EngineOptions
from mutoscope.engines.output_arrays import check_outputs, choose_outputs
from mutoscope.engines.tensorrt_module import TENSORRT_RTX
from mutoscope.engines.tensorrt_plan import TensorrtPlan

_Shapes = dict[str, tuple[int, ...]]


class TensorrtEngine:
    """An `Engine` that runs a plan of TensorRT or of TensorRT for RTX on the first GPU.

    What a run needs on the GPU is taken when its shapes are new, and kept: runs of the same shapes
    take no memory.
    """

    def __init__(
        self,
        plan: Path,
        *,
        engine_name: str,
        weights: Path | None = None,
        options: EngineOptions,
        runtime_cache: Path | None = None,
        allow_host_code: bool = False,
    ) -> None:
        """Load a plan.

        Args:
            plan: What `build_plan` wrote, for this GPU.
            engine_name: "tensorrt" or "tensorrt-rtx".
            weights: The graph whose weights a plan takes that was built without.
            options: Whether to record runs, and how much of the weights to keep on the GPU.
            runtime_cache: Where TensorRT for RTX keeps what it compiles for this GPU; read now and
                written when the engine is closed.
            allow_host_code: Whether the plan may bring code for the processor, as one has to that
                was built version_compatible; only for plans from who is trusted with that.

        Raises:
            EngineError: There is no GPU, a library is missing, or TensorRT does not take the plan.
        """
        self._gpu = list_gpus()[0]
        self._is_closed = False
        self._shapes: _Shapes | None = None
        self._output_shapes: _Shapes = {}
        self._graph: CudaGraph | None = None
        # TensorRT for RTX records by itself.
        self._records_runs = options.cuda_graphs and engine_name != TENSORRT_RTX
        with ExitStack() as closing:
            self._stream = CudaStream()
            closing.callback(self._stream.close)
            self._plan = TensorrtPlan(
                Path(plan),
                engine_name=engine_name,
                weights=weights,
                weight_budget_bytes=options.weight_budget_bytes,
                allow_host_code=allow_host_code,
            )
            self._context, cache = self._plan.make_context(
                cuda_graphs=options.cuda_graphs, runtime_cache=runtime_cache
            )
            if cache is not None:
                closing.callback(cache.save)
            # It must outlive the context, which is freed last.
            self._cache = cache
            tensors = (*self._plan.inputs, *self._plan.outputs)
            self._buffers = {name: DeviceBuffer(self._stream) for name in tensors}
            self._activations = DeviceBuffer(self._stream)
            for buffer in (*self._buffers.values(), self._activations):
                closing.callback(buffer.close)
            closing.callback(self._drop_graph)
            self._closing = closing.pop_all()

    @property
    def device(self) -> str:
        """Always "cuda"."""
        return "cuda"

    @property
    def properties(self) -> Mapping[str, str]:
        """The engine, its version, the GPU, and that numbers are of the types of the graph."""
        return {
            "engine": self._plan.engine_name,
            "version": self._plan.version,
            "device": self._gpu.name,
            "precision": "as the graph",
        }

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs by name, with the shapes that the plan was built for."""
        return self._plan.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """The outputs by name."""
        return self._plan.outputs

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """What it has on the GPU; without "weights" where TensorRT does not say, as 10.3."""
        if self._is_closed:
            return {}
        weights = self._plan.weights_bytes
        return {
            **({} if weights is None else {"weights": weights}),
            "activations": self._activations.size_bytes,
            "buffers": sum(buffer.size_bytes for buffer in self._buffers.values()),
        }

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take memory for inputs of these shapes and run on zeros, unless that has been done."""
        self._check_open()
        specs = self._plan.inputs
        stand_ins = {
            name: np.broadcast_to(np.zeros((), specs[name].dtype if name in specs else "b"), shape)
            for name, shape in shapes.items()
        }
        check_feeds(self._plan.name, specs, stand_ins)
        if not self._has_shapes(stand_ins):
            self._load(stand_ins)
            self._enqueue()
            self._stream.synchronize()

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> Tensors:
        """Return the wanted outputs for these inputs, copied to `outputs` where given."""
        self._check_open()
        check_feeds(self._plan.name, self._plan.inputs, feeds)
        check_outputs(self._plan.name, self._plan.outputs, feeds, outputs or {})
        names = choose_outputs(self._plan.name, self._plan.outputs, outputs or {}, wanted)
        self._load(feeds)
        results = self._make_results(names, outputs or {})
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue()
        for name, array in results.items():
            self._buffers[name].copy_to(array)
        self._stream.synchronize()
        return results

    def close(self) -> None:
        """Free all that it has on the GPU, and keep in its file what was compiled."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._closing.close()
        finally:
            del self._context
            self._plan.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError(f"{self._plan.name} is closed: open it again")

    def _has_shapes(self, feeds: Mapping[str, Array]) -> bool:
        return self._shapes == {name: array.shape for name, array in feeds.items()}

    def _load(self, feeds: Mapping[str, Array]) -> None:
        """Copy the inputs to the GPU, and have all ready for a run of their shapes."""
        is_new = not self._has_shapes(feeds)
        if is_new:
            # Until all is ready: what fails on the way leaves nothing that could be run.
            self._shapes = None
            self._drop_graph()
        for name, array in feeds.items():
            self._buffers[name].grow(array.nbytes)
            self._buffers[name].copy_from(array)
        if is_new:
            self._take_shapes(feeds)
            self._shapes = {name: array.shape for name, array in feeds.items()}

    def _take_shapes(self, feeds: Mapping[str, Array]) -> None:
        """Tell TensorRT the shapes of the inputs, and give it memory for all else."""
        self._plan.log.errors.clear()
        for name, array in feeds.items():
            if not self._context.set_input_shape(name, array.shape):
                raise self._make_error(f"does not take {name} of shape {list(array.shape)}")
        try:
            unknown = self._context.infer_shapes()
        # Inputs that disagree about an axis: the plan does not keep the names of axes.
        except RuntimeError as err:
            raise self._make_error("does not take inputs of these shapes together") from err
        if unknown:
            raise self._make_error(f"does not know the shape of {', '.join(unknown)}")
        self._output_shapes = {
            name: tuple(self._context.get_tensor_shape(name)) for name in self._plan.outputs
        }
        for name, shape in self._output_shapes.items():
            if any(length < 0 for length in shape):
                raise EngineError(
                    f"{self._plan.name}: the shape of {name} depends on values, not on shapes "
                    "alone, which is not supported: use engine 'onnxruntime'"
                )
            self._buffers[name].grow(self._find_bytes(name, shape))
        for name, buffer in self._buffers.items():
            if not self._context.set_tensor_address(name, buffer.address):
                raise self._make_error(f"does not take memory for {name}")
        self._activations.grow(self._context.update_device_memory_size_for_shapes())
        # It answers 0 if it failed, and if it needs none.
        self._plan.log.check(f"{self._plan.name} cannot be prepared for these shapes")
        self._context.set_device_memory(self._activations.address, self._activations.size_bytes)
        if self._records_runs:
            # What TensorRT does once for new shapes is no part of a run.
            self._enqueue()
            self._stream.synchronize()
            self._graph = CudaGraph(self._stream, self._enqueue)

    def _enqueue(self) -> None:
        """Put one run into the stream."""
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._make_error("failed")

    def _make_results(self, names: list[str], outputs: Mapping[str, Array]) -> Tensors:
        """Return the arrays that take the outputs; raises `EngineError` if a given one does not."""
        results: Tensors = {}
        for name in names:
            shape, array = self._output_shapes[name], outputs.get(name)
            if array is None:
                array = np.empty(shape, self._plan.outputs[name].dtype)
            elif array.shape != shape:
                raise EngineError(
                    f"{self._plan.name}: the array for {name} has the shape {list(array.shape)}; "
                    f"the result has {list(shape)}: pass one of that shape"
                )
            results[name] = array
        return results

    def _find_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * np.dtype(self._plan.outputs[name].dtype).itemsize

    def _drop_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph = self._graph, None
            graph.close()

    def _make_error(self, what: str) -> EngineError:
        """An error of TensorRT, with what it said since the last one."""
        reason = self._plan.log.join()
        self._plan.log.errors.clear()
        return EngineError(f"{self._plan.name} {what}: {reason}")
