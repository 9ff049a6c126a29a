from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mutoscope.engines import onnxruntime_engine, onnxruntime_providers
from mutoscope.engines.errors import EngineError, ExecutionProviderError
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine


@pytest.fixture(scope="module")
def graph_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """total = first + second, both float32 [N, 3]."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3])
        for name in ("first", "second", "total")
    ]
    nodes = [helper.make_node("Add", ["first", "second"], ["total"])]
    graph = helper.make_graph(nodes, "sum", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path_factory.mktemp("graph") / "sum" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, str(path))
    return path


@pytest.fixture
def engine(graph_path: Path) -> OnnxruntimeEngine:
    return OnnxruntimeEngine(graph_path, num_threads=1)


def rows(count: int, dtype: str = "float32") -> np.ndarray:
    return np.ones((count, 3), dtype)


def test_run_returns_the_outputs_by_name(engine: OnnxruntimeEngine) -> None:
    outputs = engine.run({"first": rows(2), "second": rows(2)})
    assert list(outputs) == ["total"]
    np.testing.assert_array_equal(outputs["total"], 2 * rows(2))


def test_engine_says_what_it_takes_and_where_it_runs(engine: OnnxruntimeEngine) -> None:
    assert [str(spec) for spec in engine.inputs.values()] == ["float32[N, 3]"] * 2
    assert list(engine.outputs) == ["total"]
    assert engine.device == "cpu"


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"first": rows(2)}, "sum/model.onnx needs an input 'second': pass first, second"),
        (
            {"first": rows(2), "second": rows(2), "third": rows(2)},
            "sum/model.onnx has no input 'third': it takes first, second",
        ),
        (
            {"first": rows(2, "float64"), "second": rows(2)},
            r"first is float64\[2, 3\]; the graph takes float32\[N, 3\]$",
        ),
        ({"first": rows(2)[0], "second": rows(2)}, r"first is float32\[3\]; the graph takes"),
        (
            {"first": rows(2), "second": rows(4)},
            r"second is float32\[4, 3\]; the graph takes float32\[N, 3\] with N = 2",
        ),
    ],
)
def test_run_refuses_feeds_that_do_not_fit(
    engine: OnnxruntimeEngine, feeds: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        engine.run(feeds)


@pytest.fixture
def pair_engine(tmp_path: Path) -> OnnxruntimeEngine:
    """count = N and bytes = table[index], for int64 index [N]; uint8 [N, 2] and an int64 number."""
    table = numpy_helper.from_array(np.arange(10, dtype=np.uint8).reshape(5, 2), "table")
    nodes = [
        helper.make_node("Gather", ["table", "index"], ["bytes"]),
        helper.make_node("Size", ["index"], ["count"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pair",
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["N"])],
        [
            helper.make_tensor_value_info("bytes", TensorProto.UINT8, ["N", 2]),
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
        ],
        [table],
    )
    path = tmp_path / "pair" / "model.onnx"
    path.parent.mkdir()
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return OnnxruntimeEngine(path, num_threads=1)


def test_run_writes_into_the_arrays_given_and_keeps_the_binding_while_they_come_again(
    pair_engine: OnnxruntimeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = np.array([4, 0, 2])
    outputs = {"bytes": np.empty((3, 2), np.uint8), "count": np.empty((), np.int64)}
    returned = pair_engine.run({"index": index}, outputs)
    assert all(returned[name] is array for name, array in outputs.items())
    assert outputs["bytes"].tolist() == [[8, 9], [0, 1], [4, 5]]
    assert outputs["count"] == 3
    with monkeypatch.context() as patch:
        patch.delattr(OnnxruntimeEngine, "_bind")
        index[:] = 1, 1, 3
        pair_engine.run({"index": index}, outputs)
    assert outputs["bytes"].tolist() == [[2, 3], [2, 3], [6, 7]]
    other = {name: np.empty_like(array) for name, array in outputs.items()}
    assert pair_engine.run({"index": index[::-1]}, other)["bytes"].tolist()[0] == [6, 7]
    assert outputs["bytes"].tolist()[0] == [2, 3]


def test_outputs_that_are_not_given_are_new_arrays_in_each_run(
    pair_engine: OnnxruntimeEngine,
) -> None:
    count, index = np.empty((), np.int64), np.array([4])
    first = pair_engine.run({"index": index}, {"count": count})
    index[0] = 0
    second = pair_engine.run({"index": index}, {"count": count})
    assert list(second) == ["bytes", "count"]
    assert (first["bytes"].tolist(), second["bytes"].tolist()) == ([[8, 9]], [[0, 1]])


@pytest.mark.parametrize("length", [1, 3, 40])
def test_an_output_array_of_a_wrong_length_is_an_error_and_no_memory_is_touched(
    engine: OnnxruntimeEngine, length: int
) -> None:
    memory = np.full((60, 3), 7, np.float32)
    with pytest.raises(EngineError, match=r"sum/model.onnx failed: .*shape") as caught:
        engine.run({"first": rows(2), "second": rows(2)}, {"total": memory[10 : 10 + length]})
    assert "\n" not in str(caught.value)
    assert (memory == 7).all()
    engine.run({"first": rows(2), "second": rows(2)}, {"total": memory[:2]})
    assert (memory[:2] == 2).all()


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"sum": rows(2)}, "has no output 'sum': it returns total"),
        ({"total": rows(2, "float64")}, r"total is float64\[2, 3\]; the graph returns float32"),
        (
            {"total": rows(3).T},
            r"must be C-contiguous and writeable: use np.empty\(\[3, 3\], np.fl",
        ),
        ({"total": rows(2).reshape(3, 2)}, r"total is float32\[3, 2\]; the graph returns float32"),
    ],
)
def test_run_refuses_output_arrays_that_do_not_fit(
    engine: OnnxruntimeEngine, outputs: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(EngineError, match=rf"sum/model.onnx.*{message}"):
        engine.run({"first": rows(2), "second": rows(2)}, outputs)


def test_an_output_array_may_not_be_an_input(engine: OnnxruntimeEngine) -> None:
    array = rows(4)
    with pytest.raises(EngineError, match="the array for total shares memory with second"):
        engine.run({"first": rows(2), "second": array[:2]}, {"total": array[1:3]})


def test_run_after_close_says_so(engine: OnnxruntimeEngine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match=r"sum/model.onnx is closed"):
        engine.run({"first": rows(1), "second": rows(1)})


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """The providers that sessions are asked for, of a build with CUDA without a driver.

    There, onnxruntime opens a session on the CPU.
    """
    import onnxruntime

    asked: list[object] = []

    def open_on_the_cpu(path: str, options: object, *, providers: object, **others: object):
        asked.append(providers)
        return session_type(path, options, providers=["CPUExecutionProvider"])

    session_type = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_on_the_cpu)
    onnxruntime_providers.preload_cuda.cache_clear()
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    yield asked
    onnxruntime_providers.preload_cuda.cache_clear()


def test_a_provider_that_does_not_start_is_an_error_and_never_the_cpu(
    graph_path: Path, asked_for: list[object]
) -> None:
    with pytest.raises(ExecutionProviderError, match="'cuda' is in this onnxruntime build but"):
        OnnxruntimeEngine(
            graph_path, execution_provider="cuda", provider_options=(("device_id", "1"),)
        )
    assert asked_for == [[("CUDAExecutionProvider", {"device_id": "1"})]]


def test_cuda_says_which_of_its_libraries_are_missing_and_prints_nothing(
    graph_path: Path,
    asked_for: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import onnxruntime

    def preload(directory: str) -> None:
        # What onnxruntime-gpu 1.31 printed on a machine without CUDA.
        for name in ("libcublasLt.so.13", "libcurand.so.10"):
            print(f"Failed to load {name}: {name}: cannot open shared object file: No such file")
        print("Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA.")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    message = (
        r"does not start on this machine \(libcublasLt.so.13, libcurand.so.10 missing: "
        r"pip install 'onnxruntime-gpu\[cuda,cudnn\]'\): use cpu"
    )
    with pytest.raises(ExecutionProviderError, match=message):
        OnnxruntimeEngine(graph_path, execution_provider="cuda")
    assert capfd.readouterr() == ("", "")


def test_tensorrt_has_cuda_behind_it_and_keeps_what_it_builds_in_the_cache(
    graph_path: Path, tmp_path: Path, asked_for: list[object]
) -> None:
    with pytest.raises(ExecutionProviderError, match="'tensorrt' is in this onnxruntime build but"):
        OnnxruntimeEngine(
            graph_path,
            execution_provider="tensorrt",
            provider_options=(("device_id", "1"), ("trt_timing_cache_enable", "False")),
            cache=tmp_path,
        )
    [[(tensorrt, options), cuda]] = asked_for
    assert tensorrt == "TensorrtExecutionProvider"
    assert options["trt_engine_cache_path"] == str(tmp_path)
    assert (options["device_id"], options["trt_timing_cache_enable"]) == ("1", "False")
    assert cuda == ("CUDAExecutionProvider", {"device_id": "1"})


def test_an_option_that_the_provider_does_not_take_is_one_line_that_names_it(
    graph_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    def refuse(*arguments: object, **others: object) -> None:
        raise RuntimeError(
            "/onnxruntime_src/onnxruntime/core/framework/provider_options_utils.h:147 void "
            'Parse(const ProviderOptions&) unknown provider option: "device"\n\nsecond line'
        )

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    message = r'cannot be loaded with device=1: unknown provider option: "device"$'
    with pytest.raises(EngineError, match=message):
        OnnxruntimeEngine(
            graph_path, execution_provider="azure", provider_options=(("device", "1"),)
        )


def test_the_cpu_takes_no_provider_options(graph_path: Path) -> None:
    with pytest.raises(ExecutionProviderError, match="'cpu' has no options, but device_id was giv"):
        OnnxruntimeEngine(graph_path, provider_options=(("device_id", "0"),))


@pytest.fixture
def buffered_engine(graph_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnnxruntimeEngine:
    """An engine that keeps its inputs and outputs on the device as with CUDA, which is the CPU."""
    monkeypatch.setattr(onnxruntime_engine, "_BUFFER_DEVICES", {"cpu": "cpu"})
    return OnnxruntimeEngine(graph_path, num_threads=1)


def test_an_engine_with_buffers_gives_new_arrays_or_fills_those_given(
    buffered_engine: OnnxruntimeEngine,
) -> None:
    total = np.empty((2, 3), np.float32)
    first = buffered_engine.run({"first": rows(2), "second": rows(2)})["total"]
    given = buffered_engine.run({"first": 2 * rows(2), "second": rows(2)}, {"total": total})
    assert given["total"] is total
    assert (first == 2).all()
    assert (total == 3).all()
    assert buffered_engine.memory_bytes == {"buffers": 3 * 2 * 3 * 4}


@pytest.mark.parametrize("length", [1, 3])
def test_an_engine_with_buffers_refuses_an_output_array_of_a_wrong_length(
    buffered_engine: OnnxruntimeEngine, length: int
) -> None:
    total = np.full((length, 3), 7, np.float32)
    message = rf"sum/model.onnx failed: the array for total has the shape \[{length}, 3\]"
    with pytest.raises(EngineError, match=message):
        buffered_engine.run({"first": rows(2), "second": rows(2)}, {"total": total})
    assert (total == 7).all()


def test_an_engine_with_buffers_is_closed_like_any_other(
    buffered_engine: OnnxruntimeEngine,
) -> None:
    buffered_engine.run({"first": rows(1), "second": rows(1)})
    buffered_engine.close()
    assert buffered_engine.memory_bytes == {}
    with pytest.raises(EngineError, match=r"sum/model.onnx is closed"):
        buffered_engine.run({"first": rows(1), "second": rows(1)})


def test_feeds_are_checked_again_when_they_change(engine: OnnxruntimeEngine) -> None:
    engine.run({"first": rows(2), "second": rows(2)})
    for feeds in (
        {"first": rows(2), "second": rows(3)},
        {"first": rows(2), "second": rows(2, "float64")},
        {"first": rows(2)},
    ):
        with pytest.raises(EngineError, match=r"sum/model.onnx"):
            engine.run(feeds)
    assert (engine.run({"first": rows(2), "second": rows(2)})["total"] == 2).all()


@pytest.mark.parametrize("keep", [0, 20, 100])
def test_a_damaged_graph_is_one_line_and_no_log(
    graph_path: Path, tmp_path: Path, keep: int, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(graph_path.read_bytes()[:keep])
    with pytest.raises(EngineError, match=r"model.onnx cannot be loaded") as caught:
        OnnxruntimeEngine(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_absent_graph_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"model.onnx cannot be loaded"):
        OnnxruntimeEngine(tmp_path / "model.onnx")


def test_a_graph_that_fails_while_it_runs_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = helper.make_tensor("table", TensorProto.FLOAT, [2, 1], [1.0, 2.0])
    index = helper.make_tensor_value_info("index", TensorProto.INT64, ["N"])
    row = helper.make_tensor_value_info("row", TensorProto.FLOAT, ["N", 1])
    nodes = [helper.make_node("Gather", ["table", "index"], ["row"])]
    graph = helper.make_graph(nodes, "table", [index], [row], [table])
    path = tmp_path / "table" / "model.onnx"
    path.parent.mkdir()
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    engine = OnnxruntimeEngine(path)
    with pytest.raises(EngineError, match=r"table/model.onnx failed: .*out of") as caught:
        engine.run({"index": np.array([5])})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_low_memory_gives_what_normal_gives(graph_path: Path) -> None:
    engine = OnnxruntimeEngine(graph_path, num_threads=1, memory="low")
    outputs = engine.run({"first": rows(2), "second": rows(2)})
    np.testing.assert_array_equal(outputs["total"], 2 * rows(2))


def test_an_unknown_memory_mode_is_refused_with_those_there_are(graph_path: Path) -> None:
    with pytest.raises(EngineError, match="memory is 'tiny'; it must be one of normal, low"):
        OnnxruntimeEngine(graph_path, memory="tiny")  # type: ignore[arg-type]
