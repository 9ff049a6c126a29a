"""What is cut out of a denoiser's graph: the same values, the same weights, nothing deep."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.reuse_graphs import DEEP_FEATURE, cut_reuse_graph

SHALLOW, DEEP = "unet.up_blocks.1.resnets.0.weight", "unet.mid_block.resnets.0.weight"
EARLIER = "unet.up_blocks.0.resnets.0.weight"
SIZE = 32
VALUE = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


def make_graph(
    path: Path, kind: int = TensorProto.FLOAT, *, output: str = "feature", leaks: bool = False
) -> Path:
    """A denoiser of one deep and one shallow layer, with its weights in a file of their own.

    `output` is the value that deep_feature is made of; with `leaks`, the shallow layer takes
    something from behind the deep one that is not in deep_feature.
    """

    def convert(name: str, result: str, to: int) -> onnx.NodeProto:
        if kind == TensorProto.FLOAT:
            return helper.make_node("Identity", [name], [result])
        return helper.make_node("Cast", [name], [result], to=to)

    nodes = [
        convert("text", "given_text", kind),
        convert("sample", "x", kind),
        helper.make_node("Add", ["x", "given_text"], ["shifted"]),
        helper.make_node("MatMul", ["shifted", DEEP], ["middle"]),
        helper.make_node("MatMul", ["middle", EARLIER], ["feature"]),
        convert(output, DEEP_FEATURE, TensorProto.FLOAT),
        helper.make_node("Add", ["feature", "middle" if leaks else "x"], ["joined"]),
        helper.make_node("MatMul", ["joined", SHALLOW], ["y"]),
        convert("y", "out_sample", TensorProto.FLOAT),
    ]
    random = np.random.default_rng(0)
    constants = {
        name: random.standard_normal((SIZE, SIZE)).astype(VALUE[kind]) / 8
        for name in (DEEP, EARLIER, SHALLOW)
    }
    graph = helper.make_graph(
        nodes,
        "unet",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", SIZE])
            for name in ("sample", "text")
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", SIZE])
            for name in ("out_sample", DEEP_FEATURE)
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(
        model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024
    )
    return path


@pytest.fixture(params=VALUE, ids=["float32", "float16"])
def source(request, tmp_path):
    return make_graph(tmp_path / "model.onnx", request.param)


def run(path, feeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    found = session.run(names, {name: feeds[name] for name in wanted})
    return dict(zip(names, found, strict=True))


def read_locations(path):
    """Where a graph finds its weights: file, offset and length, by name."""
    graph = onnx.load(path, load_external_data=False).graph
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in graph.initializer
    }


def test_the_shallow_part_returns_what_the_whole_does(source):
    target = source.with_name("model_reuse.onnx")
    cut = cut_reuse_graph(source, target)
    assert cut.inputs == ("sample", DEEP_FEATURE)  # the text is for the deep layer alone
    random = np.random.default_rng(1)
    feeds = {
        name: random.standard_normal((3, SIZE)).astype(np.float32) for name in ("sample", "text")
    }
    whole = run(source, feeds)
    found = run(target, {**feeds, DEEP_FEATURE: whole[DEEP_FEATURE]})
    assert list(found) == ["out_sample"]
    np.testing.assert_array_equal(found["out_sample"], whole["out_sample"])
    other = run(target, {**feeds, DEEP_FEATURE: whole[DEEP_FEATURE] + 1})
    assert np.abs(other["out_sample"] - whole["out_sample"]).max() > 0.1


def test_weights_are_read_where_they_are(source):
    target = source.with_name("model_reuse.onnx")
    before = {path: path.read_bytes() for path in source.parent.iterdir()}
    cut_reuse_graph(source, target)
    assert {path: path.read_bytes() for path in before} == before
    assert set(source.parent.iterdir()) == {*before, target}
    assert read_locations(target) == {SHALLOW: read_locations(source)[SHALLOW]}
    assert read_locations(source)[SHALLOW]["offset"] != "0"


def test_a_part_that_needs_deep_layers_is_refused(tmp_path):
    source = make_graph(tmp_path / "model.onnx", leaks=True)
    with pytest.raises(CalibrationError, match=rf"needs the deep layer {DEEP}: .*--reuse-layers 0"):
        cut_reuse_graph(source, tmp_path / "model_reuse.onnx")
    assert not (tmp_path / "model_reuse.onnx").exists()


def test_an_earlier_up_block_is_deep_too(tmp_path):
    # As features, what comes before that block; behind it there is more than the last one.
    source = make_graph(tmp_path / "model.onnx", output="middle")
    with pytest.raises(CalibrationError, match=f"needs the deep layer {EARLIER}"):
        cut_reuse_graph(source, tmp_path / "model_reuse.onnx")


def test_features_that_nothing_takes_are_refused(tmp_path):
    source = make_graph(tmp_path / "model.onnx", output="unused")
    model = onnx.load(source, load_external_data=False)
    model.graph.node.insert(0, helper.make_node("Neg", ["sample"], ["unused"]))
    source.write_bytes(model.SerializeToString())
    with pytest.raises(CalibrationError, match="and nothing in it takes that"):
        cut_reuse_graph(source, tmp_path / "model_reuse.onnx")


def test_a_graph_without_features_is_refused(tmp_path):
    source = make_graph(tmp_path / "model.onnx")
    model = onnx.load(source, load_external_data=False)
    del model.graph.output[1]
    source.write_bytes(model.SerializeToString())
    with pytest.raises(CalibrationError, match=r"does not return deep_feature: export .* again"):
        cut_reuse_graph(source, tmp_path / "model_reuse.onnx")
