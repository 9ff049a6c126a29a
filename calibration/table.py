"""The calibration table of a component: the ranges of its layers' values, kept in the bundle.

It is a JSON object. It belongs to the float32 graph that it was made of, and to no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.observers import ComponentStatistics
from mutoscope.calibration.ranges import METHODS, find_ranges
from mutoscope.calibration.samples import find_float_graph
from mutoscope.runtime.bundle import Bundle, list_graph_files
from mutoscope.runtime.errors import BundleError
from mutoscope.runtime.json_records import read_record, write_record
from mutoscope.runtime.outputs import new_file

FORMAT_VERSION: Final = 1

# float32 has no more.
_SIGNIFICANT_DIGITS: Final = 7
# How many layers a message names.
_NAMED_LAYERS: Final = 3

Range = tuple[float, float]


@dataclass(frozen=True)
class CollectionRecord:
    """What the statistics were collected of.

    Attributes:
        num_samples: Clips that were made.
        scheduler: That of the bundle by which they were made.
        num_inference_steps: Steps of each clip.
        guidance_scale: Of the clips that have guidance on.
        height: In pixels.
        width: In pixels.
        num_frames: Frames of each clip.
        prompts_sha256: The digest of the prompts.
    """

    num_samples: int
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    num_frames: int
    prompts_sha256: str


@dataclass(frozen=True)
class ValueRecord:
    """What is known of the input or the output of a layer.

    Attributes:
        minimum: The smallest value.
        maximum: The largest value.
        values_seen: How many values these are of.
        ranges: The two ends of the range to quantize, by method.
        step_minimum: The smallest value in each of the table's steps.
        step_maximum: The largest value in each of them.
    """

    minimum: float
    maximum: float
    values_seen: int
    ranges: dict[str, tuple[float, ...]]
    step_minimum: tuple[float, ...]
    step_maximum: tuple[float, ...]

    @property
    def moves(self) -> float:
        """How much the range moves: the largest width of a step over the smallest, at least 1."""
        widths = np.maximum(self.step_maximum, 0.0) - np.minimum(self.step_minimum, 0.0)
        largest, smallest = float(widths.max()), float(widths.min())
        if smallest == 0.0:
            return 1.0 if largest == 0.0 else float("inf")
        return largest / smallest


@dataclass(frozen=True)
class LayerRecord:
    """The values of one layer; the output is known for convolutions only."""

    input: ValueRecord
    output: ValueRecord | None = None


@dataclass(frozen=True)
class Coverage:
    """How a table and the layers of a graph fit together.

    Attributes:
        covered: The layers that the table has.
        missing: The layers that it has not.
        unknown: Those that it has and the graph has not.
    """

    covered: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class CalibrationTable:
    """The ranges of all layers of a component, by every method.

    Attributes:
        component: Its name in the manifest.
        graph_sha256: The digests of the float32 graph and its weights, by their paths.
        collection: What the ranges were collected of.
        steps: The timesteps that were seen, largest first.
        layers: What is known of each layer, by its name.
    """

    component: str
    graph_sha256: dict[str, str]
    collection: CollectionRecord
    steps: tuple[float, ...]
    layers: dict[str, LayerRecord]
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_statistics(
        cls,
        statistics: ComponentStatistics,
        collection: CollectionRecord,
        bundle: Bundle,
        component: str,
    ) -> CalibrationTable:
        """Return the table of what was collected.

        Raises:
            CalibrationError: Nothing was collected, or the component has no float32 graph.
        """
        records = _make_value_records(statistics)
        inputs: dict[str, ValueRecord] = {}
        outputs: dict[str, ValueRecord] = {}
        for point, record in zip(statistics.points, records, strict=True):
            inputs |= dict.fromkeys(point.inputs_of, record)
            outputs |= dict.fromkeys(point.outputs_of, record)
        return cls(
            component=component,
            graph_sha256=_find_graph_sha256(bundle, component),
            collection=collection,
            steps=_round(statistics.steps[0]),
            layers={name: LayerRecord(inputs[name], outputs.get(name)) for name in sorted(inputs)},
        )

    @classmethod
    def load(cls, path: Path) -> CalibrationTable:
        """Return the table in a file, checked; raises `CalibrationError`."""
        advice = "calibrate again with --force"
        try:
            value = json.loads(path.read_bytes())
        except OSError as err:
            raise CalibrationError(f"{path} cannot be read: {err.strerror or err}") from err
        except ValueError as err:
            raise CalibrationError(f"{path} is not valid JSON (damaged?): {advice}") from err
        version = value.get("format_version") if isinstance(value, dict) else None
        if not isinstance(version, int) or isinstance(version, bool):
            raise CalibrationError(f"{path} has no format_version: {advice}")
        if version > FORMAT_VERSION:
            raise CalibrationError(
                f"{path} has format_version {version}; this mutoscope reads up to "
                f"{FORMAT_VERSION}: pip install --upgrade mutoscope"
            )
        try:
            table = read_record(cls, value, path.name)
        except BundleError as err:
            raise CalibrationError(f"{err}: {advice}") from err
        table._check_records(path)
        return table

    def save(self, path: Path) -> None:
        """Write the table, whole or not at all; raises `OutputError`."""
        value = write_record(self)
        value = {"format_version": value.pop("format_version"), **value}
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        with new_file(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def check_fits(self, bundle: Bundle) -> None:
        """Raise `CalibrationError` unless the bundle's graph is the one that was calibrated."""
        now = _find_graph_sha256(bundle, self.component)
        changed = [
            name
            for name in sorted(self.graph_sha256.keys() | now.keys())
            if self.graph_sha256.get(name) != now.get(name)
        ]
        if changed:
            raise CalibrationError(
                f"the calibration table {name_table(self.component)} was made of another graph "
                f"({', '.join(changed)} changed): calibrate again with --force"
            )

    def cover(self, layers: Iterable[str]) -> Coverage:
        """Return which of the layers of a graph the table has."""
        names = tuple(layers)
        return Coverage(
            covered=tuple(name for name in names if name in self.layers),
            missing=tuple(name for name in names if name not in self.layers),
            unknown=tuple(name for name in self.layers if name not in set(names)),
        )

    def check_covers(self, layers: Iterable[str]) -> None:
        """Raise `CalibrationError` if a layer that is to be quantized was never calibrated."""
        missing = self.cover(layers).missing
        if missing:
            more = len(missing) - _NAMED_LAYERS
            names = ", ".join(missing[:_NAMED_LAYERS]) + (f" and {more} more" if more > 0 else "")
            raise CalibrationError(
                f"{len(missing)} layers of {self.component} were never calibrated ({names}): "
                "calibrate again with --force"
            )

    def find_ranges(self, method: str) -> dict[str, tuple[Range, Range | None]]:
        """Return the ranges of each layer's input and output; raises `CalibrationError`."""
        if method not in METHODS:
            raise CalibrationError(f"method {method!r} is unknown: use {', '.join(METHODS)}")
        return {
            name: (
                _get_range(layer.input, method),
                None if layer.output is None else _get_range(layer.output, method),
            )
            for name, layer in self.layers.items()
        }

    def _check_records(self, path: Path) -> None:
        """Raise `CalibrationError` unless every value has what the format promises."""
        for name, layer in self.layers.items():
            for record in (layer.input, layer.output):
                if record is None:
                    continue
                has_ranges = all(_is_range(record.ranges.get(method, ())) for method in METHODS)
                lengths = {len(self.steps), len(record.step_minimum), len(record.step_maximum)}
                if not has_ranges or len(lengths) > 1:
                    raise CalibrationError(
                        f"{path}: {name} lacks a range or a step: calibrate again with --force"
                    )


def name_table(component: str) -> str:
    """Return the path of a component's table in the bundle."""
    return f"calibration/{component}.json"


def _make_value_records(statistics: ComponentStatistics) -> list[ValueRecord]:
    """A record for each point."""
    values = statistics.values
    ranges = {method: find_ranges(method, values) for method in METHODS}
    _, step_minimum, step_maximum = statistics.steps
    return [
        ValueRecord(
            minimum=_round(values.minimum[index])[0],
            maximum=_round(values.maximum[index])[0],
            values_seen=int(statistics.values_seen[index]),
            ranges={method: _round(found[index]) for method, found in ranges.items()},
            step_minimum=_round(step_minimum[:, index]),
            step_maximum=_round(step_maximum[:, index]),
        )
        for index in range(len(statistics.points))
    ]


def _round(values: Any) -> tuple[float, ...]:
    """Numbers as the file has them, so that a table is the same before and after."""
    return tuple(float(f"{value:.{_SIGNIFICANT_DIGITS}g}") for value in np.atleast_1d(values))


def _is_range(ends: tuple[float, ...]) -> bool:
    return len(ends) == 2 and ends[0] <= 0.0 <= ends[1] and ends[0] < ends[1]


def _get_range(record: ValueRecord, method: str) -> Range:
    low, high = record.ranges[method]
    return low, high


def _find_graph_sha256(bundle: Bundle, name: str) -> dict[str, str]:
    """The digests of a component's float32 graph and of its weights, as the manifest has them."""
    graph = find_float_graph(bundle, name)
    paths = list_graph_files(bundle.manifest, bundle.find_component(name), graph)
    return {path: bundle.manifest.files[path].sha256 for path in sorted(paths)}
