from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
from mutoscope.calibration.observers import ComponentStatistics
from mutoscope.calibration.ranges import METHODS, find_ranges
from mutoscope.calibration.table import (
    CalibrationTable,
    CollectionRecord,
    ValueRecord,
    name_table,
)
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.manifest import Manifest
from tests.runtime.hand_made_bundle import make_bundle, write_manifest

POINTS = (
    ObservedPoint(("net.conv.weight",), (), 3, 0),
    ObservedPoint((), ("net.conv.weight",), 2, 3),
    ObservedPoint(("net.q.weight", "net.k.weight"), (), 4, 5),
)
COLLECTION = CollectionRecord(8, "ddim", 25, 7.5, 64, 96, 16, "0" * 64)
# Figures are written with 7 digits.
ROUNDING = 1e-6
# A denoiser with 450 of them has a table of less than 1 MiB, with 25 steps.
NUM_POINTS, BYTES_PER_POINT = 45, 2**20 / 450


def collect(
    points: tuple[ObservedPoint, ...] = POINTS, steps: tuple[float, ...] = (900.0, 100.0)
) -> ComponentStatistics:
    """Statistics of normal values, twice as large in each step as in the one before."""
    statistics, random = ComponentStatistics(points), np.random.default_rng(2)
    num_channels = sum(point.num_channels for point in points)
    for index, step in enumerate(steps):
        samples = random.normal(size=(len(points), NUM_SAMPLES)).astype(np.float32) * 2**index
        largest = np.full(num_channels, np.abs(samples).max(), np.float32)
        outputs = {MINIMUM: -largest, MAXIMUM: largest, MEAN: largest * 0, SAMPLES: samples.ravel()}
        statistics.update(step, {**outputs, SIZES: np.full(len(points), 7000)})
    return statistics


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    folder = make_bundle(tmp_path / "bundle")
    (folder / "unet" / "model.onnx.data").write_bytes(b"weights")
    write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    return Bundle.open(folder)


@pytest.fixture
def table(bundle: Bundle) -> CalibrationTable:
    return CalibrationTable.from_statistics(collect(), COLLECTION, bundle, "unet")


def test_a_table_comes_back_from_its_file_as_it_was(
    table: CalibrationTable, tmp_path: Path
) -> None:
    table.save(tmp_path / "unet.json")
    assert CalibrationTable.load(tmp_path / "unet.json") == table
    text = (tmp_path / "unet.json").read_text()
    table.save(tmp_path / "unet.json")
    assert (tmp_path / "unet.json").read_text() == text
    assert text.startswith('{"format_version":1,"component":"unet",')


def test_it_has_what_was_collected(table: CalibrationTable) -> None:
    statistics = collect()
    assert list(table.layers) == ["net.conv.weight", "net.k.weight", "net.q.weight"]
    assert table.steps == (900.0, 100.0)
    assert table.collection == COLLECTION
    layer = table.layers["net.conv.weight"]
    assert layer.output is not None
    assert layer.input.values_seen == layer.output.values_seen == 14000
    for index, record in enumerate((layer.input, layer.output)):
        assert record.maximum == pytest.approx(statistics.values.maximum[index], rel=ROUNDING)
        assert record.step_maximum == pytest.approx(statistics.steps[2][:, index], rel=ROUNDING)
        for method in METHODS:
            expected = find_ranges(method, statistics.values)[index]
            assert record.ranges[method] == pytest.approx(expected, rel=ROUNDING)


def test_layers_that_share_an_input_have_the_same_range(table: CalibrationTable) -> None:
    for method in METHODS:
        ranges = table.find_ranges(method)
        assert ranges["net.q.weight"] == ranges["net.k.weight"]
        assert ranges["net.q.weight"][1] is None
        assert ranges["net.conv.weight"][1] is not None


def test_an_unknown_method_has_no_ranges(table: CalibrationTable) -> None:
    with pytest.raises(CalibrationError, match=r"method 'best' is unknown: use minmax, "):
        table.find_ranges("best")


def test_moves_compares_the_widths_of_the_steps(table: CalibrationTable) -> None:
    record = table.layers["net.q.weight"].input
    low, high = record.step_maximum  # the later step is the wider one
    assert record.moves == pytest.approx(high / low, rel=ROUNDING)
    still = ValueRecord(0.0, 0.0, 1, {}, (0.0, 0.0), (0.0, 0.0))
    assert still.moves == 1.0
    begins = dataclasses.replace(still, step_maximum=(0.0, 2.0))
    assert begins.moves == float("inf")
    one_sided = ValueRecord(3.0, 5.0, 1, {}, (3.0, 4.0), (4.0, 5.0))
    assert one_sided.moves == 1.25  # a range begins at 0 at the latest


def test_a_table_of_many_layers_is_a_small_file(bundle: Bundle, tmp_path: Path) -> None:
    name = "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q.{}.weight"
    points = tuple(ObservedPoint((name.format(i),), (), 1, i) for i in range(NUM_POINTS))
    statistics = collect(points, tuple(999.0 - 40 * i for i in range(25)))
    CalibrationTable.from_statistics(statistics, COLLECTION, bundle, "unet").save(
        tmp_path / "unet.json"
    )
    assert (tmp_path / "unet.json").stat().st_size < NUM_POINTS * BYTES_PER_POINT


def test_a_table_fits_the_bundle_that_it_was_made_of(
    table: CalibrationTable, bundle: Bundle
) -> None:
    assert list(table.graph_sha256) == ["unet/model.onnx", "unet/model.onnx.data"]
    table.check_fits(bundle)


@pytest.mark.parametrize("name", ["unet/model.onnx", "unet/model.onnx.data"])
def test_a_table_of_another_graph_is_refused(
    name: str, table: CalibrationTable, bundle: Bundle
) -> None:
    with (bundle.path / name).open("ab") as file:
        file.write(b"x")
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    write_manifest(bundle.path, manifest)
    with pytest.raises(
        CalibrationError,
        match=rf"the calibration table calibration/unet.json was made of another graph \({name} "
        r"changed\): calibrate again with --force",
    ):
        table.check_fits(Bundle.open(bundle.path))


def test_a_component_without_a_float32_graph_cannot_be_calibrated(bundle: Bundle) -> None:
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    unet = manifest["components"]["unet"]
    unet["variants"] = {"float16": unet["variants"]["float32"]}
    unet["default_variant"] = "float16"
    other = dataclasses.replace(bundle, manifest=Manifest.from_json(manifest))
    with pytest.raises(CalibrationError, match=r"unet has no float32 graph \(it has float16\): "):
        CalibrationTable.from_statistics(collect(), COLLECTION, other, "unet")


def test_coverage_tells_what_is_missing_on_either_side(table: CalibrationTable) -> None:
    coverage = table.cover(["net.q.weight", "net.new.weight"])
    assert coverage.covered == ("net.q.weight",)
    assert coverage.missing == ("net.new.weight",)
    assert coverage.unknown == ("net.conv.weight", "net.k.weight")


def test_a_layer_that_was_never_calibrated_is_an_error(table: CalibrationTable) -> None:
    table.check_covers(["net.q.weight", "net.k.weight"])
    with pytest.raises(
        CalibrationError,
        match=r"5 layers of unet were never calibrated \(0.weight, 1.weight, 2.weight and 2 more\)",
    ):
        table.check_covers(["net.q.weight", *(f"{index}.weight" for index in range(5))])


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_file_that_is_no_table_is_refused_in_one_line(
    table: CalibrationTable, tmp_path: Path
) -> None:
    path = tmp_path / "unet.json"
    with pytest.raises(CalibrationError, match=r"unet.json cannot be read: No such file"):
        CalibrationTable.load(path)
    table.save(path)
    whole = path.read_text()
    for text, match in (
        (whole[:-100], "is not valid JSON"),
        ("[]", "has no format_version: calibrate again with --force"),
        ('{"format_version": true}', "has no format_version"),
        ('{"format_version": 9}', "format_version 9; this mutoscope reads up to 1: pip install"),
        ('{"format_version": 1}', r"unet.json: component is missing: calibrate again"),
    ):
        path.write_text(text)
        with pytest.raises(CalibrationError, match=match) as caught:
            CalibrationTable.load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        {"ranges": {"minmax": [-1.0, 1.0]}},
        {"ranges": {name: [1.0, 2.0] for name in METHODS}},
        {"ranges": {name: [0.0, 0.0] for name in METHODS}},
        {"ranges": {name: [-1.0] for name in METHODS}},
        {"step_minimum": [0.0]},
    ],
)
def test_a_record_that_is_not_whole_is_refused(
    damage: dict[str, Any], table: CalibrationTable, tmp_path: Path
) -> None:
    path = tmp_path / "unet.json"
    table.save(path)
    layers = json.loads(path.read_text())["layers"]
    layers["net.k.weight"]["input"] |= damage
    change(path, layers=layers)
    with pytest.raises(CalibrationError, match=r"net.k.weight lacks a range or a step: calibrate"):
        CalibrationTable.load(path)


def test_each_component_has_a_table_of_its_own() -> None:
    assert name_table("vae_decoder") == "calibration/vae_decoder.json"
