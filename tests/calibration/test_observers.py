from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.observed_graph import (
    MAXIMUM,
    MEAN,
    MINIMUM,
    NUM_SAMPLES,
    SAMPLES,
    SIZES,
    ObservedPoint,
)
from mutoscope.calibration.observers import NUM_BINS, ComponentStatistics

F32 = NDArray[np.float32]

POINTS = (
    ObservedPoint(("net.conv.weight",), (), 3, 0),
    ObservedPoint((), ("net.conv.weight",), 2, 3),
    ObservedPoint(("net.q.weight", "net.k.weight"), (), 4, 5),
)
# Means are of float32 means.
ROUNDING = 1e-6


def make_values(seed: int, scale: float = 1.0, rows: int = 600) -> list[F32]:
    """A value for each point, its channels last."""
    random = np.random.default_rng(seed)
    shapes = [(rows, point.num_channels) for point in POINTS]
    return [(scale * random.normal(size=shape)).astype(np.float32) for shape in shapes]


def measure(values: list[F32]) -> dict[str, NDArray[np.generic]]:
    """What an observed graph returns for these values."""
    samples = [value.ravel()[np.arange(NUM_SAMPLES) % value.size] for value in values]
    return {
        MINIMUM: np.concatenate([value.min(axis=0) for value in values]),
        MAXIMUM: np.concatenate([value.max(axis=0) for value in values]),
        MEAN: np.concatenate([value.mean(axis=0) for value in values]),
        SAMPLES: np.concatenate(samples),
        SIZES: np.array([value.size for value in values]),
    }


def collect(runs: list[list[F32]], steps: list[float] | None = None) -> ComponentStatistics:
    statistics = ComponentStatistics(POINTS)
    for index, values in enumerate(runs):
        statistics.update(steps[index] if steps else 0.0, measure(values))
    return statistics


def check_equal(first: ComponentStatistics, second: ComponentStatistics) -> None:
    assert first.points == second.points
    assert first.num_runs == second.num_runs
    np.testing.assert_array_equal(first.values_seen, second.values_seen)
    for name in ("minimum", "maximum", "radius", "counts"):
        np.testing.assert_array_equal(getattr(first.values, name), getattr(second.values, name))
    for mine, other in zip(first.steps, second.steps, strict=True):
        np.testing.assert_array_equal(mine, other)
    for layer in ("net.conv.weight", "net.k.weight"):
        np.testing.assert_array_equal(
            first.input_channel_maximum(layer), second.input_channel_maximum(layer)
        )


def test_ranges_are_exact_over_all_runs() -> None:
    runs = [make_values(1), make_values(2, scale=3.0, rows=50), make_values(3, scale=0.5)]
    found = collect(runs).values
    for index in range(len(POINTS)):
        whole = np.concatenate([values[index].ravel() for values in runs])
        assert found.minimum[index] == whole.min()
        assert found.maximum[index] == whole.max()


def test_maxima_of_channels_are_those_of_all_runs() -> None:
    runs = [make_values(1), make_values(2, scale=3.0, rows=50), make_values(3, scale=0.5, rows=7)]
    statistics = collect(runs)
    for layer, index in (("net.conv.weight", 0), ("net.q.weight", 2), ("net.k.weight", 2)):
        whole = np.concatenate([values[index] for values in runs])
        np.testing.assert_array_equal(
            statistics.input_channel_maximum(layer), np.abs(whole).max(axis=0)
        )


def test_a_scaled_range_is_that_of_the_scaled_channels() -> None:
    runs, factors = [make_values(1), make_values(2, 3.0)], np.float32([0.5, 20.0, 1.0, 0.1])
    found = collect(runs).find_scaled_range("net.k.weight", factors)
    scaled = np.concatenate([values[2] for values in runs]) * factors
    assert found == pytest.approx((scaled.min(), scaled.max()), rel=ROUNDING)


def test_values_seen_counts_all_values_and_not_the_samples() -> None:
    statistics = collect([make_values(1, rows=9000), make_values(2, rows=10)])
    assert statistics.values_seen.tolist() == [9010 * point.num_channels for point in POINTS]


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1.2), (1.0, 50.0), (50.0, 1.0), (1e-20, 1e20)])
def test_a_histogram_is_that_of_all_samples_however_its_range_grew(
    scales: tuple[float, ...],
) -> None:
    runs = [make_values(seed, scale) for seed, scale in enumerate(scales)]
    found = collect(runs).values
    samples = np.stack([measure(values)[SAMPLES].reshape(-1, NUM_SAMPLES) for values in runs])
    for index in range(len(POINTS)):
        radius = found.radius[index]
        expected, _ = np.histogram(samples[:, index], NUM_BINS, (-radius, radius))
        np.testing.assert_array_equal(found.counts[index], expected)
        assert np.abs(samples[:, index]).max() < radius


def test_ranges_are_kept_for_each_step() -> None:
    runs = [make_values(seed, scale) for seed, scale in enumerate((1.0, 2.0, 3.0))]
    steps, minimum, maximum = collect(runs, [10.0, 990.0, 10.0]).steps
    assert steps.tolist() == [990.0, 10.0]
    for index in range(len(POINTS)):
        late = np.concatenate([runs[0][index], runs[2][index]])
        assert minimum[:, index].tolist() == [runs[1][index].min(), late.min()]
        assert maximum[:, index].tolist() == [runs[1][index].max(), late.max()]


def test_what_is_always_zero_can_be_other_than_zero_later() -> None:
    zeros = [np.zeros_like(value) for value in make_values(1)]
    statistics = collect([zeros])
    assert statistics.values.radius.tolist() == [0.0] * len(POINTS)
    later = make_values(2)
    statistics.update(0.0, measure(later))
    found = statistics.values
    assert (found.counts.sum(axis=1) == 2 * NUM_SAMPLES).all()
    assert (found.counts[:, NUM_BINS // 2] >= NUM_SAMPLES).all()
    assert found.maximum[0] == later[0].max()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_the_layer_and_the_step(wrong: float) -> None:
    statistics, good = collect([make_values(1)]), collect([make_values(1)])
    values = make_values(2)
    values[2][5, 3] = wrong
    with pytest.raises(
        CalibrationError, match=r"the input of net.q.weight and 1 more .*step 981: "
    ):
        statistics.update(981.0, measure(values))
    check_equal(statistics, good)


def test_an_output_that_is_not_finite_is_named_so() -> None:
    values = make_values(2)
    values[1][0, 0] = np.nan
    with pytest.raises(CalibrationError, match=r"^the output of net.conv.weight has values that"):
        collect([values])


def test_a_collection_goes_on_from_a_file_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    runs, steps = [make_values(seed, 1.0 + seed) for seed in range(4)], [3.0, 2.0, 3.0, 1.0]
    collect(runs[:2], steps).save(tmp_path / "unet.npz")
    resumed = ComponentStatistics.load(tmp_path / "unet.npz")
    for values, step in zip(runs[2:], steps[2:], strict=True):
        resumed.update(step, measure(values))
    check_equal(resumed, collect(runs, steps))
    assert [path.name for path in tmp_path.iterdir()] == ["unet.npz"]


def remove(path: Path) -> None:
    path.unlink()


def damage_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def damage_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    path.write_bytes(data)


def damage_all(path: Path) -> None:
    path.write_bytes(b"nothing")


def damage_kind(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, other=np.zeros(3))


def damage_shape(path: Path) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    with path.open("wb") as file:
        np.savez(file, **{**arrays, "minimum": np.zeros(4)})


@pytest.mark.parametrize(
    "damage",
    [remove, damage_end, damage_middle, damage_all, damage_kind, damage_shape],
)
def test_a_damaged_file_is_refused_in_one_line(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    collect([make_values(1)]).save(tmp_path / "unet.npz")
    damage(tmp_path / "unet.npz")
    with pytest.raises(CalibrationError, match=r"not what .*: calibrate again") as caught:
        ComponentStatistics.load(tmp_path / "unet.npz")
    assert "\n" not in str(caught.value)


def test_nothing_is_known_before_the_first_run() -> None:
    with pytest.raises(CalibrationError, match="nothing was collected yet"):
        _ = ComponentStatistics(POINTS).values
    with pytest.raises(CalibrationError, match="nothing was collected yet"):
        ComponentStatistics(POINTS).input_channel_maximum("net.q.weight")


def test_a_layer_that_was_not_observed_is_named() -> None:
    with pytest.raises(CalibrationError, match=r"layer net.v.weight was not observed: calibrate"):
        collect([make_values(1)]).input_channel_maximum("net.v.weight")


def test_memory_does_not_grow_with_the_runs() -> None:
    outputs = [measure(make_values(seed, 1.0 + seed)) for seed in range(3)]
    statistics = ComponentStatistics(POINTS)
    held = []
    tracemalloc.start()
    try:
        for count in (6, 60):
            for index in range(count):
                statistics.update(float(index % 3), outputs[index % 3])
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # Python keeps a few small objects; one more run's samples would be 48 KiB.
    assert held[1] - held[0] < 2**13
