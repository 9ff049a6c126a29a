import dataclasses
import json
import shutil
import sys

import pytest

from mutoscope.calibration import calibrate as calibration
from mutoscope.calibration.sampling_progress import SamplingProgress
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.image_records import ImageRecord
from mutoscope.runtime.main import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK
from mutoscope.runtime.progress import ProgressBar
from tests.calibration.layered_bundle import UNET_LAYERS, make_deep_bundle
from tests.calibration.small_calibration import PROMPTS, make_up_times
from tests.conftest import run_in_process
from tests.runtime import hand_made_bundle

USAGE_ERROR = 2
QUICK = ("--preset", "fast", "--num-samples", "1", "--num-threads", "1", "--min-psnr-db", "20")


@pytest.fixture
def run_calibrate(path, prompts, run_command):
    """A function that calibrates as little as is possible."""

    def run(*arguments):
        return run_command("calibrate", path, "--prompts", prompts, *QUICK, *arguments)

    return run


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A calibrated bundle, and what the command that made it wrote."""
    folder = tmp_path_factory.mktemp("calibrated")
    (folder / "prompts.txt").write_text(PROMPTS)
    path = make_deep_bundle(folder / "bundle")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        make_up_times(monkeypatch, slower=[UNET_LAYERS[0]])
        file = folder / "prompts.txt"
        result = run_in_process("calibrate", path, "--prompts", file, *QUICK)
    assert result.exit_code == EXIT_OK, result.stderr
    return path, result


def check_error(result, message):
    """One line on stderr, nothing on stdout."""
    assert result.exit_code == EXIT_ERROR
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def make_terminal_bar(label, num_steps):
    """A bar that is drawn as on a terminal."""

    class Terminal:
        def __getattr__(self, name):
            return getattr(sys.stderr, name)

        def isatty(self):
            return True

    return ProgressBar(label, num_steps, stream=Terminal())


def test_the_table_names_sizes_times_and_quality(calibrated):
    path, result = calibrated
    lines = result.stdout.splitlines()
    assert lines[0] == (f"{path}: clips of 4 steps, 1 sampled and 2 others judged; at least 20 dB")
    for name, kinds in (
        ("text_encoder", r"dynamic"),
        ("unet", "minmax"),
        ("vae_decoder", "minmax"),
    ):
        (line,) = [line for line in lines if line.startswith(f"{name}: ")]
        assert f"{name}: {kinds} " in line
        assert " dB, 2.0 -> 1.0 ms for a pass (2.00 x), " in line
        assert "B -> " in line
    assert "  in int8: 3 layers" in lines
    assert "  in float: 1 (not faster in int8 here)" in lines
    assert "  in float: 1 (first of the component)" in lines
    assert any(line.startswith("  for TensorRT: 4 layers, minmax ") for line in lines)
    assert any(line.startswith("all together: ") and "(worst clip)" in line for line in lines)
    assert (
        lines[-1] == f'run it: mutoscope generate "..." --bundle {path} --variant int8 -o out.mp4'
    )


def test_the_int8_variant_passes_verification(calibrated, run_command):
    path, _ = calibrated
    result = run_command("verify", path, "--variant", "int8", "--json")
    assert result.exit_code == EXIT_OK, result.stderr
    assert json.loads(result.stdout)["ok"] is True


def test_the_int8_variant_generates(calibrated, run_command, tmp_path):
    path, _ = calibrated
    output = tmp_path / "clip.npy"
    result = run_command(
        "generate", "a red circle", "--bundle", path, "--variant", "int8", "-o", output
    )
    assert result.exit_code == EXIT_OK, result.stderr
    assert output.stat().st_size > 0


def test_json_is_one_object_and_nothing_else(run_calibrate, path, monkeypatch):
    make_up_times(monkeypatch)
    result = run_calibrate("--components", "unet", "--json")
    assert result.exit_code == EXIT_OK, result.stderr
    record = json.loads(result.stdout)  # fails for anything beside the object
    assert record["bundle"] == str(path)
    assert record["num_samples"] == 1
    assert record["num_inference_steps"] == 4
    assert record["min_psnr_db"] == 20.0
    assert len(record["together"]) == 2
    component = record["components"]["unet"]
    assert component["size_int8_bytes"] > 0
    assert component["size_float_bytes"] > 0
    assert component["reused"] is False
    choice = component["choice"]
    assert set(choice["processors_layers"]) == set(UNET_LAYERS)
    assert choice["chosen"] == choice["candidates"][0]
    assert choice["chosen"]["method"] == "minmax"
    assert (choice["seconds_float"], choice["seconds_int8"]) == (2e-3, 1e-3)
    assert "kept_in_float" not in choice


def test_a_component_that_stays_in_float_is_reported_with_the_reason(run_calibrate, monkeypatch):
    make_up_times(monkeypatch, slower=UNET_LAYERS)
    result = run_calibrate("--components", "unet")
    assert result.exit_code == EXIT_OK, result.stderr
    lines = result.stdout.splitlines()
    assert "unet: stays in float (no layer is faster in int8 with onnxruntime)" in lines
    assert "  in float: 4 (not faster in int8 here)" in lines
    assert lines[-1] == "nothing is in int8: the bundle runs as before"
    make_up_times(monkeypatch)
    again = run_calibrate("--components", "unet").stdout
    assert "its calibration table was in the bundle already" in again


def test_options_reach_the_calibration(run_calibrate, monkeypatch):
    make_up_times(monkeypatch, slower=UNET_LAYERS)
    result = run_calibrate(
        *("--components", "unet", "--method", "mse", "--num-samples", "2", "--seed", "3"),
        *("--num-inference-steps", "3", "--scheduler", "euler-ancestral", "--num-frames", "2"),
        *("--height", "16", "--width", "32", "--json"),
    )
    assert result.exit_code == EXIT_OK, result.stderr
    record = json.loads(result.stdout)
    collection = json.loads(
        (Bundle.open(record["bundle"]).path / "calibration" / "unet.json").read_text()
    )["collection"]
    wanted = {
        "num_samples": 2,
        "num_inference_steps": 3,
        "scheduler": "euler-ancestral",
        "num_frames": 2,
        "height": 16,
        "width": 32,
    }
    assert {name: collection[name] for name in wanted} == wanted


def test_help_has_examples_and_the_unit_of_options(run_command):
    result = run_command("calibrate", "--help")
    assert result.exit_code == EXIT_OK
    assert "mutoscope calibrate bundle --prompts prompts.txt --preset quality" in result.stdout
    assert "--variant int8 -o out.mp4" in result.stdout
    for option in ("--min-psnr-db DB", "--height PIXELS", "--num-samples N", "--prompts FILE"):
        assert option in result.stdout
    assert "[default: balanced]" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "max"), "'max' is not one of 'minmax', 'percentile', 'entropy', 'mse'"),
        (("--preset", "best"), "'best' is not one of 'fast', 'balanced', 'quality'"),
        (("--num-samples", "few"), "'few' is not a valid integer"),
        (("--num-threads", "0"), "0 is not in the range x>=1"),
        (("--engine", "none"), "'none' is not one of 'onnxruntime', "),
    ],
)
def test_wrong_usage_is_exit_code_2(run_calibrate, arguments, message):
    result = run_calibrate(*arguments)
    assert result.exit_code == USAGE_ERROR
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--components", "unet2"), "this bundle has no unet2; it has text_encoder, unet, vae_de"),
        (("--num-inference-steps", "7"), "this bundle has tables of ddim for"),
        (("--num-samples", "0"), "num_samples is 0; it must be at least 1"),
        (("--min-psnr-db", "nan"), "min_psnr_db is nan; it must be a number"),
        (("--image", "none.png"), "this bundle makes videos of a prompt alone: leave --image out"),
        (("--prompts", "none.txt"), "none.txt does not exist: give a text file of prompts"),
        (("--height", "17"), "height is 17"),
    ],
)
def test_an_error_is_one_line(run_calibrate, path, arguments, message):
    before = (path / "manifest.json").read_bytes()
    check_error(run_calibrate(*arguments), message)
    assert (path / "manifest.json").read_bytes() == before


def test_a_bundle_of_images_needs_one(path, run_command, monkeypatch):
    bundle = Bundle.open(path)
    images = {"image": ImageRecord(operations=())}
    manifest = dataclasses.replace(bundle.manifest, tokenizers={}, images=images)
    changed = dataclasses.replace(bundle, manifest=manifest)
    monkeypatch.setattr(Bundle, "open", lambda _: changed)
    check_error(run_command("calibrate", path, *QUICK), "give some with --image FILE")


def test_a_bundle_whose_vocabulary_lacks_the_built_in_prompts_asks_for_others(path, run_command):
    check_error(run_command("calibrate", path, *QUICK), "give some with --prompts FILE")


def test_a_denoiser_without_layers_is_refused(run_calibrate, path, tmp_path):
    shutil.rmtree(path)
    hand_made_bundle.make_bundle(path)
    check_error(
        run_calibrate("--components", "unet"),
        "unet/model.onnx has no convolution or linear layer: choose other components",
    )


def test_a_bundle_that_is_not_there_is_one_line(run_command, tmp_path):
    check_error(run_command("calibrate", tmp_path / "none"), "does not exist")


def test_an_int8_variant_that_is_there_needs_force(calibrated, run_command, tmp_path):
    path, _ = calibrated
    check_error(run_command("calibrate", path, *QUICK), "replace it with --force")


def test_an_interrupt_says_how_to_go_on_below_the_bar(run_calibrate, path, monkeypatch):
    def interrupt(*_, on_progress, **__):
        on_progress(SamplingProgress(1, 2, 3, 4))
        raise KeyboardInterrupt

    make_up_times(monkeypatch)
    monkeypatch.setattr(calibration, "collect", interrupt)
    monkeypatch.setattr(
        "mutoscope.calibration.commands.progress_bars.ProgressBar", make_terminal_bar
    )
    before = (path / "manifest.json").read_bytes()
    result = run_calibrate("--components", "unet")
    assert result.exit_code == EXIT_INTERRUPTED
    assert result.stdout == ""
    bar, advice, end = result.stderr.split("\n")
    assert end == ""
    assert bar.startswith("\rcollecting ranges [")
    assert advice == (
        "error: interrupted; what was collected is kept: give the command again to go on"
    )
    assert (path / "manifest.json").read_bytes() == before


def test_without_onnx_ir_the_command_names_the_extra(run_command, path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("mutoscope.calibration")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    check_error(
        run_command("calibrate", path),
        "this command needs onnx_ir, which is not installed: pip install 'mutoscope[calibrate]'",
    )
