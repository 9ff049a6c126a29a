import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mutoscope.engines.errors import EngineError, ExecutionProviderError
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.engines.onnxruntime_placement import (
    MAX_SMALL_ELEMENTS,
    SHAPE_OPERATORS,
    PlacementCheck,
)
from mutoscope.engines.onnxruntime_providers import (
    EXECUTION_PROVIDERS,
    list_execution_providers,
)

CUDA = EXECUTION_PROVIDERS["cuda"]
CPU = EXECUTION_PROVIDERS["cpu"]
ALL_OPTIMIZATIONS_OFF = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


needs_places = pytest.mark.skipif(
    not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"),
    reason="onnxruntime before 1.24 does not tell where nodes are",
)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where profiles go."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """product = (data with its last two axes made one) @ weight; the shape is computed."""
    f32 = TensorProto.FLOAT
    constants = {
        "first": np.array([0]),
        "four": np.array([4]),
        "weight": np.eye(4, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Shape", ["data"], ["shape"], name="read_shape"),
        helper.make_node("Gather", ["shape", "first"], ["rows"], name="take_rows"),
        helper.make_node("Concat", ["rows", "four"], ["new_shape"], axis=0, name="join"),
        helper.make_node("Reshape", ["data", "new_shape"], ["matrix"], name="flatten"),
        helper.make_node("MatMul", ["matrix", "weight"], ["product"], name="multiply"),
    ]
    graph = helper.make_graph(
        nodes,
        "dynamic",
        [helper.make_tensor_value_info("data", f32, ["N", 2, 2])],
        [helper.make_tensor_value_info("product", f32, ["N", 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path = tmp_path / "dynamic" / "model.onnx"
    path.parent.mkdir()
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


def make_feeds(length: int = 50) -> dict[str, np.ndarray]:
    return {"data": np.ones((length, 2, 2), np.float32)}


class PlacedSession:
    """A session on the CPU that says of some of its operators that they are on CUDA."""

    def __init__(self, path: Path, check: PlacementCheck, on_cuda: set[str]) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = ALL_OPTIMIZATIONS_OFF
        check.prepare(options)
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._on_cuda = on_cuda

    def run(self, length: int) -> None:
        self._session.run(None, make_feeds(length))

    def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
        nodes = [
            node
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]
        return [
            SimpleNamespace(ep_name=self._place(node.op_type), get_nodes=lambda node=node: [node])
            for node in nodes
        ]

    def end_profiling(self) -> str:
        path = Path(self._session.end_profiling())
        events = json.loads(path.read_text(encoding="utf-8"))
        for event in events:
            if "provider" in event.get("args", {}):
                event["args"]["provider"] = self._place(event["args"]["op_name"])
        path.write_text(json.dumps(events), encoding="utf-8")
        return str(path)

    def _place(self, operator: str) -> str:
        return (CUDA if operator in self._on_cuda else CPU).full_name


Open = Callable[[set[str]], tuple[PlacementCheck, PlacedSession]]


@pytest.fixture
def open_placed(path: Path) -> Open:
    def open_session(on_cuda: set[str]) -> tuple[PlacementCheck, PlacedSession]:
        check = PlacementCheck("dynamic/model.onnx", CUDA)
        return check, PlacedSession(path, check, on_cuda)

    return open_session


@needs_places
def test_shape_arithmetic_on_the_cpu_is_accepted_after_the_first_run(
    open_placed: Open, folders: Path
) -> None:
    check, session = open_placed({"Shape", "Reshape", "MatMul"})
    assert not check.check_loaded(session)
    session.run(1000)
    check.check_run(session)
    assert list(folders.iterdir()) == []


@needs_places
def test_a_graph_without_cpu_nodes_needs_no_look_at_a_run(open_placed: Open, folders: Path) -> None:
    check, session = open_placed({"Shape", "Gather", "Concat", "Reshape", "MatMul"})
    assert check.check_loaded(session)
    assert list(folders.iterdir()) == []


@needs_places
def test_work_on_the_cpu_is_refused_when_the_graph_is_loaded(open_placed: Open) -> None:
    check, session = open_placed({"Reshape"})
    message = (
        r"^dynamic/model.onnx: execution provider 'cuda' leaves 1 of 5 nodes to the CPU "
        r"\(1 MatMul; the first: multiply\): accept that with --allow-cpu-nodes "
        r"\(allow_cpu_nodes=True\), or use cpu, "
    )
    with pytest.raises(ExecutionProviderError, match=message):
        check.check_loaded(session)
    check.close(session)


def test_work_on_the_cpu_is_refused_after_the_first_run_where_it_was_not_seen_before(
    open_placed: Open, folders: Path
) -> None:
    check, session = open_placed({"Reshape"})
    session.run(1)
    with pytest.raises(ExecutionProviderError, match=r"leaves 1 of 5 .*1 MatMul; the first: multi"):
        check.check_run(session)
    assert list(folders.iterdir()) == []


@needs_places
def test_an_operator_of_shape_arithmetic_is_work_if_it_handles_more_than_a_few_numbers(
    open_placed: Open,
) -> None:
    # 4 numbers a row are reshaped on the CPU.
    rows = MAX_SMALL_ELEMENTS // 4
    check, session = open_placed({"Shape", "MatMul"})
    assert not check.check_loaded(session)
    session.run(rows)
    check.check_run(session)
    check, session = open_placed({"Shape", "MatMul"})
    session.run(rows + 1)
    with pytest.raises(ExecutionProviderError, match=r"leaves 1 of 5 nodes to the CPU \(1 Reshape"):
        check.check_run(session)


@needs_places
def test_a_provider_that_takes_nothing_is_refused_even_if_all_is_shape_arithmetic(
    open_placed: Open,
) -> None:
    check, session = open_placed(set())
    message = (
        r"leaves 5 of 5 nodes .*1 Shape, 1 Gather, 1 Concat, 1 Reshape, 1 MatMul; the first: r"
    )
    with pytest.raises(ExecutionProviderError, match=message):
        check.check_loaded(session)
    check.close(session)


def test_no_operator_that_works_on_pictures_counts_as_shape_arithmetic() -> None:
    work = {"Conv", "MatMul", "Gemm", "Softmax", "Resize", "GroupNormalization", "Gelu", "Sigmoid"}
    assert not SHAPE_OPERATORS & work


@needs_places
def test_azure_takes_no_node_and_is_refused_when_the_graph_is_loaded(path: Path) -> None:
    message = r"'azure' leaves (\d) of \1 nodes to the CPU \(.*1 MatMul.*--allow-cpu-nodes .* use c"
    with pytest.raises(ExecutionProviderError, match=message) as caught:
        OnnxruntimeEngine(path, execution_provider="azure", num_threads=1)
    assert "\n" not in str(caught.value)


def test_azure_runs_on_the_cpu_where_that_is_allowed(path: Path, folders: Path) -> None:
    engine = OnnxruntimeEngine(
        path, execution_provider="AzureExecutionProvider", num_threads=1, allow_cpu_nodes=True
    )
    assert engine.device == "azure"
    assert engine.run(make_feeds())["product"].shape == (50, 4)
    assert list(folders.iterdir()) == []


@pytest.fixture
def old_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version before 1.24, which does not tell where nodes are."""
    monkeypatch.delattr(
        onnxruntime.InferenceSession.__mro__[1],
        "get_provider_graph_assignment_info",
        raising=False,
    )


@pytest.mark.usefixtures("old_onnxruntime")
def test_an_older_onnxruntime_refuses_after_the_first_run_and_the_engine_is_closed(
    path: Path, folders: Path
) -> None:
    engine = OnnxruntimeEngine(path, execution_provider="azure", num_threads=1)
    with pytest.raises(ExecutionProviderError, match=r"'azure' leaves \d of \d nodes to the CPU"):
        engine.run(make_feeds())
    assert list(folders.iterdir()) == []
    with pytest.raises(EngineError, match="is closed"):
        engine.run(make_feeds())


@pytest.mark.usefixtures("old_onnxruntime")
@pytest.mark.parametrize("end", ["close", "forget"])
def test_an_engine_that_never_ran_leaves_no_profile(path: Path, folders: Path, end: str) -> None:
    engine: Any = OnnxruntimeEngine(path, execution_provider="azure", num_threads=1)
    assert list(folders.iterdir())
    if end == "close":
        engine.close()
    del engine
    gc.collect()
    assert list(folders.iterdir()) == []


@needs_places
def test_a_plugin_that_takes_all_runs_without_a_look_at_the_first_run(
    path: Path, folders: Path
) -> None:
    pytest.importorskip("onnxruntime_ep_openvino")
    if "openvino" not in list_execution_providers():
        pytest.skip("the plugin of OpenVINO finds no device here")
    engine = OnnxruntimeEngine(path, execution_provider="openvino")
    assert list(folders.iterdir()) == []
    np.testing.assert_array_equal(engine.run(make_feeds())["product"], np.ones((50, 4)))
