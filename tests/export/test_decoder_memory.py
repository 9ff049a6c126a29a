from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mutoscope.export.decoder_memory import ARENA_FACTOR, measure_decoder
from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH

SCALE = 2
FRAMES = ["B", "F", "H", "W", 3]
LATENTS = ["B", 3, "F", "h", "w"]


def save_decoder(path: Path, nodes: list[onnx.NodeProto], inner: str) -> Path:
    """A decoder that computes `inner` [B, 3, F, h, w] from latents, then enlarges it."""
    tail = [
        helper.make_node("Transpose", [inner], ["last"], perm=[0, 2, 3, 4, 1]),
        helper.make_node("Resize", ["last", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Cast", ["large"], ["frames"], to=TensorProto.UINT8),
    ]
    constants = {
        "scales": np.array([1, 1, SCALE, SCALE, 1], np.float32),
        "frame_axis": np.array([2], np.int64),
        "rows": np.array([0, 3, -1], np.int64),
        "columns": np.array([0, -1, 3], np.int64),
        "pads": np.array([0, 0, 0, 1, 1, 0, 0, 0, 1, 1], np.int64),
        "first_axis": np.array([0], np.int64),
        "weight": np.ones(300, np.float16),
    }
    graph = helper.make_graph(
        [*nodes, *tail],
        "decoder",
        [helper.make_tensor_value_info("latents", TensorProto.FLOAT, LATENTS)],
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, FRAMES)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
    return path


def test_the_linear_part_is_what_is_alive_at_once(tmp_path: Path) -> None:
    nodes = [helper.make_node("Exp", ["latents"], ["inner"])]
    record = measure_decoder(save_decoder(tmp_path / "model.onnx", nodes, "inner"))
    # At the end: the enlarged frame in float32 and in uint8, 3 channels each.
    assert record.bytes_per_pixel == pytest.approx((12 + 3) * ARENA_FACTOR, abs=1)
    assert record.bytes_per_latent_pair == 0
    assert record.independent_frames


def test_attention_is_the_quadratic_part(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["latents", "rows"], ["queries"]),
        helper.make_node("Transpose", ["queries"], ["keys"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["keys", "queries"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"]),
        helper.make_node("MatMul", ["queries", "weights"], ["attended"]),
        helper.make_node("Shape", ["latents"], ["shape"]),
        helper.make_node("Reshape", ["attended", "shape"], ["inner"]),
    ]
    record = measure_decoder(save_decoder(tmp_path / "model.onnx", nodes, "inner"))
    # Scores and their softmax, float32.
    assert record.bytes_per_latent_pair == pytest.approx(8 * ARENA_FACTOR, abs=1)


def test_frames_that_look_at_each_other_are_not_independent(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["latents", "frame_axis"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["latents", "mean"], ["apart"]),
        helper.make_node("Exp", ["apart"], ["inner"]),
    ]
    path = save_decoder(tmp_path / "model.onnx", nodes, "inner")
    assert not measure_decoder(path).independent_frames


def test_a_value_with_a_border_counts_as_linear(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Pad", ["latents", "pads"], ["padded"]),
        helper.make_node("AveragePool", ["frames_first"], ["pooled"], kernel_shape=[3, 3]),
        helper.make_node("Transpose", ["pooled"], ["inner"], perm=[1, 0, 2, 3]),
    ]
    nodes.insert(1, helper.make_node("Squeeze", ["padded", "first_axis"], ["squeezed"]))
    nodes.insert(
        2, helper.make_node("Transpose", ["squeezed"], ["frames_first"], perm=[1, 0, 2, 3])
    )
    nodes[-1] = helper.make_node("Transpose", ["pooled"], ["clip"], perm=[1, 0, 2, 3])
    nodes.append(helper.make_node("Unsqueeze", ["clip", "first_axis"], ["inner"]))
    record = measure_decoder(save_decoder(tmp_path / "model.onnx", nodes, "inner"))
    assert record.bytes_per_latent_pair == 0
    assert record.bytes_per_pixel == pytest.approx((12 + 3) * ARENA_FACTOR, abs=1)


def test_the_shipped_decoder_is_measured_from_its_stored_weights() -> None:
    path = DEFAULT_BUNDLE_PATH / "vae_decoder" / "model.onnx"
    record = measure_decoder(path)
    assert record == measure_decoder(path)
    assert record.independent_frames
    # Its weights lie in float16, and the graph computes in float32.
    stored = (path.parent / "model.onnx.data").stat().st_size
    assert 1.9 < record.weights_bytes / stored < 2.1
