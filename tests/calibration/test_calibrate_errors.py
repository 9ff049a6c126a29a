import dataclasses
import errno
import json
import os
import shutil

import pytest

from mutoscope.calibration import candidates, variant
from mutoscope.calibration.calibrate import CalibrationOptions, calibrate_bundle
from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.samples import SamplingOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import OutputError, ParameterError
from tests.calibration.layered_bundle import BROKEN_WORD, UNET_LAYERS
from tests.calibration.small_calibration import (
    NUM_STEPS,
    UNET,
    list_labels,
    make_up_times,
    read_files,
    stop_at,
)
from tests.runtime.hand_made_bundle import write_manifest


def test_a_table_of_another_graph_is_refused(calibrate, path, monkeypatch):
    make_up_times(monkeypatch, slower=UNET_LAYERS)
    calibrate()
    file = path / "calibration" / "unet.json"
    table = json.loads(file.read_text())
    table["graph_sha256"]["unet/model.onnx"] = "0" * 64
    file.write_text(json.dumps(table))
    write_manifest(path, json.loads((path / "manifest.json").read_text()))
    before = read_files(path)
    with pytest.raises(CalibrationError) as caught:
        calibrate()
    assert str(caught.value) == (
        "the calibration table calibration/unet.json was made of another graph "
        "(unet/model.onnx changed): calibrate again with --force"
    )
    assert read_files(path) == before
    calibrate(force=True)  # the way out works


def test_an_interrupted_collection_goes_on_from_whole_samples(calibrate, monkeypatch):
    make_up_times(monkeypatch, slower=UNET_LAYERS)
    label = "collecting ranges"
    with pytest.raises(KeyboardInterrupt):
        calibrate(stop_at(label, 2 * NUM_STEPS + 2, KeyboardInterrupt()), num_samples=3)
    calls = []
    calibrate(lambda *call: calls.append(call), num_samples=3)
    steps = [done for now, done, _ in calls if now == label]
    assert steps == list(range(2 * NUM_STEPS + 1, 3 * NUM_STEPS + 1))


def test_what_an_interrupted_calibration_adds_is_what_an_undisturbed_one_adds(
    calibrate, path, deep_bundle, monkeypatch
):
    make_up_times(monkeypatch)
    calibrate(num_samples=2)
    undisturbed = read_files(path)
    shutil.rmtree(path)
    shutil.copytree(deep_bundle, path)
    with pytest.raises(KeyboardInterrupt):
        calibrate(stop_at("collecting ranges", NUM_STEPS + 1, KeyboardInterrupt()), num_samples=2)
    calibrate(num_samples=2)
    disturbed = read_files(path)
    assert disturbed.keys() == undisturbed.keys()
    # Archives hold the time at which they were written, and so do the digests in the manifest.
    same = {name for name in disturbed if not name.endswith((".npz", "manifest.json"))}
    assert [name for name in same if disturbed[name] != undisturbed[name]] == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")], ids=repr)
@pytest.mark.parametrize(
    ("label", "done"),
    [
        ("collecting ranges", 2),
        ("clips in float32", 3),
        ("unet: timing layers", 0),
        ("unet: minmax", 3),
        ("unet: for TensorRT, on the CPU", 1),
        ("all together", 2),
    ],
)
def test_a_bundle_is_untouched_by_a_calibration_that_stops(
    calibrate, path, monkeypatch, label, done, error
):
    make_up_times(monkeypatch)
    before = read_files(path)
    with pytest.raises(type(error)):
        calibrate(stop_at(label, done, error))
    assert read_files(path) == before


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OutputError),
    ],
    ids=["interrupt", "full disk"],
)
@pytest.mark.parametrize("place", ["_write_files", "make_file_record", "save_manifest"])
def test_a_bundle_is_untouched_by_a_failure_while_it_is_written(
    calibrate, path, monkeypatch, place, error, raised
):
    def fail(*_):
        raise error

    make_up_times(monkeypatch)
    before = read_files(path)
    with monkeypatch.context() as patch:
        patch.setattr(variant, place, fail)
        with pytest.raises(raised):
            calibrate()
    assert read_files(path) == before
    calls = []
    calibrate(lambda *call: calls.append(call))
    # Neither ranges nor clips are made a second time.
    assert not {"collecting ranges", "clips in float32"} & set(list_labels(calls))


def test_a_full_disk_for_temporary_files_is_an_error_in_one_line(calibrate, path, monkeypatch):
    def fail(model, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    make_up_times(monkeypatch)
    monkeypatch.setattr(candidates, "save_graph", fail)
    before = read_files(path)
    with pytest.raises(OutputError, match=r"model\.onnx cannot be written: the disk is full: free"):
        calibrate()
    assert read_files(path) == before


def test_a_bundle_that_cannot_be_written_is_refused_before_any_work(calibrate, path, monkeypatch):
    make_up_times(monkeypatch)
    calls = []
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(
        OutputError, match=r"no permission in .*bundles: work on a copy of the bundle"
    ):
        calibrate(lambda *call: calls.append(call))
    assert calls == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
@pytest.mark.parametrize("folder", ["bundle", "its parent"])
def test_a_read_only_folder_is_refused(calibrate, path, folder):
    locked = path if folder == "bundle" else path.parent
    locked.chmod(0o555)
    try:
        with pytest.raises(OutputError, match="cannot be replaced: no permission in"):
            calibrate()
    finally:
        locked.chmod(0o755)


def test_nan_is_reported_with_its_layer_and_sample(calibrate, path, prompts, monkeypatch):
    make_up_times(monkeypatch)
    prompts.write_text(f"a {BROKEN_WORD}\n")
    before = read_files(path)
    with pytest.raises(CalibrationError) as caught:
        calibrate()
    message = str(caught.value)
    assert message.startswith("the input of unet.text.weight has values that are NaN or infinite")
    assert f"(sample prompt 'a {BROKEN_WORD}', seed " in message
    assert "\n" not in message
    assert read_files(path) == before


def test_nan_is_reported_where_no_layer_is_observed(calibrate, path, prompts, monkeypatch):
    make_up_times(monkeypatch)
    prompts.write_text(f"a {BROKEN_WORD}\n")
    before = read_files(path)
    with pytest.raises(CalibrationError) as caught:
        calibrate(components=("text_encoder",))
    message = str(caught.value)
    assert message.startswith("the latents are NaN or infinite after step 1: ")
    assert f"(sample prompt 'a {BROKEN_WORD}', seed " in message
    assert "\n" not in message
    assert read_files(path) == before


def test_float32_graphs_are_needed(calibrate, path):
    manifest = json.loads((path / "manifest.json").read_text())
    unet = manifest["components"]["unet"]
    unet["variants"] = {"float16": unet["variants"]["float32"]}
    unet["default_variant"] = "float16"
    write_manifest(path, manifest)
    before = read_files(path)
    for components in (UNET, ("vae_decoder",), ("text_encoder",)):
        with pytest.raises(CalibrationError) as caught:
            calibrate(components=components)
        assert str(caught.value) == (
            "unet has no float32 graph (it has float16): export the checkpoint again with "
            "--dtype float32"
        )
    assert read_files(path) == before


def test_a_file_of_prompts_that_is_not_there_is_refused(calibrate, path, tmp_path):
    before = read_files(path)
    with pytest.raises(CalibrationError, match=r"none\.txt does not exist: give a text file"):
        calibrate(prompts=tmp_path / "none.txt")
    assert read_files(path) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no prompts: write one on each line"),
        (b"# a red circle\n\n", "has no prompts: write one on each line"),
        (b"a circle\n" + b"a " * 9, r"line 2 .*"),
        (b"a circle\na \x07 circle\n", r"line 2 has the control character U\+0007; .*: remove it"),
        (b"a circle\na \xff circle\n", "line 2 is not UTF-8: save the file as UTF-8"),
    ],
    ids=["empty", "comments", "too long", "control character", "not UTF-8"],
)
def test_a_file_of_prompts_that_cannot_be_used_is_refused(
    calibrate, path, prompts, content, message
):
    prompts.write_bytes(content)
    before = read_files(path)
    with pytest.raises(CalibrationError, match=message) as caught:
        calibrate()
    assert "\n" not in str(caught.value)
    assert read_files(path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "best"}, "preset is 'best': use fast, balanced, quality"),
        ({"method": "max"}, "method is 'max': use minmax, percentile, entropy, mse"),
        ({"components": ("unet2",)}, "this bundle has no unet2; it has text_encoder, unet, vae_"),
        ({"num_samples": 0}, "num_samples is 0; it must be at least 1: use"),
        ({"seed": -1}, "seed is -1; it must be from 0"),
        ({"min_psnr_db": float("nan")}, "min_psnr_db is nan; it must be a number: use 30"),
        (
            {"sampling": SamplingOptions(num_inference_steps=7)},
            "num_inference_steps is 7; this bundle has tables of ddim for .*: use 8",
        ),
        ({"sampling": SamplingOptions(scheduler="lms")}, "scheduler 'lms' is not in this bundle"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_that_is_not_allowed_is_refused(calibrate, path, changes, message):
    before = read_files(path)
    with pytest.raises((CalibrationError, ParameterError), match=f"^{message}"):
        calibrate(**changes)
    assert read_files(path) == before


def test_the_decoder_of_previews_stays_in_float(deep_bundle):
    bundle = Bundle.open(deep_bundle)
    components = dict(bundle.manifest.components)
    components["preview_decoder"] = components["vae_decoder"]
    manifest = dataclasses.replace(bundle.manifest, components=components)
    with pytest.raises(ParameterError, match=r"^preview_decoder stays in float: use vae_decoder$"):
        calibrate_bundle(
            dataclasses.replace(bundle, manifest=manifest),
            CalibrationOptions(components=("preview_decoder",)),
        )
