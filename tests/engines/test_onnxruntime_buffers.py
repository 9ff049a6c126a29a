from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mutoscope.engines.engine import TensorSpec
from mutoscope.engines.onnxruntime_buffers import DeviceBuffers
from mutoscope.engines.onnxruntime_module import error_types

INPUTS = {
    "data": TensorSpec("data", "float16", ("N", 2)),
    "mask": TensorSpec("mask", "bool", ("N", 2)),
}
OUTPUTS = {
    "kept": TensorSpec("kept", "float16", ("N", 2)),
    "indices": TensorSpec("indices", "int64", (2, "indices_1")),
}

NAMES = list(OUTPUTS)


@pytest.fixture
def session(tmp_path: Path) -> onnxruntime.InferenceSession:
    """kept = data where mask is set, else 0; indices of what is set, as many as there are."""
    float16, boolean, int64 = TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.INT64
    nodes = [
        helper.make_node("Cast", ["mask"], ["factor"], to=float16),
        helper.make_node("Mul", ["data", "factor"], ["kept"]),
        helper.make_node("NonZero", ["mask"], ["indices"]),
    ]
    graph = helper.make_graph(
        nodes,
        "masked",
        [
            helper.make_tensor_value_info("data", float16, ["N", 2]),
            helper.make_tensor_value_info("mask", boolean, ["N", 2]),
        ],
        [
            helper.make_tensor_value_info("kept", float16, ["N", 2]),
            helper.make_tensor_value_info("indices", int64, [2, None]),
        ],
    )
    opset = [helper.make_opsetid("", 18)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def make_feeds(length: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    data = random.standard_normal((length, 2)).astype(np.float16)
    return {"data": data, "mask": random.random((length, 2)) < 0.5}


def make_buffers(session: onnxruntime.InferenceSession) -> DeviceBuffers:
    return DeviceBuffers(session, INPUTS, OUTPUTS, device="cpu")


def test_results_are_those_of_a_plain_run_for_every_shape_and_any_order(
    session: onnxruntime.InferenceSession,
) -> None:
    buffers = make_buffers(session)
    for seed, length in enumerate((3, 3, 5, 5, 3, 1)):
        feeds = make_feeds(length, seed)
        results = buffers.run(feeds, NAMES)
        assert list(results) == ["kept", "indices"]
        for result, expected in zip(results.values(), session.run(None, feeds), strict=True):
            assert result.dtype == expected.dtype
            np.testing.assert_array_equal(result, expected)


def test_results_are_new_arrays_while_the_memory_they_come_from_is_the_same(
    session: onnxruntime.InferenceSession,
) -> None:
    buffers = make_buffers(session)
    first = buffers.run(make_feeds(4, 0), NAMES)
    kept = first["kept"].copy()
    values = dict(buffers._values)
    addresses = {name: value.data_ptr() for name, value in values.items()}
    assert set(addresses) == {"data", "mask", "kept"}
    second = buffers.run(make_feeds(4, 1), NAMES)
    np.testing.assert_array_equal(first["kept"], kept)
    assert not np.array_equal(second["kept"], kept)
    assert all(buffers._values[name] is value for name, value in values.items())
    assert {name: value.data_ptr() for name, value in values.items()} == addresses
    assert buffers._binding.get_outputs()[0].data_ptr() == addresses["kept"]


def test_the_size_is_that_of_the_arrays_that_stay(session: onnxruntime.InferenceSession) -> None:
    buffers = make_buffers(session)
    assert buffers.size_bytes == 0
    for length in (4, 4, 10):
        buffers.run(make_feeds(length, 0), NAMES)
        # data and kept in float16, mask in bool.
        assert buffers.size_bytes == length * 2 * (2 + 2 + 1)
    buffers.free()
    assert buffers.size_bytes == 0


def test_an_input_of_which_the_memory_is_not_in_order_is_read_right(
    session: onnxruntime.InferenceSession,
) -> None:
    buffers = make_buffers(session)
    feeds = make_feeds(6, 0)
    expected = session.run(None, feeds)
    feeds["data"] = np.asfortranarray(feeds["data"])
    np.testing.assert_array_equal(buffers.run(feeds, NAMES)["kept"], expected[0])


def test_a_run_that_fails_leaves_the_buffers_of_use(session: onnxruntime.InferenceSession) -> None:
    buffers = make_buffers(session)
    feeds = make_feeds(3, 0)
    with pytest.raises(error_types()):
        buffers.run({**feeds, "mask": feeds["mask"][:2]}, NAMES)
    results = buffers.run(feeds, NAMES)
    np.testing.assert_array_equal(results["kept"], session.run(None, feeds)[0])
