"""Open a graph with the engine that was asked for, or not at all."""

from __future__ import annotations

from pathlib import Path

from mutoscope.engines.engine import Engine
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine, find_execution_provider
from mutoscope.engines.options import DEFAULT_ENGINE, EngineOptions


def check_available(options: EngineOptions) -> None:
    """Raise `EngineError` unless this machine has what the options ask for."""
    if options.name == DEFAULT_ENGINE:
        find_execution_provider(options.execution_provider)
        return
    from mutoscope.engines.openvino_engine import check_precision

    check_precision(options.precision)


def open_engine(path: Path, options: EngineOptions, *, is_built: bool = False) -> Engine:
    """Return an engine for the ONNX graph at `path`.

    Args:
        path: The graph; its external data is found beside it.
        options: The engine and its choices.
        is_built: The graph was made by `mutoscope.engines.onnxruntime_build` for this machine.

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
        )
    from mutoscope.engines.openvino_engine import OpenvinoEngine

    return OpenvinoEngine(
        path,
        precision=options.precision,
        num_threads=options.num_threads,
        memory=options.memory,
    )
