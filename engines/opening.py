"""Open a graph, or what was built of it, with the engine that was asked for, or not at all."""

from __future__ import annotations

from pathlib import Path

from mutoscope.engines.engine import Engine
from mutoscope.engines.errors import EngineError
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.engines.onnxruntime_providers import find_execution_provider
from mutoscope.engines.options import AUTO, DEFAULT_ENGINE, TENSORRT_MODULES, EngineOptions


def check_available(options: EngineOptions) -> None:
    """Raise `EngineError` unless this machine has what the options ask for."""
    if options.engine == AUTO:
        return
    if options.name == DEFAULT_ENGINE:
        find_execution_provider(options.execution_provider)
    elif options.name in TENSORRT_MODULES:
        from mutoscope.engines.cuda_device import list_gpus
        from mutoscope.engines.tensorrt_module import load_tensorrt

        load_tensorrt(options.name)
        list_gpus()
    else:
        from mutoscope.engines.openvino_engine import check_precision

        check_precision(options.precision)


def open_engine(
    path: Path,
    options: EngineOptions,
    *,
    is_built: bool = False,
    weights: Path | None = None,
    cache: Path | None = None,
    allow_host_code: bool = False,
) -> Engine:
    """Return an engine for the ONNX graph at `path`.

    Args:
        path: The graph; its external data is found beside it. For TensorRT, a plan that was built
            of it.
        options: The engine and its choices.
        is_built: The graph was made by `mutoscope.engines.onnxruntime_build` for this machine.
        weights: For TensorRT, the graph that has the weights of a plan that was built without.
        cache: What keeps what is compiled when a graph is loaded or run: of TensorRT a file, of an
            execution provider of onnxruntime a folder. None keeps nothing.
        allow_host_code: For TensorRT, whether a plan may bring code for the processor, as one does
            that newer versions run too.

    Raises:
        EngineError: The engine is not available, or does not take the graph.
    """
    if options.name == DEFAULT_ENGINE:
        return OnnxruntimeEngine(
            path,
            execution_provider=options.execution_provider,
            num_threads=options.num_threads,
            memory=options.memory,
            is_built=is_built,
            allow_cpu_nodes=options.allow_cpu_nodes,
            provider_options=options.provider_options,
            cache=cache,
        )
    if options.name in TENSORRT_MODULES:
        if not is_built:
            raise EngineError(
                f"{path.parent.name}/{path.name} is a graph, and {options.name} runs only what was "
                "built of one: mutoscope build, or use engine 'onnxruntime'"
            )
        from mutoscope.engines.tensorrt_engine import TensorrtEngine

        return TensorrtEngine(
            path,
            engine_name=options.name,
            weights=weights,
            options=options,
            runtime_cache=cache,
            allow_host_code=allow_host_code,
        )
    from mutoscope.engines.openvino_engine import OpenvinoEngine

    return OpenvinoEngine(
        path,
        precision=options.precision,
        num_threads=options.num_threads,
        memory=options.memory,
    )
