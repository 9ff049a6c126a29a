from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.graph_session import open_graph
from mutoscope.calibration.layer_timing import GroupTiming
from mutoscope.calibration.layers import find_layers
from mutoscope.calibration.quantized_graphs import LayerQuantization
from mutoscope.calibration.sensitivity import find_fewest, measure_sensitivity, order_for_float
from tests.calibration.small_graph import LAYERS, compute_values, make_feeds, save_small_graph
from tests.calibration.text_graphs import run_graph, save_text_graph

# All layers in int8 with their own ranges: 0.3 to 1.1 % each was measured.
INT8_ERROR = 0.03


@given(limit=st.integers(0, 40), threshold=st.integers(0, 50))
def test_the_fewest_that_suffice_are_found(limit: int, threshold: int) -> None:
    asked: list[int] = []

    def suffices(count: int) -> bool:
        asked.append(count)
        return count >= threshold

    expected = next((count for count in range(limit + 1) if count >= threshold), None)
    assert find_fewest(limit, suffices) == expected
    assert all(0 <= count <= limit for count in asked)
    # Each is a whole trajectory.
    assert len(asked) <= 2 + max(limit, 1).bit_length()
    assert len(set(asked)) >= len(asked) - 1


def make_group(name: str, saved: float) -> GroupTiming:
    return GroupTiming((name,), 1.0, 1.0 - saved)


def test_most_error_for_its_time_comes_first() -> None:
    groups = [make_group("slow", 0.5), make_group("fast", 0.125), make_group("bad", 0.5)]
    ranked = order_for_float(groups, [0.01, 0.01, 0.1])
    assert [group.layers[0] for group in ranked] == ["bad", "fast", "slow"]


def test_a_group_that_int8_makes_slower_comes_before_all_that_it_makes_faster() -> None:
    groups = [make_group("faster", 0.5), make_group("slower", -0.1)]
    assert order_for_float(groups, [0.1, 0.01])[0].layers == ("slower",)


def test_groups_of_equal_worth_stay_in_their_order() -> None:
    groups = [make_group(name, 0.5) for name in "abc"]
    assert order_for_float(groups, [0.1, 0.1, 0.1]) == groups


def choose(path: Path) -> dict[str, LayerQuantization]:
    """Return all layers with the ranges of the values that `make_feeds(0)` gives."""
    values = compute_values(save_small_graph(path.with_name("values.onnx")), make_feeds(0))
    found = {}
    for layer in find_layers(onnx_ir.load(path)):
        # The last layer takes the same numbers as a convolution returns.
        source = values["moved" if layer.input.name == "last" else str(layer.input.name)]
        output = None
        if layer.kind == "convolution":
            result = values[str(layer.output.name)]
            output = (float(result.min()), float(result.max()))
        found[layer.name] = LayerQuantization((float(source.min()), float(source.max())), output)
    return found


@pytest.mark.parametrize("bad", ["net.conv.weight", "net.k.weight", "net.out.weight"])
def test_the_layer_with_a_bad_range_is_found(bad: str, tmp_path: Path) -> None:
    path = save_small_graph(tmp_path / "model.onnx", outside=True)
    layers = choose(path)
    layers[bad] = replace(layers[bad], input=(-0.05, 0.05))
    groups = [make_group(name, 0.5) for name in LAYERS]
    calls: list[tuple[int, int]] = []
    errors = measure_sensitivity(
        path, groups, layers, [make_feeds(0), make_feeds(1)], lambda *done: calls.append(done)
    )
    by_name = dict(zip(LAYERS, errors, strict=True))
    assert max(by_name, key=lambda name: by_name[name]) == bad
    others = [error for name, error in by_name.items() if name != bad]
    assert min(others) > 0
    assert max(others) < INT8_ERROR < by_name[bad]
    assert calls == [(index + 1, len(LAYERS)) for index in range(len(LAYERS))]


def test_layers_of_a_group_become_int8_together(tmp_path: Path) -> None:
    path, feeds = save_small_graph(tmp_path / "model.onnx"), [make_feeds(0)]
    layers = choose(path)
    names = ("net.q.weight", "net.k.weight", "net.v.weight")
    groups = [GroupTiming(names[:1], 1, 1), GroupTiming(names, 1, 1)]
    one, all_three = measure_sensitivity(path, groups, layers, feeds)
    assert one < all_three


def test_a_graph_in_memory_finds_its_weights_in_their_file(tmp_path: Path) -> None:
    path, feeds = save_small_graph(tmp_path / "model.onnx", outside=True), make_feeds(0)
    assert (tmp_path / "model.onnx.data").exists()
    session = open_graph(onnx_ir.load(path), tmp_path, num_threads=1)
    np.testing.assert_array_equal(session.run(None, feeds)[0], run_graph(path, feeds)[0])


def test_a_graph_that_cannot_be_run_is_one_line(tmp_path: Path) -> None:
    text = "(float[n, 4] x) => (float[n, 4] y) { y = MatMul (x, W) }"
    path = save_text_graph(tmp_path / "model.onnx", text, {"W": np.eye(4, dtype=np.float32)})
    model = onnx_ir.load(path)
    for node in model.graph:
        node.op_type = "NoSuchOperator"
    with pytest.raises(CalibrationError, match=r"^the graph component cannot be run: .+") as error:
        open_graph(model, tmp_path)
    assert "\n" not in str(error.value)
    assert "NoSuchOperator" in str(error.value)
