import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SIDE = 2048
WEIGHTS_BYTES = 4 * 4 * SIDE**2


@pytest.fixture(scope="module", params=["float32", "float16"])
def heavy_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four matrix products of 16 MiB each in float32, stored beside the graph in either type."""
    random = np.random.default_rng(0)
    nodes, tensors, value = [], [], "rows"
    for index in range(4):
        weight = (random.standard_normal((SIDE, SIDE)) / SIDE**0.5).astype(request.param)
        tensors.append(numpy_helper.from_array(weight, f"stored_{index}"))
        cast = helper.make_node("Cast", [f"stored_{index}"], [f"w_{index}"], to=TensorProto.FLOAT)
        nodes += [cast, helper.make_node("MatMul", [value, f"w_{index}"], [f"product_{index}"])]
        value = f"product_{index}"
    shape = ["N", SIDE]
    graph = helper.make_graph(
        nodes,
        "heavy",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        tensors,
    )
    path = tmp_path_factory.mktemp(request.param) / "heavy" / "model.onnx"
    path.parent.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path), save_as_external_data=True, location="model.onnx.data")
    return path


def measure_memory(path: Path, memory: str) -> dict[str, float]:
    """Anonymous memory that an engine adds, in bytes, in a process of its own; and its result."""
    program = """
import json, sys
import numpy as np
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.engines.onnxruntime_providers import list_execution_providers

def read():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

list_execution_providers()
before = read()
engine = OnnxruntimeEngine(sys.argv[1], num_threads=1, memory=sys.argv[2])
loaded = read()
result = engine.run({"rows": np.ones((1, 2048), np.float32)})["product_3"]
values = {"loaded": loaded - before, "ran": read() - before, "result": result[0, :8].tolist()}
print(json.dumps(values))
"""
    command = [sys.executable, "-c", program, str(path), memory]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values: dict[str, float] = json.loads(done.stdout)
    return values


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_low_memory_leaves_the_weights_in_their_file(heavy_path: Path) -> None:
    normal, low = (measure_memory(heavy_path, memory) for memory in ("normal", "low"))
    assert normal["loaded"] > WEIGHTS_BYTES / 2
    assert low["loaded"] < WEIGHTS_BYTES / 8
    # No more than two of the four converted weights, where they are stored in float16.
    assert low["ran"] < WEIGHTS_BYTES / 2 + WEIGHTS_BYTES / 8
    np.testing.assert_allclose(low["result"], normal["result"], rtol=1e-4, atol=1e-5)
