from pathlib import Path

import pytest

from mutoscope.engines.errors import EngineError
from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import ENGINES, EngineOptions
from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH

GRAPH = DEFAULT_BUNDLE_PATH / "text_encoder" / "model.onnx"


def test_an_engine_is_a_name_and_a_precision() -> None:
    parts = {name: (EngineOptions(name).name, EngineOptions(name).precision) for name in ENGINES}
    assert parts == {
        "onnxruntime": ("onnxruntime", "f32"),
        "openvino:f32": ("openvino", "f32"),
        "openvino:bf16": ("openvino", "bf16"),
        "tensorrt": ("tensorrt", "f32"),
        "tensorrt-rtx": ("tensorrt-rtx", "f32"),
        "auto": ("auto", "f32"),
    }
    assert EngineOptions("openvino").precision == "f32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tensorflow"}, "engine is 'tensorflow': use one of onnxruntime, openvino:f32"),
        ({"engine": "openvino:int8"}, "engine is 'openvino:int8': use one of .*openvino:bf16"),
        ({"num_threads": 0}, "num_threads is 0; it must be at least 1: use 1"),
        ({"memory": "tiny"}, "memory is 'tiny'; it must be one of normal, low: use normal"),
        (
            {"engine": "openvino", "execution_provider": "cuda"},
            "execution_provider is 'cuda', which is onnxruntime's: leave it out with engine 'open",
        ),
        (
            {"engine": "tensorrt", "allow_cpu_nodes": True},
            "allow_cpu_nodes is True, which is onnxruntime's",
        ),
        (
            {"engine": "auto", "provider_options": (("device_id", "1"),)},
            "provider_options is .*, which is onnxruntime's",
        ),
        ({"cuda_graphs": True}, "cuda_graphs is True, which is TensorRT's: leave it out with eng"),
        (
            {"engine": "openvino", "weight_budget_bytes": 1},
            "weight_budget_bytes is 1, which is TensorRT's",
        ),
    ],
)
def test_what_no_machine_could_run_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        EngineOptions(**options)  # type: ignore[arg-type]


def test_rewritten_graphs_are_for_processors_alone() -> None:
    assert EngineOptions().uses_cpu_graphs
    assert EngineOptions("openvino:f32").uses_cpu_graphs
    assert EngineOptions(execution_provider="CPUExecutionProvider").uses_cpu_graphs
    assert not EngineOptions(execution_provider="cuda").uses_cpu_graphs
    assert not EngineOptions("tensorrt").uses_cpu_graphs


def test_a_graph_is_not_run_by_what_needs_it_built() -> None:
    with pytest.raises(EngineError, match=r"model.onnx is a graph, and tensorrt runs only what wa"):
        open_engine(Path(GRAPH), EngineOptions("tensorrt"))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino:f32"])
def test_opening_gives_the_engine_that_was_asked_for(engine: str) -> None:
    opened = open_engine(Path(GRAPH), EngineOptions(engine, num_threads=1))
    assert opened.properties["engine"] == engine.partition(":")[0]
    assert opened.device == "cpu"
