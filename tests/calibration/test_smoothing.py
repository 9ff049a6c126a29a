from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest
from numpy.typing import NDArray

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.layers import Layer, find_layers
from mutoscope.calibration.quantized_graphs import (
    LayerQuantization,
    make_int8_graph_for_processors,
    make_int8_graph_for_tensorrt,
    save_graph,
)
from mutoscope.calibration.smoothing import find_smoothing, smooth_norms
from tests.calibration.text_graphs import run_graph, save_text_graph

# A division and a product in float32, and sums in another order.
ROUNDING = 1e-5
CHANNELS = 8

NETWORK = """(float[n, 8] x) => (float[n, 6] y, float[n, 5] z) {
    m = LayerNormalization (x, scale, shift)
    p = MatMul (m, first)
    y = Add (p, bias)
    z = MatMul (m, second)
}"""
# As a float16 graph has it: the norm in float32, what it returns converted once.
FLOAT16 = """(float[n, 8] x) => (float16[n, 6] y) {
    m = LayerNormalization (x, scale, shift)
    half = Cast <to = 10> (m)
    y = MatMul (half, first)
}"""


def make_weights() -> dict[str, NDArray]:
    random = np.random.default_rng(0)
    sizes = {"shift": (8,), "bias": (6,), "first": (8, 6), "second": (8, 5)}
    weights = {n: random.standard_normal(s, dtype=np.float32) for n, s in sizes.items()}
    weights["scale"] = np.full(CHANNELS, 0.5, np.float32)
    weights["scale"][3] = 100  # the outlier
    weights["shift"][3] *= 20
    return weights


def save_network(folder: Path, text: str = NETWORK) -> Path:
    weights = make_weights()
    if text == FLOAT16:
        weights["first"] = weights["first"].astype(np.float16)
    used = {name: array for name, array in weights.items() if name in text}
    return save_text_graph(folder / "model.onnx", text, used)


def make_feeds() -> dict[str, NDArray]:
    return {"x": np.random.default_rng(1).standard_normal((64, CHANNELS), dtype=np.float32)}


def compute_norm(folder: Path) -> NDArray:
    """Return what the layers take."""
    text = "(float[n, 8] x) => (float[n, 8] m) { m = LayerNormalization (x, scale, shift) }"
    weights = {name: make_weights()[name] for name in ("scale", "shift")}
    return run_graph(save_text_graph(folder / "norm.onnx", text, weights), make_feeds())[0]


def find_factors(path: Path, activations: NDArray) -> dict[str, NDArray]:
    largest = np.abs(activations).max(axis=0)
    return find_smoothing(find_layers(onnx_ir.load(path)), lambda _name: largest)


def scale_weights(model: onnx_ir.Model, smoothed: dict[str, tuple[Layer, NDArray]]) -> None:
    for name, (layer, factors) in smoothed.items():
        weight = layer.node.inputs[1]
        assert weight is not None
        weight.const_value = onnx_ir.tensor(layer.read_weight() * factors[:, None], name=name)


def test_a_smoothed_graph_computes_the_same(tmp_path: Path) -> None:
    path = save_network(tmp_path)
    factors = find_factors(path, compute_norm(tmp_path))
    assert set(factors) == {"first", "second"}
    np.testing.assert_array_equal(factors["first"], factors["second"])
    model = onnx_ir.load(path)
    smoothed = {layer.name: (layer, factors[layer.name]) for layer in find_layers(model)}
    smooth_norms(model, smoothed)
    scale_weights(model, smoothed)
    onnx_ir.save(model, tmp_path / "smoothed.onnx")
    results = [run_graph(tmp_path / n, make_feeds()) for n in ("model.onnx", "smoothed.onnx")]
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=ROUNDING * np.abs(expected).max())


def test_factors_are_those_of_the_paper(tmp_path: Path) -> None:
    activations, weights = compute_norm(tmp_path), make_weights()
    factors = find_factors(save_network(tmp_path), activations)["first"]
    both = np.concatenate([weights["first"], weights["second"]], axis=1)
    expected = np.sqrt(np.abs(activations).max(axis=0) / np.abs(both).max(axis=1))
    np.testing.assert_allclose(factors, expected, rtol=ROUNDING)


def test_what_a_channel_of_outliers_costs_is_less_with_smoothing(tmp_path: Path) -> None:
    path, activations, feeds = save_network(tmp_path), compute_norm(tmp_path), make_feeds()
    factors = find_factors(path, activations)
    errors = []
    for smoothing in (None, factors["first"]):
        seen = activations if smoothing is None else activations / smoothing
        how = LayerQuantization((float(seen.min()), float(seen.max())), smoothing=smoothing)
        model = make_int8_graph_for_processors(path, {"first": how, "second": how})
        save_graph(model, tmp_path / "int8.onnx")
        expected, found = (run_graph(tmp_path / n, feeds)[0] for n in ("model.onnx", "int8.onnx"))
        errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    assert errors[1] < 0.5 * errors[0]


def test_a_norm_of_a_float16_graph_is_smoothed_through_its_conversion(tmp_path: Path) -> None:
    path, activations = save_network(tmp_path, FLOAT16), compute_norm(tmp_path)
    factors = find_factors(path, activations)["first"]
    seen = activations / factors
    how = LayerQuantization((float(seen.min()), float(seen.max())), smoothing=factors)
    save_graph(make_int8_graph_for_tensorrt(path, {"first": how}), tmp_path / "int8.onnx")
    expected, found = (
        run_graph(tmp_path / name, make_feeds())[0].astype(np.float32)
        for name in ("model.onnx", "int8.onnx")
    )
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.05


def test_what_a_graph_for_processors_can_smooth_its_float16_graph_can(
    tiny_bundle: Path, float16_bundle: Path
) -> None:
    layers = find_layers(onnx_ir.load(tiny_bundle / "unet" / "model_cpu.onnx"))
    sizes = {layer.name: layer.read_weight().shape for layer in layers}
    factors = find_smoothing(layers, lambda name: np.ones(sizes[name][0], np.float32))
    # Not those of motion modules before attention: a position is added to what the norm returns.
    inputs = {layer.input for layer in layers if layer.name in factors}
    assert len(inputs) > 10
    wanted = {n: LayerQuantization((-4, 4), smoothing=each) for n, each in factors.items()}
    model = make_int8_graph_for_tensorrt(float16_bundle / "unet" / "model.onnx", wanted)
    smoothed = [name for name in model.graph.initializers if ".smoothed." in str(name)]
    assert len(smoothed) == 2 * len(inputs)  # scale and shift


USED = "(float[n, 8] x) => (float[n, 6] y) { m = LayerNormalization (x, scale, shift) "
OTHERS = {
    "another operator": USED + "p = MatMul (m, first) s = ReduceSum (m) y = Add (p, s) }",
    "an output": USED.replace("y)", "y, float[n, 8] m)") + "y = MatMul (m, first) }",
    "no norm": "(float[n, 8] x) => (float[n, 6] y) { m = Relu (x) y = MatMul (m, first) }",
    "a scale that is computed": "(float[n, 8] x, float[8] s) => (float[n, 6] y) "
    "{ t = Relu (s) m = LayerNormalization (x, t) y = MatMul (m, first) }",
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS.keys())
def test_a_norm_that_cannot_take_the_division_is_left_out_and_refused(
    text: str, tmp_path: Path
) -> None:
    path = save_network(tmp_path, text)
    assert find_factors(path, np.ones((2, CHANNELS), np.float32)) == {}
    how = LayerQuantization((-1, 1), smoothing=np.ones(CHANNELS, np.float32))
    with pytest.raises(CalibrationError, match=r"^first cannot be smoothed: .*without smoothing$"):
        make_int8_graph_for_processors(path, {"first": how})


def test_smoothing_one_of_two_layers_of_a_norm_is_refused(tmp_path: Path) -> None:
    path = save_network(tmp_path)
    how = LayerQuantization((-1, 1), smoothing=np.ones(CHANNELS, np.float32))
    with pytest.raises(CalibrationError, match="cannot be smoothed"):
        make_int8_graph_for_processors(path, {"first": how})
