from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from mutoscope.calibration import layer_timing
from mutoscope.calibration.layer_timing import GroupTiming, group_layers, measure_groups
from mutoscope.calibration.layers import find_layers
from mutoscope.engines.options import EngineOptions
from tests.calibration.small_graph import LAYERS, make_feeds, save_small_graph
from tests.calibration.text_graphs import save_text_graph

ONE_THREAD = EngineOptions(num_threads=1)
# Layers that take one value are one group.
GROUPS = [("conv",), ("time",), ("q", "k", "v"), ("temporal",), ("out",)]


@pytest.fixture(scope="module")
def timings(tmp_path_factory: pytest.TempPathFactory) -> list[GroupTiming]:
    path = save_small_graph(tmp_path_factory.mktemp("net") / "model.onnx", outside=True)
    return measure_groups(path, set(LAYERS), make_feeds(0), ONE_THREAD)


def test_layers_that_take_one_value_are_measured_together(timings: list[GroupTiming]) -> None:
    expected = [tuple(f"net.{part}.weight" for part in group) for group in GROUPS]
    assert [timing.layers for timing in timings] == expected


def test_both_times_are_times(timings: list[GroupTiming]) -> None:
    for timing in timings:
        assert timing.seconds_float > 0
        assert timing.seconds_int8 > 0
        assert timing.seconds_saved == timing.seconds_float - timing.seconds_int8


def test_layers_that_may_not_become_int8_are_not_measured(tmp_path: Path) -> None:
    path = save_small_graph(tmp_path / "model.onnx")
    (timing,) = measure_groups(path, {"net.k.weight"}, make_feeds(0), ONE_THREAD)
    assert timing.layers == ("net.k.weight",)


def test_each_group_runs_with_the_shape_that_it_has_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def record(group: list, shape: tuple[int, ...], *_: object, **__: object) -> tuple:
        seen[group[0].input.name] = shape
        return 1.0, 2.0

    monkeypatch.setattr(layer_timing, "_measure_group", record)
    path = save_small_graph(tmp_path / "model.onnx")
    measure_groups(path, set(LAYERS), make_feeds(0, size=6), ONE_THREAD)
    assert seen == {
        "scaled": (2, 4, 6, 7), "time": (1, 1), "rows": (2, 6, 7, 6), "clip": (2, 5, 1, 6, 7),
        "last": (2, 7, 1, 6, 7),
    }  # fmt: skip


def test_equal_groups_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    square = np.eye(4, dtype=np.float32)
    text = """(float[n, 4] x) => (float[n, 4] y) {
        a = MatMul (x, first)  b = MatMul (a, second)  c = MatMul (b, third)  y = Relu (c)
    }"""
    path = save_text_graph(
        tmp_path / "model.onnx", text, {"first": square, "second": 2 * square, "third": 3 * square}
    )
    runs = []
    monkeypatch.setattr(
        layer_timing, "_measure_group", lambda *_, **__: runs.append(1) or (2.0, 1.0)
    )
    feeds = {"x": np.ones((3, 4), np.float32)}
    timings = measure_groups(path, {"first", "second", "third"}, feeds, ONE_THREAD)
    assert len(runs) == 1
    assert [timing.layers for timing in timings] == [("first",), ("second",), ("third",)]


def test_the_input_of_the_graph_can_be_that_of_a_layer(tmp_path: Path) -> None:
    text = "(float[n, 4] x) => (float[n, 4] y) { a = MatMul (x, first) y = Relu (a) }"
    path = save_text_graph(tmp_path / "model.onnx", text, {"first": np.eye(4, dtype=np.float32)})
    feeds = {"x": np.ones((3, 4), np.float32)}
    (timing,) = measure_groups(path, {"first"}, feeds, ONE_THREAD)
    assert timing.seconds_float > 0


def test_groups_are_in_the_order_in_which_they_run(tmp_path: Path) -> None:
    layers = find_layers(onnx_ir.load(save_small_graph(tmp_path / "model.onnx")))
    names = [[layer.name.split(".")[1] for layer in group] for group in group_layers(layers)]
    assert names == [list(group) for group in GROUPS]
