"""Execution providers of onnxruntime on a GPU never leave work to the CPU unasked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mutoscope.engines.errors import EngineError, ExecutionProviderError
from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import EngineOptions
from tests.gpu.running import PROVIDERS, EngineCase

pytestmark = pytest.mark.gpu

# More than the arithmetic of shapes has.
COUNT = 4096
# A determinant of two rows by elimination, in float32.
RELATIVE_ERROR = 1e-4

on_every_provider = pytest.mark.parametrize("case", PROVIDERS, ids=str)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph of which one operator, the determinant, is for processors only."""
    wanted = [None, 2, 2]
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Add", ["matrices", "matrices"], ["doubled"]),
                helper.make_node("Det", ["doubled"], ["determinants"]),
            ],
            "determinants",
            [helper.make_tensor_value_info("matrices", TensorProto.FLOAT, wanted)],
            [helper.make_tensor_value_info("determinants", TensorProto.FLOAT, [None])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = tmp_path / "graph" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path)
    return path


@pytest.fixture
def matrices() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(COUNT, 2, 2)).astype(np.float32) + 2


@on_every_provider
def test_work_on_the_cpu_is_refused_and_named(
    case: EngineCase, graph: Path, matrices: np.ndarray
) -> None:
    options = case.make_options()
    with pytest.raises(ExecutionProviderError, match=r"Det.*--allow-cpu-nodes"):
        run(graph, options, matrices)


@on_every_provider
def test_work_on_the_cpu_can_be_accepted(
    case: EngineCase, graph: Path, matrices: np.ndarray
) -> None:
    found = run(graph, case.make_options(allow_cpu_nodes=True), matrices)
    expected = np.linalg.det(2 * matrices.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=RELATIVE_ERROR, atol=RELATIVE_ERROR)


@on_every_provider
def test_a_device_that_is_not_there_is_an_error(
    case: EngineCase, graph: Path, matrices: np.ndarray
) -> None:
    options = case.make_options(allow_cpu_nodes=True, provider_options=(("device_id", "99"),))
    with pytest.raises(EngineError, match="device") as caught:
        run(graph, options, matrices)
    assert "\n" not in str(caught.value)


def run(graph: Path, options: EngineOptions, matrices: np.ndarray) -> np.ndarray:
    engine = open_engine(graph, options)
    try:
        return engine.run({"matrices": matrices})["determinants"]
    finally:
        engine.close()
