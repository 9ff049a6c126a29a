from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from mutoscope.calibration.layers import find_layers, find_weight_dtype
from mutoscope.export.cpu_graphs.rewriting import make_cpu_graph
from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH
from tests.calibration.small_graph import LAYERS, save_small_graph
from tests.calibration.text_graphs import save_text_graph

BUNDLES = ("tiny_bundle", "sdxl_bundle", "modelscope_bundle", "i2vgen_bundle", "svd_bundle")


def find_names(path: Path) -> list[str]:
    return [layer.name for layer in find_layers(onnx_ir.load(path))]


@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
@pytest.mark.parametrize("fixture", BUNDLES)
def test_the_graph_for_processors_has_the_layers_of_the_plain_one(
    fixture: str, component: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(fixture) / component
    plain = find_names(folder / "model.onnx")
    assert len(plain) == len(set(plain)) > 10
    assert set(find_names(folder / "model_cpu.onnx")) == set(plain)
    assert all(".weight" in name for name in plain)


@pytest.mark.parametrize("fixture", BUNDLES)
def test_a_layer_has_the_same_weight_and_bias_in_both_graphs(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(fixture) / "unet"
    plain, rewritten = (
        {layer.name: layer for layer in find_layers(onnx_ir.load(folder / name))}
        for name in ("model.onnx", "model_cpu.onnx")
    )
    for name, layer in plain.items():
        weights = [each.read_weight() for each in (layer, rewritten[name])]
        assert weights[0].shape[:2] == weights[1].shape[:2]  # over frames: in another shape
        np.testing.assert_array_equal(*(weight.ravel() for weight in weights))
        biases = [each.read_bias() for each in (layer, rewritten[name])]
        assert (biases[0] is None) == (biases[1] is None)
        if biases[0] is not None and biases[1] is not None:
            np.testing.assert_array_equal(*biases)


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
def test_the_float16_graph_has_the_layers_of_the_float32_one(
    component: str, tiny_bundle: Path, float16_bundle: Path
) -> None:
    paths = [bundle / component / "model.onnx" for bundle in (tiny_bundle, float16_bundle)]
    assert find_names(paths[1]) == find_names(paths[0])
    for layer in find_layers(onnx_ir.load(paths[1])):
        assert find_weight_dtype(layer) == np.float16


@pytest.mark.parametrize("graph", ["model.onnx", "model_cpu.onnx"])
def test_a_weight_that_is_stored_in_float16_has_the_name_of_its_parameter(graph: str) -> None:
    layers = find_layers(onnx_ir.load(DEFAULT_BUNDLE_PATH / "unet" / graph))
    assert "unet.conv_in.weight" in {layer.name for layer in layers}
    assert not [layer.name for layer in layers if "float16" in layer.name]


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_every_kind_of_layer_is_found_however_its_weight_is_stored(
    stored: str, tmp_path: Path
) -> None:
    path = save_small_graph(tmp_path / "model.onnx", stored, outside=True)  # type: ignore[arg-type]
    model = onnx_ir.load(path)
    layers = find_layers(model)
    assert [layer.name for layer in layers] == LAYERS
    kinds = {layer.name: layer.kind for layer in layers}
    assert [name for name, kind in kinds.items() if kind == "convolution"] == [
        "net.conv.weight", "net.temporal.weight",
    ]  # fmt: skip
    for layer in layers:
        stored_array = model.graph.initializers[layer.name].const_value
        assert stored_array is not None
        weight = layer.read_weight()
        expected = stored_array.numpy().astype(np.float32)
        np.testing.assert_array_equal(weight, expected.T if layer.is_transposed else expected)
        assert find_weight_dtype(layer) == weight.dtype == np.float32
    with_bias = {layer.name for layer in layers if layer.read_bias() is not None}
    assert with_bias == {"net.conv.weight", "net.time.weight", "net.k.weight"}
    assert [layer.name for layer in layers if layer.is_transposed] == ["net.time.weight"]
    assert [layer.name for layer in layers if layer.add is not None] == ["net.k.weight"]


def test_the_output_of_a_layer_has_its_bias(tmp_path: Path) -> None:
    model = onnx_ir.load(save_small_graph(tmp_path / "model.onnx"))
    outputs = {layer.name: layer.output.name for layer in find_layers(model)}
    assert outputs["net.k.weight"] == "k_biased"
    assert outputs["net.q.weight"] == "q"


def test_layers_of_one_weight_have_the_same_names_in_both_graphs(
    modelscope_bundle: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(modelscope_bundle / "unet", tmp_path / "unet")
    model = onnx_ir.load(folder / "model.onnx")
    first: dict[tuple[int, ...], onnx_ir.Value | None] = {}
    for layer in find_layers(model):
        # As with the last convolutions over frames of a fresh model, which are all zeros.
        if ".temp_convs." in layer.name:
            weight = layer.node.inputs[1]
            shared = first.setdefault(layer.read_weight().shape, weight)
            layer.node.replace_input_with(1, shared)
    onnx_ir.save(model, folder / "model.onnx")
    make_cpu_graph(folder / "model.onnx", folder / "model_cpu.onnx")
    plain, rewritten = (
        {layer.name: layer.read_bias() for layer in find_layers(onnx_ir.load(folder / name))}
        for name in ("model.onnx", "model_cpu.onnx")
    )
    assert len([name for name in plain if "#" in name]) > 20
    assert plain.keys() == rewritten.keys()
    for name, bias in plain.items():  # which tells layers of one weight apart
        np.testing.assert_array_equal(bias, rewritten[name])


SHARED = """(float[n, 2] x) => (float[n, 2] y) {
    a = MatMul (x, W)
    b = Relu (a)
    c = MatMul (b, V)
    d = Relu (c)
    y = MatMul (d, W)
}"""


def test_layers_of_one_weight_have_names_of_their_own(tmp_path: Path) -> None:
    weights = {"W": np.eye(2, dtype=np.float32), "V": np.ones((2, 2), np.float32)}
    assert find_names(save_text_graph(tmp_path / "a.onnx", SHARED, weights)) == ["W", "V", "W#2"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "(float[2, 2] x) => (float[2, 2] y) { y = MatMul (x, x) }",
            "two values that are computed",
        ),
        ("(float[2, 2] x) => (float[2, 2] y) { y = MatMul (W, x) }", "the weight is on the left"),
        ("(float[2, 2] x) => (float[3, 2, 2] y) { y = MatMul (x, S) }", "a weight of three axes"),
        ("(float[2, 2] x) => (float[2] y) { y = MatMul (x, B) }", "a weight of one axis"),
        (
            "(float[2, 2] x) => (float[2, 2] y) { y = Gemm <alpha = 2.0> (x, W, B) }",
            "a product that is scaled",
        ),
        (
            "(float[2, 2] x) => (float[2, 2] y) { y = Gemm <beta = 2.0> (x, W, B) }",
            "a bias that is scaled",
        ),
        (
            "(float[2, 2] x) => (float[2, 2] y) { y = Gemm <transA = 1> (x, W, B) }",
            "an input that is transposed",
        ),
        ("(float[2, 2] x) => (float[2, 2] y) { y = Gemm (x, W, x) }", "a bias that is computed"),
        ("(float[2, 2] x) => (float[2, 2] y) { y = Gemm (x, W, W) }", "a bias of two axes"),
    ],
    ids=lambda text: text if "=>" not in text else "",
)
def test_what_int8_has_no_form_for_is_no_layer(text: str, reason: str, tmp_path: Path) -> None:
    weights = {
        "W": np.eye(2, dtype=np.float32),
        "B": np.ones(2, np.float32),
        "S": np.ones((3, 2, 2), np.float32),
    }
    assert find_names(save_text_graph(tmp_path / "model.onnx", text, weights)) == [], reason


@pytest.mark.parametrize(
    "text",
    [
        "(float[2, 2] x) => (float[2, 2] y) { p = MatMul (x, W) y = Add (p, x) }",
        "(float[2, 2] x) => (float[2, 2] y) { p = MatMul (x, W) y = Add (p, p) }",
        "(float[2, 2] x) => (float[2, 2] y) { p = MatMul (x, W) s = Add (p, B) y = Mul (s, p) }",
        "(float[2, 2] x) => (float[2, 2] y) { p = MatMul (x, W) y = Add (p, W) }",
        "(float[2, 2] x) => (float[2, 2] y) { p = MatMul (x, W) y = Add (p, O) }",
        "(float[2, 2] x) => (float[2, 2] p, float[2, 2] y) { p = MatMul (x, W) y = Add (p, B) }",
    ],
    ids=["residual", "twice", "product-used", "two-axes", "one-number", "product-is-output"],
)
def test_only_a_sum_with_one_number_for_each_channel_is_a_bias(text: str, tmp_path: Path) -> None:
    weights = {
        "W": np.eye(2, dtype=np.float32),
        "B": np.ones(2, np.float32),
        "O": np.ones(1, np.float32),
    }
    path = save_text_graph(tmp_path / "model.onnx", text, weights)
    (layer,) = find_layers(onnx_ir.load(path))
    assert layer.add is None
    assert layer.read_bias() is None
