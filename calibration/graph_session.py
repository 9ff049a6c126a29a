"""An onnxruntime session of a graph that was changed in memory and is in no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir
import onnxruntime

from mutoscope.calibration.errors import CalibrationError


def open_graph(model: onnx_ir.Model, data_folder: Path, num_threads: int | None = None) -> Any:
    """Return a session of a graph whose weights lie in files of a folder.

    Args:
        model: The graph; small tensors in it, large ones in the files it was loaded with.
        data_folder: Where those lie.
        num_threads: Threads for one operator; None takes one for each core.

    Raises:
        CalibrationError: onnxruntime does not take the graph.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_mem_pattern = False
    # Nodes run in the order of the graph, so that what reads a value is done before it is freed.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(data_folder)
    )
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    serialized = onnx_ir.to_proto(model).SerializeToString()
    try:
        return onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime's errors share no base but Exception
        line = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise CalibrationError(f"the graph {model.graph.name} cannot be run: {line}") from err
