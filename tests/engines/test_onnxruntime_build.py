import hashlib
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mutoscope.engines import onnxruntime_build, onnxruntime_engine
from mutoscope.engines.errors import EngineError
from mutoscope.engines.onnxruntime_build import (
    DATA_NAME,
    GRAPH_NAME,
    build_graph,
    make_build_key,
)
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.engines.options import MEMORY_MODES

SIDE, CHANNELS, NUM_PRODUCTS = 512, 32, 16
PRODUCTS = [f"weight_{index}" for index in range(NUM_PRODUCTS)]
PRODUCT_BYTES = 4 * SIDE**2
WEIGHTS_BYTES = NUM_PRODUCTS * PRODUCT_BYTES


def save_graph(path: Path, stored: str) -> Path:
    """A convolution and matrix products, whose weights are stored in float32 or float16."""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((SIDE, SIDE)) / SIDE**0.5 for name in PRODUCTS}
    weights["kernel"] = random.standard_normal((CHANNELS, CHANNELS, 3, 3)) / 10
    tensors = [
        numpy_helper.from_array(weight.astype(stored), f"stored_{name}")
        for name, weight in weights.items()
    ]
    tensors.append(numpy_helper.from_array(np.array([-1, CHANNELS, 4, 4]), "square"))
    nodes = [
        helper.make_node("Cast", [f"stored_{name}"], [name], to=TensorProto.FLOAT)
        for name in weights
    ]
    nodes += [
        helper.make_node("Reshape", ["rows", "square"], ["picture"]),
        helper.make_node("Conv", ["picture", "kernel"], ["filtered"], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["filtered"], ["flat"]),
    ]
    value = "flat"
    for name in PRODUCTS:
        nodes.append(helper.make_node("MatMul", [value, name], [f"after_{name}"]))
        value = f"after_{name}"
    shape = ["N", SIDE]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        tensors,
    )
    path.parent.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path), save_as_external_data=True, location="model.onnx.data")
    return path


def run(engine: OnnxruntimeEngine, rows: np.ndarray) -> np.ndarray:
    (out,) = engine.run({"rows": rows}).values()
    return out


def make_rows(count: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, SIDE)).astype(np.float32)


@pytest.fixture(scope="module", params=["float32", "float16"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_graph(
        tmp_path_factory.mktemp(request.param) / "layers" / "model.onnx", request.param
    )


def test_a_built_graph_gives_the_same_results_in_both_memory_modes(
    source: Path, tmp_path: Path
) -> None:
    report = build_graph(source, tmp_path, {"rows": make_rows(2)})
    assert report.max_relative_error <= onnxruntime_build.MAX_RELATIVE_ERROR
    assert report.seconds_load_before > 0 < report.seconds_load_after
    rows = make_rows(5)
    expected = run(OnnxruntimeEngine(source), rows)
    allowed = onnxruntime_build.MAX_RELATIVE_ERROR * np.abs(expected).max()
    for memory in MEMORY_MODES:
        engine = OnnxruntimeEngine(tmp_path / GRAPH_NAME, memory=memory, is_built=True)
        np.testing.assert_allclose(run(engine, rows), expected, rtol=0, atol=allowed)


def test_a_built_graph_holds_prepacked_float32_weights_and_nothing_to_fold(
    source: Path, tmp_path: Path
) -> None:
    build_graph(source, tmp_path, {"rows": make_rows(1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [GRAPH_NAME, DATA_NAME]
    # Every matrix twice, as it is and as the matrix product wants it.
    assert (tmp_path / DATA_NAME).stat().st_size > 2 * WEIGHTS_BYTES
    built = onnx.load(tmp_path / GRAPH_NAME, load_external_data=False)
    assert "Cast" not in {node.op_type for node in built.graph.node}


def measure_loaded(path: Path, *, is_built: bool) -> int:
    """Anonymous memory that loading adds, in bytes, in a process of its own."""
    program = """
import sys
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.engines.onnxruntime_providers import list_execution_providers
from mutoscope.runtime.benchmarks.memory import read_status

list_execution_providers()
before = read_status("self")["RssAnon"]
engine = OnnxruntimeEngine(sys.argv[1], num_threads=1, is_built=sys.argv[2] == "True")
print(read_status("self")["RssAnon"] - before)
"""
    command = [sys.executable, "-c", program, str(path), str(is_built)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_built_graph_leaves_its_weights_in_the_file(source: Path, tmp_path: Path) -> None:
    build_graph(source, tmp_path, {"rows": make_rows(1)})
    assert measure_loaded(source, is_built=False) > WEIGHTS_BYTES
    # Matrices are prepacked one by one, to be compared with those in the file, and freed.
    assert measure_loaded(tmp_path / GRAPH_NAME, is_built=True) < WEIGHTS_BYTES / 4


def test_a_built_graph_that_gives_other_results_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_another(source: Path, target: Path, data_name: str) -> None:
        model = onnx.load(source)
        model.graph.node[-1].input[1] = PRODUCTS[0]
        onnx.save(model, str(target))

    monkeypatch.setattr(onnxruntime_build, "write_optimized", write_another)
    with pytest.raises(
        EngineError, match=r"layers/model.onnx: the built graph differs by .* 1e-05"
    ):
        build_graph(source, tmp_path, {"rows": make_rows(1)})


def test_not_a_number_is_no_agreement() -> None:
    nan = np.full(3, np.nan, np.float32)
    error = onnxruntime_build._find_relative_error(np.ones(3, np.float32), nan)
    assert not error <= onnxruntime_build.MAX_RELATIVE_ERROR


def test_a_graph_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"broken/model.onnx cannot be built: ") as caught:
        build_graph(path, tmp_path, {})
    assert "\n" not in str(caught.value)


def test_the_key_names_the_version_the_machine_and_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_key() -> str:
        return make_build_key.__wrapped__()

    key = make_key()
    machine = f"{platform.system()}-{platform.machine()}".lower()
    assert re.fullmatch(rf"onnxruntime-{onnxruntime.__version__}-{machine}-[0-9a-f]{{8}}", key)
    keys = {key}
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "__version__", "1.0.0")
        keys.add(make_key())
    for text in ("processor : 0\nflags : fpu avx\n", "processor : 0\nFeatures : asimd sve\n"):
        monkeypatch.setattr(onnxruntime_build, "_CPUINFO", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").write_text(text)
        keys.add(make_key())
        digest = hashlib.sha256(text.splitlines()[1].encode()).hexdigest()
        assert digest.startswith(make_key().rpartition("-")[2])
    monkeypatch.setattr(onnxruntime_build, "_CPUINFO", tmp_path / "absent")
    for node in ("one", "other"):
        monkeypatch.setattr(platform, "node", lambda node=node: node)
        keys.add(make_key())
    assert len(keys) == 6


def test_no_memory_plan_is_kept_beside_the_memory_of_a_run() -> None:
    options = onnxruntime_engine._make_options(onnxruntime, None, "normal", is_built=False)
    assert not options.enable_mem_pattern
