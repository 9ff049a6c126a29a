"""Run a component both ways: its module in torch, and its graph out of a bundle."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mutoscope.export.families.contract import Arrays, ComponentExport
from mutoscope.export.parity import run_module

# The same sums in another order, on values of about 1; 3e-6 was seen.
TOLERANCE = 2e-5


def run_both(component: ComponentExport, bundle: Path, inputs: Arrays) -> Iterator[NDArray[Any]]:
    """Yield the one output of the module, then the first of the graph in the bundle."""
    (name,) = component.outputs
    yield run_module(component, inputs)[name]
    yield run_graph(bundle, component.name, inputs)


def run_graph(bundle: Path, component: str, inputs: Arrays) -> NDArray[Any]:
    """Return the first output of a graph."""
    output, *_ = _open_graph(bundle, component).run(None, inputs)
    return np.asarray(output)


def measure_influence(bundle: Path, component: ComponentExport, sizes: dict[str, int]) -> Arrays:
    """Return how far the graph's output moves, at most, when one input alone is drawn again."""
    inputs, others = component.make_inputs(sizes, seed=1), component.make_inputs(sizes, seed=2)
    output = run_graph(bundle, component.name, inputs)
    return {
        name: np.abs(run_graph(bundle, component.name, {**inputs, name: other}) - output).max()
        for name, other in others.items()
    }


@functools.cache
def _open_graph(bundle: Path, component: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(bundle / component / "model.onnx"), options)
