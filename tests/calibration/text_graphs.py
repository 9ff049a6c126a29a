"""Graphs that are given as text, and what onnxruntime makes of graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper, parser

Arrays = Mapping[str, NDArray[Any]]


def save_text_graph(path: Path, text: str, weights: Arrays) -> Path:
    """Write the graph that "(INPUTS) => (OUTPUTS) { NODES }" is, with these initialisers."""
    # The operator set of exported graphs, whose constant is in a module that needs torch.
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> component {text}')
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    model.graph.initializer.extend(tensors)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def run_graph(path: Path, feeds: Arrays) -> list[NDArray[Any]]:
    """Return what onnxruntime computes on a CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    results: list[NDArray[Any]] = session.run(None, dict(feeds))
    return results


def count_run_operators(path: Path, target: Path) -> Counter[str]:
    """Return how many nodes of each type onnxruntime runs, after all it fuses."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3  # that the file is for this machine alone
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(target, load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)
