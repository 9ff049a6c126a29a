"""What the layers of a component saw, collected run by run in memory that does not grow.

Ranges are exact, over every value of every run. A histogram holds samples; where a value
lies outside of it, its range doubles and its bins are merged in pairs, so that no second pass over
the data is needed.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
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
from mutoscope.runtime.errors import BundleError
from mutoscope.runtime.json_records import read_record, write_record
from mutoscope.runtime.outputs import new_file

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# A range that doubled just now fills a half of the bins, and one side of it a quarter: 1024 bins
# for the 256 levels of INT8.
NUM_BINS: Final = 4096
# The first range of a histogram, over the largest value of the first run: ranges of later runs are
# seldom larger than that, and need no merging then.
_FIRST_RADIUS: Final = 1.5
# What reading a damaged archive raises.
_ZIP_ERRORS: Final = (zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class ValueStatistics:
    """What is known of the values of P points.

    Attributes:
        minimum: The smallest value of each, float64 [P].
        maximum: The largest value of each, float64 [P].
        radius: The histograms reach from -radius to radius, float64 [P]; 0 where all values are 0.
        counts: How many samples fell into each bin, int64 [P, NUM_BINS].
    """

    minimum: F64
    maximum: F64
    radius: F64
    counts: I64


class ComponentStatistics:
    """The statistics of a component's layers.

    Attributes:
        points: What is observed, in the order of the arrays.
        num_runs: How many runs of the component went in.
        values_seen: How many values of each point, int64 [P]: all of them, not only the samples.
    """

    def __init__(self, points: Sequence[ObservedPoint]) -> None:
        """Begin with nothing collected of these points."""
        self.points = tuple(points)
        self.num_runs = 0
        self.values_seen: I64 = np.zeros(len(self.points), dtype=np.int64)
        num_channels = sum(point.num_channels for point in self.points)
        self._minimum: F64 = np.full(num_channels, np.inf)
        self._maximum: F64 = np.full(num_channels, -np.inf)
        self._radius: F64 = np.zeros(len(self.points))
        self._counts: I64 = np.zeros((len(self.points), NUM_BINS), dtype=np.int64)
        # By step: the minima and the maxima of the points, float64 [2, P].
        self._steps: dict[float, F64] = {}
        self._firsts = np.array([point.first_channel for point in self.points], dtype=np.int64)
        self._lengths = np.array([point.num_channels for point in self.points], dtype=np.int64)
        self._by_input = {name: point for point in self.points for name in point.inputs_of}

    @property
    def values(self) -> ValueStatistics:
        """Ranges and histograms over all runs; raises `CalibrationError` if there were none."""
        self._check_not_empty()
        minimum, maximum = self._reduce(self._minimum, self._maximum)
        return ValueStatistics(minimum, maximum, self._radius, self._counts)

    @property
    def steps(self) -> tuple[F64, F64, F64]:
        """The steps, float64 [N], largest first, and the minima and maxima then, float64 [N, P]."""
        self._check_not_empty()
        steps = sorted(self._steps, reverse=True)
        ranges = np.stack([self._steps[step] for step in steps])
        return np.array(steps), ranges[:, 0], ranges[:, 1]

    def input_channel_maximum(self, layer: str) -> F32:
        """Return the largest magnitude of each channel of a layer's input, float32 [C]."""
        part = self._find_channels(layer)
        largest = np.maximum(np.abs(self._minimum[part]), np.abs(self._maximum[part]))
        return largest.astype(np.float32)

    def find_scaled_range(self, layer: str, factors: F32) -> tuple[float, float]:
        """Return the range of a layer's input once its channels are multiplied by factors > 0.

        Args:
            layer: The layer's name.
            factors: One for each channel, float32 [C].
        """
        part = self._find_channels(layer)
        low = min(0.0, float((self._minimum[part] * factors).min()))
        return low, max(0.0, float((self._maximum[part] * factors).max()))

    def update(self, step: float, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Add what one run of the observed graph returned.

        Args:
            step: The timestep of the run; 0 for a component that has none.
            outputs: The outputs named by `STATISTICS`.

        Raises:
            CalibrationError: A value was NaN or infinite; nothing was added.
        """
        minimum, maximum, mean = (
            outputs[name].astype(np.float64) for name in (MINIMUM, MAXIMUM, MEAN)
        )
        self._check_finite(step, np.isfinite(minimum) & np.isfinite(maximum) & np.isfinite(mean))
        sizes = outputs[SIZES].astype(np.int64)
        ranges = self._reduce(minimum, maximum)
        self._fill_histograms(ranges, outputs[SAMPLES].reshape(-1, NUM_SAMPLES))
        self.num_runs += 1
        self.values_seen += sizes
        np.minimum(self._minimum, minimum, out=self._minimum)
        np.maximum(self._maximum, maximum, out=self._maximum)
        low, high = self._steps.setdefault(float(step), ranges.copy())
        np.minimum(low, ranges[0], out=low)
        np.maximum(high, ranges[1], out=high)

    def save(self, path: Path) -> None:
        """Write all of it to a file, whole or not at all; raises `OutputError`."""
        steps = list(self._steps)
        points = json.dumps([write_record(point) for point in self.points])
        with new_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                points=np.array(points),
                num_runs=np.array(self.num_runs),
                values_seen=self.values_seen,
                minimum=self._minimum,
                maximum=self._maximum,
                radius=self._radius,
                counts=self._counts,
                steps=np.array(steps, dtype=np.float64),
                step_ranges=np.array([self._steps[step] for step in steps]),
            )

    @classmethod
    def load(cls, path: Path) -> ComponentStatistics:
        """Return what `save` wrote; raises `CalibrationError` if it is not that."""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = dict(file)
            points = json.loads(str(arrays["points"]))
            found = cls([read_record(ObservedPoint, point, path.name) for point in points])
            found.num_runs = int(arrays["num_runs"])
            found.values_seen[:] = arrays["values_seen"]
            found._minimum[:] = arrays["minimum"]
            found._maximum[:] = arrays["maximum"]
            found._radius[:] = arrays["radius"]
            found._counts[:] = arrays["counts"]
            found._steps = dict(zip(arrays["steps"].tolist(), arrays["step_ranges"], strict=True))
        except (OSError, KeyError, ValueError, EOFError, *_ZIP_ERRORS, BundleError) as err:
            raise CalibrationError(
                f"{path} is not what a calibration collected (cut short or of another version): "
                "calibrate again with --force"
            ) from err
        return found

    def _reduce(self, minimum: F64, maximum: F64) -> F64:
        """The ranges of the points, float64 [2, P], of those of the channels."""
        return np.stack(
            [np.minimum.reduceat(minimum, self._firsts), np.maximum.reduceat(maximum, self._firsts)]
        )

    def _check_not_empty(self) -> None:
        if self.num_runs == 0:
            raise CalibrationError("nothing was collected yet: run the component on some samples")

    def _check_finite(self, step: float, is_finite: NDArray[np.bool_]) -> None:
        """Raise `CalibrationError` unless all channels are finite."""
        wrong = np.flatnonzero(~is_finite)
        if wrong.size:
            point = self.points[int(np.searchsorted(self._firsts, wrong[0], side="right")) - 1]
            raise CalibrationError(
                f"{point} has values that are NaN or infinite at step {step:g}: a model can only "
                "be calibrated where it works in float32; try other prompts, or verify the bundle"
            )

    def _find_channels(self, layer: str) -> slice:
        self._check_not_empty()
        if layer not in self._by_input:
            raise CalibrationError(f"layer {layer} was not observed: calibrate again with --force")
        point = self._by_input[layer]
        return slice(point.first_channel, point.first_channel + point.num_channels)

    def _fill_histograms(self, ranges: F64, samples: F32) -> None:
        """Add samples [P, S], after making room for values in these ranges [2, P]."""
        largest = np.abs(ranges).max(axis=0)
        self._radius = np.where(self._radius > 0.0, self._radius, _FIRST_RADIUS * largest)
        while (narrow := np.flatnonzero((largest >= self._radius) & (largest > 0.0))).size:
            self._counts[narrow] = _double_range(self._counts[narrow])
            self._radius[narrow] *= 2.0
        # What is 0 everywhere has no radius; it belongs into the bin that begins at 0.
        scale = np.divide(
            NUM_BINS / 2, self._radius, out=np.zeros_like(self._radius), where=self._radius > 0.0
        )
        bins = np.floor(samples * scale[:, None]).astype(np.int64) + NUM_BINS // 2
        bins += np.arange(len(self.points))[:, None] * NUM_BINS
        counts = np.bincount(bins.ravel(), minlength=self._counts.size)
        self._counts += counts.reshape(self._counts.shape)


def _double_range(counts: I64) -> I64:
    """Return histograms [P, NUM_BINS] of twice the range, their old bins merged in pairs."""
    wider = np.zeros_like(counts)
    quarter = NUM_BINS // 4
    wider[:, quarter : NUM_BINS - quarter] = counts.reshape(len(counts), -1, 2).sum(axis=2)
    return wider
