"""Stand-ins of CUDA and of both TensorRTs, and a plan that they run."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from mutoscope.engines.options import EngineOptions
from mutoscope.engines.tensorrt_engine import TensorrtEngine
from tests.engines.emulated_cuda import EmulatedCuda
from tests.engines.emulated_tensorrt import (
    EmulatedTensorrt,
    save_plan,
)
from tests.engines.plan_runs import GRAPH


@pytest.fixture
def cuda(monkeypatch):
    emulated = EmulatedCuda()
    emulated.install(monkeypatch)
    return emulated


@pytest.fixture
def trt(cuda, monkeypatch):
    emulated = EmulatedTensorrt(cuda)
    emulated.install(monkeypatch)
    return emulated


@pytest.fixture
def rtx(cuda, monkeypatch):
    emulated = EmulatedTensorrt(cuda, "tensorrt_rtx")
    emulated.install(monkeypatch)
    return emulated


@pytest.fixture
def model():
    return onnx.parser.parse_model(GRAPH)


@pytest.fixture
def plan(model, tmp_path):
    return save_plan(tmp_path / "model.plan", model)


@pytest.fixture
def open_plan(plan, cuda):
    """A function that opens the plan; all that it opened is closed, and must be freed, at last."""
    engines = []

    def open_engine(engine_name="tensorrt", *, path=plan, options=None, **choices):
        options = EngineOptions(engine=engine_name, **(options or {}))
        engines.append(TensorrtEngine(path, engine_name=engine_name, options=options, **choices))
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()
    cuda.check_all_freed()
