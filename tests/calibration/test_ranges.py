from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import HistogramCollector, create_calibrator

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.observed_engine import ObservedEngine
from mutoscope.calibration.observed_graph import make_observed_graph
from mutoscope.calibration.observers import NUM_BINS, ComponentStatistics, ValueStatistics
from mutoscope.calibration.ranges import (
    _ENTROPY_BINS,
    _QUANTIZED_BINS,
    METHODS,
    PERCENTILE,
    ZERO_RANGE,
    _diverge,
    find_ranges,
)
from mutoscope.runtime.manifest import ComponentRecord
from tests.calibration.small_graph import INPUTS, OUTPUTS, make_feeds, save_small_graph

F64 = NDArray[np.float64]

NUM_VALUES = 20_000
# Float32 edges of bins in onnxruntime; sums in another order in a second session.
ROUNDING = 1e-5
# Of a thousand terms below 1.
FLOAT32_SUM = 1e-6
# The search compares middles of bins and moves in steps of 2.5 %.
SEARCH = 1.03
GRID = 48


def draw(name: str) -> F64:
    random = np.random.default_rng(7)
    normal = random.normal(size=NUM_VALUES)
    shapes = {
        "normal": normal,
        "uniform": random.uniform(-1.0, 3.0, NUM_VALUES),
        "positive": np.abs(normal),
        "gated": normal / (1.0 + np.exp(-normal)),
        "heavy tails": random.standard_t(2.5, NUM_VALUES),
        "one outlier": np.append(normal[1:], 60.0),
        "outliers below": np.append(normal[20:], np.full(20, -25.0)),
        "shifted": normal + 20.0,
    }
    return shapes[name]


SHAPES = [
    "normal",
    "uniform",
    "positive",
    "gated",
    "heavy tails",
    "one outlier",
    "outliers below",
    "shifted",
]


def gather(*arrays: F64) -> ValueStatistics:
    """The statistics of values, a histogram of each around 0 that is half as wide again."""
    radii = [1.5 * float(np.abs(array).max()) for array in arrays]
    counts = [
        np.histogram(array, NUM_BINS, (-(radius or 1.0), radius or 1.0))[0]
        for array, radius in zip(arrays, radii, strict=True)
    ]
    return ValueStatistics(
        np.array([array.min() for array in arrays]),
        np.array([array.max() for array in arrays]),
        np.array(radii),
        np.array(counts),
    )


def quantize(values: F64, low: float, high: float) -> F64:
    scale = (high - low) / 255
    zero_point = np.rint(-low / scale)
    return (np.clip(np.rint(values / scale) + zero_point, 0, 255) - zero_point) * scale


def make_collector(method: str) -> HistogramCollector:
    return HistogramCollector(method, False, NUM_BINS, _QUANTIZED_BINS, PERCENTILE, "same")


def make_histogram(statistics: ValueStatistics, bins: int) -> tuple[Any, ...]:
    """What onnxruntime keeps of one tensor."""
    radius = statistics.radius[0]
    counts = statistics.counts[0].reshape(bins, -1).sum(axis=1)
    edges = np.linspace(-radius, radius, bins + 1).astype(np.float32)
    ends = np.float32([statistics.minimum[0], statistics.maximum[0], radius])
    return counts, edges, *ends


def include_zero(low: float, high: float) -> list[float]:
    return [min(low, 0.0), max(high, 0.0)]


@pytest.mark.parametrize("shape", SHAPES)
def test_percentile_is_that_of_onnxruntime(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    statistics, collector = gather(draw(shape)), make_collector("percentile")
    collector.histogram_dict = {"x": make_histogram(statistics, NUM_BINS)}
    low, high = collector.compute_percentile()["x"][:2]
    capsys.readouterr()  # it prints
    found = find_ranges("percentile", statistics)[0]
    np.testing.assert_allclose(found, include_zero(low, high), rtol=ROUNDING)


@pytest.mark.parametrize("shape", SHAPES)
def test_entropy_is_that_of_onnxruntime(shape: str) -> None:
    statistics, collector = gather(draw(shape)), make_collector("entropy")
    histogram = make_histogram(statistics, _ENTROPY_BINS)
    low, high = collector.get_entropy_threshold(histogram, _QUANTIZED_BINS)
    found = find_ranges("entropy", statistics)[0]
    if not np.allclose(found, include_zero(low, high), rtol=ROUNDING):
        # It compares in float32; among ranges that are equally good there, any may come out.
        middle, width = _ENTROPY_BINS // 2, histogram[1][1] - histogram[1][0]
        bins = [round(end / width) - 1 for end in (high, found[1])]
        divergences = [_diverge(histogram[0][None], middle - n, middle + n + 1)[0] for n in bins]
        assert divergences[0] == pytest.approx(divergences[1], abs=FLOAT32_SUM)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: list[dict[str, NDArray[Any]]]) -> None:
        self._feeds: Iterator[dict[str, NDArray[Any]]] = iter(feeds)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)


def test_minmax_is_that_of_onnxruntime_on_the_same_inputs(tmp_path: Path) -> None:
    path, feeds = save_small_graph(tmp_path / "model.onnx"), [make_feeds(1), make_feeds(2)]
    calibrator = create_calibrator(
        path,
        ["Conv", "MatMul", "Gemm"],
        str(tmp_path / "augmented.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
    )
    calibrator.collect_data(Reader(feeds))
    expected = calibrator.compute_data()
    graph = make_observed_graph(path)
    statistics = ComponentStatistics(graph.points)
    engine = ObservedEngine(graph, statistics, ComponentRecord({}, "", {}, {}), 1)
    for given in feeds:
        engine.run(given)
    found = find_ranges("minmax", statistics.values)
    for point, ends in zip(graph.points, found, strict=True):
        name = INPUTS[point.inputs_of[0]] if point.inputs_of else OUTPUTS[point.outputs_of[0]]
        low, high = (float(end.item()) for end in expected[name].range_value)
        np.testing.assert_allclose(ends, include_zero(low, high), rtol=ROUNDING)


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_leaves_hardly_more_error_than_the_best_of_many_ranges(shape: str) -> None:
    values = draw(shape)
    low, high = find_ranges("mse", gather(values))[0]
    error = np.mean((quantize(values, low, high) - values) ** 2)
    lowest, highest = include_zero(values.min(), values.max())
    factors = np.arange(1, GRID + 1) / GRID
    sample = values[-2000:]  # the outliers are at the end
    candidates = [(lowest * a, highest * b) for a in factors for b in factors]
    errors = [np.mean((quantize(sample, *ends) - sample) ** 2) for ends in set(candidates)]
    best = list(set(candidates))[int(np.argmin(errors))]
    assert error <= SEARCH * np.mean((quantize(values, *best) - values) ** 2)


def test_mse_clips_what_is_rare() -> None:
    values = np.random.default_rng(7).normal(size=2_000_000)
    ranges = [find_ranges(method, gather(values))[0] for method in ("mse", "minmax")]
    clipped, exact = (np.mean((quantize(values, *ends) - values) ** 2) for ends in ranges)
    # Of a normal distribution, 8 bits are best spent on 4 of its 5 standard deviations.
    assert clipped < 0.8 * exact


def test_percentile_keeps_that_part_of_the_values() -> None:
    values = draw("normal")
    low, high = find_ranges("percentile", gather(values))[0]
    inside = np.mean((values >= low) & (values <= high))
    # One bin at either end.
    assert PERCENTILE / 100 - 1e-3 < inside < 1.0


@pytest.mark.parametrize("method", METHODS)
def test_all_ranges_hold_zero_and_have_a_width(method: str) -> None:
    arrays = [np.full(100, value) for value in (0.0, 5.0, -5.0, 1e-30)]
    arrays += [draw(shape) for shape in SHAPES]
    found = find_ranges(method, gather(*arrays))
    assert (found[:, 0] <= 0.0).all()
    assert (found[:, 1] >= 0.0).all()
    assert (found[:, 0] < found[:, 1]).all()
    assert tuple(found[0]) == ZERO_RANGE


@pytest.mark.parametrize("method", METHODS)
def test_no_range_is_wider_than_what_was_seen(method: str) -> None:
    statistics = gather(*(draw(shape) for shape in SHAPES))
    found, exact = find_ranges(method, statistics), find_ranges("minmax", statistics)
    assert (found[:, 0] >= exact[:, 0]).all()
    assert (found[:, 1] <= exact[:, 1]).all()


@pytest.mark.parametrize("method", METHODS)
def test_points_do_not_change_each_other(method: str) -> None:
    arrays = [draw(shape) for shape in SHAPES[:3]]
    together = find_ranges(method, gather(*arrays))
    alone = [find_ranges(method, gather(array))[0] for array in arrays]
    np.testing.assert_array_equal(together, alone)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(
        CalibrationError, match=r"method 'max' is unknown: use minmax, percentile, "
    ):
        find_ranges("max", gather(draw("normal")))
