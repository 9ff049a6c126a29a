import dataclasses
import shutil

import numpy as np
import onnx_ir
import pytest

from mutoscope.calibration.calibrate import CalibrationOptions, calibrate_bundle
from mutoscope.calibration.choice import RESTORED, SLOWER
from mutoscope.calibration.collection import find_state_folder
from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.fixed_layers import CONDITIONING, FIRST, LAST
from mutoscope.calibration.presets import PRESETS
from mutoscope.calibration.ranges import METHODS
from mutoscope.calibration.samples import SamplingOptions
from mutoscope.calibration.table import CalibrationTable
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.metrics import psnr_db
from mutoscope.runtime.pipeline import VideoPipeline
from tests.calibration.layered_bundle import (
    DECODER_LAYER,
    TEXT_LAYER,
    UNET_LAYERS,
    make_bundle,
)
from tests.calibration.small_calibration import (
    CALIBRATION_FILES,
    COMPONENTS,
    IMPOSSIBLE_DB,
    INT8_FILES,
    NUM_STEPS,
    PROMPTS,
    SECONDS_FLOAT,
    SECONDS_INT8,
    UNET,
    check_complete,
    count_int8,
    list_labels,
    make_up_times,
    read_files,
)

# Clips of this bundle are from 39 to 50 dB: seven layers with 8 bits each, ranges of one clip. With
# one layer that is wired wrongly, or has a wrong range, they are below 30 dB.
NEAR_DB = 34.0


@pytest.fixture(scope="module")
def calibrated(deep_bundle, tmp_path_factory):
    """A bundle of which all was calibrated, and the report."""
    folder = tmp_path_factory.mktemp("calibrated")
    path = shutil.copytree(deep_bundle, folder / "bundle")
    (path / "engines" / "openvino-1").mkdir(parents=True)
    (path / "engines" / "openvino-1" / "unet.bin").write_bytes(b"built before")
    (folder / "prompts.txt").write_text(PROMPTS)
    options = CalibrationOptions(
        num_samples=1, prompts=folder / "prompts.txt", engine=EngineOptions(num_threads=1)
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        make_up_times(monkeypatch)
        report = calibrate_bundle(Bundle.open(path), options)
        assert not find_state_folder(Bundle.open(path)).exists()
    return path, report


def list_domains(path):
    model = onnx_ir.load(path)
    assert {node.domain for node in model.graph} <= set(model.opset_imports)
    return set(model.opset_imports)


def test_every_component_gets_two_int8_graphs(calibrated):
    path, report = calibrated
    manifest = Bundle.open(path).manifest
    assert manifest.files.keys() >= INT8_FILES | CALIBRATION_FILES
    assert tuple(report.components) == COMPONENTS
    for name in COMPONENTS:
        component = manifest.components[name]
        assert component.variants["int8"] == f"{name}/model_int8.onnx"
        assert component.cpu_graphs["int8"] == f"{name}/model_int8_cpu.onnx"
        assert component.default_variant == "float32"
        choice = report.components[name].choice
        assert count_int8(path / name / "model_int8.onnx") == len(choice.tensorrt_layers)
        assert count_int8(path / name / "model_int8_cpu.onnx") == len(choice.processors_layers)
        # Only onnxruntime has operators of this domain.
        assert "com.microsoft" in list_domains(path / name / "model_int8_cpu.onnx")
        assert list_domains(path / name / "model_int8.onnx") == {""}


def test_the_files_that_are_added_are_those_that_the_manifest_lists(calibrated):
    bundle = Bundle.open(calibrated[0])
    for name in bundle.manifest.files:
        bundle.check_digest(name)
    listed = {*bundle.manifest.files, "manifest.json", "engines/openvino-1/unet.bin"}
    found = {p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file()}
    assert found == listed


def test_all_else_in_the_bundle_is_as_it_was(calibrated, deep_bundle):
    path, before = calibrated[0], Bundle.open(deep_bundle).manifest
    after = Bundle.open(path).manifest
    added = after.files.keys() - before.files.keys()
    assert added == INT8_FILES | CALIBRATION_FILES
    assert {name: after.files[name] for name in before.files} == before.files
    assert (path / "engines" / "openvino-1" / "unet.bin").read_bytes() == b"built before"
    for name, component in before.components.items():
        kept = dataclasses.replace(after.components[name], variants=component.variants)
        assert dataclasses.replace(kept, cpu_graphs=component.cpu_graphs) == component
    same = dataclasses.replace(after, components=before.components, files=before.files)
    assert same == before


def test_the_tables_are_of_this_bundle_and_cover_its_layers(calibrated):
    path, report = calibrated
    bundle = Bundle.open(path)
    for name in COMPONENTS[1:]:
        table = CalibrationTable.load(path / "calibration" / f"{name}.json")
        table.check_fits(bundle)
        table.check_covers(report.components[name].choice.processors_layers)
        assert table.collection.num_samples == report.num_samples == 1
        assert table.collection.num_inference_steps == report.num_inference_steps == NUM_STEPS


def test_clips_of_the_int8_variant_are_near_those_in_float32(calibrated):
    path, report = calibrated
    videos = []
    for name in ("float32", "int8"):
        with VideoPipeline.open(path, variant=name, num_threads=1) as pipeline:
            videos.append(pipeline.generate("a circle moves left", seed=11).frames)
    assert NEAR_DB < psnr_db(*videos) < 100.0
    assert NEAR_DB < report.together[1] <= report.together[0] < 100.0


def test_the_report_has_the_reason_of_every_layer_in_float(calibrated):
    path, report = calibrated
    for name, component in report.components.items():
        check_complete(component.choice, path, name)
        assert component.choice.kept_in_float is None
        assert component.choice.seconds_float == SECONDS_FLOAT
        assert component.choice.seconds_int8 == SECONDS_INT8
        assert component.size_int8_bytes > 0
        assert not component.reused
    unet = report.components["unet"].choice
    assert set(unet.processors_layers) == set(UNET_LAYERS)
    assert unet.float_layers == {
        "unet.conv_in.weight": FIRST,
        "unet.time.weight": CONDITIONING,
        "unet.conv_out.weight": LAST,
    }
    assert report.components["text_encoder"].choice.processors_layers == (TEXT_LAYER,)
    assert DECODER_LAYER in report.components["vae_decoder"].choice.processors_layers


def test_the_best_clips_choose_the_method(calibrated):
    for component in calibrated[1].components.values():
        tried = component.choice.candidates
        assert {candidate.method for candidate in tried} in ({"dynamic"}, set(METHODS))
        assert component.choice.chosen.mean_psnr_db == max(c.mean_psnr_db for c in tried)


def test_a_layer_that_is_slower_stays_in_float(calibrate, path, monkeypatch):
    make_up_times(monkeypatch, slower=["unet.up.weight"])
    choice = calibrate().components["unet"].choice
    assert choice.float_layers["unet.up.weight"] == SLOWER
    assert set(choice.processors_layers) == set(UNET_LAYERS) - {"unet.up.weight"}
    # What it costs here says nothing of TensorRT.
    assert set(choice.tensorrt_layers) == set(UNET_LAYERS)
    check_complete(choice, path, "unet")


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ({"slower": UNET_LAYERS}, "no layer is faster in int8 with onnxruntime"),
        ({"slower_as_a_whole": True}, "int8 takes 0.002 s for a pass, float 0.001 s"),
    ],
    ids=["every layer", "the whole"],
)
def test_a_component_that_is_not_faster_stays_in_float(calibrate, path, monkeypatch, times, reason):
    make_up_times(monkeypatch, **times)
    report = calibrate()
    choice = report.components["unet"].choice
    assert choice.kept_in_float == reason
    assert report.components["unet"].size_int8_bytes == 0
    assert report.together is None
    check_complete(choice, path, "unet")
    manifest = Bundle.open(path).manifest
    assert not INT8_FILES & manifest.files.keys()
    assert list(manifest.components["unet"].variants) == ["float32"]
    assert "calibration/unet.json" in manifest.files


def test_layers_are_put_back_until_clips_are_good_enough(calibrate, path, monkeypatch):
    make_up_times(monkeypatch)
    everything = calibrate().components["unet"].choice.chosen.median_psnr_db
    wanted = everything + 1.0
    report = calibrate(min_psnr_db=wanted, force=True)
    choice = report.components["unet"].choice
    assert choice.candidates[0].median_psnr_db == everything < wanted
    assert choice.chosen.median_psnr_db >= wanted
    assert choice.tensorrt.median_psnr_db >= wanted
    assert report.together[0] >= wanted
    restored = [name for name, why in choice.float_layers.items() if why == RESTORED]
    assert restored
    assert choice.processors_layers
    assert set(restored) | set(choice.processors_layers) == set(UNET_LAYERS)
    check_complete(choice, path, "unet")


def test_a_component_without_layers_stays_in_float(calibrate, path):
    shutil.rmtree(path)
    make_bundle(path)
    choice = calibrate(components=("text_encoder",)).components["text_encoder"].choice
    assert choice.kept_in_float == "none of its layers can be int8"
    check_complete(choice, path, "text_encoder")


def test_a_component_that_cannot_be_good_enough_stays_in_float(calibrate, path, monkeypatch):
    make_up_times(monkeypatch)
    report = calibrate(min_psnr_db=IMPOSSIBLE_DB)
    choice = report.components["unet"].choice
    assert choice.kept_in_float == "its clips are below 250 dB with any layer in int8"
    assert report.together is None
    check_complete(choice, path, "unet")
    assert not [p.name for p in path.rglob("*int8*")]


def test_a_table_that_fits_is_used_again(calibrate, path, monkeypatch):
    make_up_times(monkeypatch)
    calls = []
    first = calibrate(lambda *call: calls.append(call), min_psnr_db=IMPOSSIBLE_DB)
    assert "collecting ranges" in list_labels(calls)
    assert not first.components["unet"].reused
    table = (path / "calibration" / "unet.json").read_bytes()
    calls.clear()
    second = calibrate(lambda *call: calls.append(call))
    assert "collecting ranges" not in list_labels(calls)
    assert second.components["unet"].reused
    assert second.components["unet"].choice.kept_in_float is None
    assert (path / "calibration" / "unet.json").read_bytes() == table


@pytest.mark.parametrize(
    "changes",
    [
        {"num_samples": 2},
        {"seed": 1},
        {"sampling": SamplingOptions(num_inference_steps=3)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_table_of_other_clips_is_made_again(calibrate, path, monkeypatch, changes):
    make_up_times(monkeypatch, slower=UNET_LAYERS)
    calibrate()
    calls = []
    report = calibrate(lambda *call: calls.append(call), **changes)
    assert "collecting ranges" in list_labels(calls)
    assert not report.components["unet"].reused
    table = CalibrationTable.load(path / "calibration" / "unet.json")
    assert table.collection.num_samples == changes.get("num_samples", 1)
    assert table.collection.num_inference_steps == report.num_inference_steps


def test_a_link_to_a_bundle_stays_one(calibrate, path, tmp_path, monkeypatch):
    target = path.rename(tmp_path / "elsewhere")
    path.symlink_to(target)
    make_up_times(monkeypatch)
    calibrate()
    assert path.is_symlink()
    assert "int8" in Bundle.open(target).manifest.components["unet"].variants
    assert [p.name for p in path.parent.iterdir()] == ["bundle"]


def test_an_int8_variant_is_replaced_with_force_only(calibrate, path, monkeypatch):
    make_up_times(monkeypatch)
    calibrate()
    before = read_files(path)
    with pytest.raises(CalibrationError) as caught:
        calibrate()
    assert str(caught.value) == (
        "unet has an int8 variant already: replace it with --force, or leave it out of --components"
    )
    assert read_files(path) == before
    make_up_times(monkeypatch, slower=["unet.mix.weight"])
    calibrate(force=True)
    assert count_int8(path / "unet" / "model_int8_cpu.onnx") == len(UNET_LAYERS) - 1
    make_up_times(monkeypatch, slower=UNET_LAYERS)
    calibrate(force=True)
    bundle = Bundle.open(path)
    assert not INT8_FILES & bundle.manifest.files.keys()
    assert not [p.name for p in path.rglob("*int8*")]
    assert list(bundle.manifest.components["unet"].variants) == ["float32"]


def test_another_component_is_added_to_an_int8_variant(calibrate, path, monkeypatch):
    make_up_times(monkeypatch)
    calibrate(components=("text_encoder",))
    before = Bundle.open(path).manifest
    calibrate(components=UNET)
    after = Bundle.open(path).manifest
    assert after.components["text_encoder"] == before.components["text_encoder"]
    assert "int8" in after.components["unet"].variants
    assert {name: after.files[name] for name in before.files} == before.files


def test_the_largest_seed_can_be_used(calibrate, monkeypatch):
    make_up_times(monkeypatch, slower=UNET_LAYERS)
    assert calibrate(seed=2**64 - 1).num_samples == 1


def test_outliers_are_moved_into_weights_where_the_clips_are_better(calibrate, monkeypatch):
    make_up_times(monkeypatch)
    smooths = dataclasses.replace(PRESETS["fast"], tries_smoothing=True)
    monkeypatch.setitem(PRESETS, "fast", smooths)
    choice = calibrate().components["unet"].choice
    assert [tried.smoothed for tried in choice.candidates] == [False, True]
    assert choice.chosen.smoothed == (
        choice.candidates[1].mean_psnr_db > choice.candidates[0].mean_psnr_db
    )
    assert np.isfinite(choice.chosen.latents_error)
