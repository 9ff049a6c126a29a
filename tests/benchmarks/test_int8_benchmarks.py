import io
import json
import math
from contextlib import redirect_stdout

import pytest

from benchmarks import calibration_memory, int8_methods, int8_speed, variant_quality
from benchmarks.prompt_accuracy import FIELDS
from mutoscope.calibration.ranges import METHODS
from mutoscope.runtime.benchmarks.machine import describe_machine
from mutoscope.runtime.bundle import Bundle
from tests.calibration.layered_bundle import make_deep_bundle
from tests.runtime.hand_made_bundle import write_manifest

NUM_STEPS = 3
MIB = 2**20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_deep_bundle(tmp_path_factory.mktemp("int8") / "bundle")


@pytest.fixture(scope="module")
def machine():
    return describe_machine()


@pytest.fixture(scope="module")
def record(bundle, tmp_path_factory):
    """What the comparison prints for one sample and one clip."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a red circle\n")
    with redirect_stdout(io.StringIO()) as stdout:
        code = int8_methods.main(
            [
                *("--bundle", str(bundle), "--prompts", str(prompts), "--json"),
                *("--num-samples", "1", "--num-clips", "1"),
                *("--num-inference-steps", str(NUM_STEPS)),
            ]
        )
    assert code == 0
    return json.loads(stdout.getvalue())


def test_every_way_to_calibrate_has_a_row(record):
    ways = [row["way"] for row in record["rows"]]
    assert ways == [
        *(f"{method}, all steps" for method in METHODS),
        "minmax, the first step alone",
        "mse, the first step alone",
        "minmax, a middle step alone",
        "mse, a middle step alone",
        "minmax, the last step alone",
        "mse, the last step alone",
        "minmax, all steps, outliers moved into weights",
        "mse, all steps, outliers moved into weights",
        "minmax, ranges for each half of the steps",
        "minmax, all steps, the graph for TensorRT on the CPU",
    ]


def test_figures_of_the_comparison_are_finite_and_differ(record):
    for row in record["rows"]:
        assert row["num_inference_steps"] == NUM_STEPS
        figures = [value for value in row.values() if isinstance(value, float)]
        assert len(figures) == 4
        assert all(math.isfinite(figure) and figure > 0 for figure in figures)
        assert row["minimum_psnr_db"] == row["median_psnr_db"]  # of one clip
    assert len({row["one_pass_error"] for row in record["rows"]}) > len(METHODS)


def test_the_comparison_is_a_table_for_each_number_of_steps(record):
    other = [{**row, "num_inference_steps": 8} for row in record["rows"]]
    lines = list(int8_methods.describe({**record, "rows": [*record["rows"], *other]}))
    heads = [line for line in lines if line.endswith("| latents | one pass |")]
    assert [line.split("|")[1].strip() for line in heads] == ["3 steps", "8 steps"]
    rows = [line for line in lines if line.startswith("| minmax, all steps |")]
    assert len(rows) == 2
    assert f" {record['rows'][0]['median_psnr_db']:.1f} dB |" in rows[0]
    assert "ranges of 1 clips, judged by 1 others" in lines[2]


def test_the_size_of_a_variant_is_that_of_what_processors_run(tmp_path):
    path = make_deep_bundle(tmp_path / "bundle")
    before = Bundle.open(path)
    plain = {name: record.size_bytes for name, record in before.manifest.files.items()}
    graphs = [f"{name}/model.onnx" for name in before.manifest.components]
    assert variant_quality.measure_size(before, "float32") == sum(plain[name] for name in graphs)
    for name, size in (("model_int8.onnx", 5000), ("model_int8_cpu.onnx", 700)):
        (path / "unet" / name).write_bytes(bytes(size))
        (path / "unet" / f"{name}.data").write_bytes(bytes(size * 10))
    manifest = json.loads((path / "manifest.json").read_text())
    unet = manifest["components"]["unet"]
    unet["variants"]["int8"] = "unet/model_int8.onnx"
    unet["cpu_graphs"] = {"int8": "unet/model_int8_cpu.onnx"}
    write_manifest(path, manifest)
    others = sum(plain[name] for name in graphs if not name.startswith("unet/"))
    assert variant_quality.measure_size(Bundle.open(path), "int8") == others + 700 + 7000


def test_the_table_of_variants_has_no_psnr_of_the_reference(machine):
    scores = dict.fromkeys((*FIELDS, "all"), 0.75)
    row = {
        "num_inference_steps": 25,
        "clips": 64,
        "size_bytes": 21_400_000,
        "seconds_median": 3.456,
        "median_psnr_db": 200.0,
        "minimum_psnr_db": 200.0,
        **scores,
    }
    other = {
        "size_bytes": 6_100_000,
        "seconds_median": 1.728,
        "median_psnr_db": 33.33,
        "minimum_psnr_db": 24.44,
    }
    rows = [{**row, "variant": "float32"}, {**row, **other, "variant": "int8"}]
    lines = list(variant_quality.describe({"machine": machine, "rows": rows}))
    assert "64 prompts that training never saw" in lines[2]
    cells = " | ".join(["75.0%"] * (len(FIELDS) + 1))
    assert lines[-2:] == [
        f"| 25 | float32 | 21.4 MB | 1.00 x | - | - | {cells} |",
        f"| 25 | int8 | 6.1 MB | 2.00 x | 33.3 dB | 24.4 dB | {cells} |",
    ]
    # Each row of a table has as many cells as its head.
    assert len({line.count("|") for line in lines[4:]}) == 1


def test_the_table_of_memory_has_a_row_for_each_process(machine):
    row = {"num_samples": 1, "peak_rss_bytes": 900 * MIB, "seconds": 61.6}
    rows = [
        {**row, "what": "sampling alone", "peak_anonymous_bytes": 500 * MIB},
        # Not every system tells it.
        {**row, "what": "ranges of 1 clip", "peak_anonymous_bytes": None},
    ]
    record = {"machine": machine, "bundle": "tiny", "rows": rows}
    lines = list(calibration_memory.describe(record))
    assert lines[2] == "tiny, the UNet observed:"
    assert lines[-2:] == [
        "| sampling alone | 900 MiB | 500 MiB | 62 |",
        "| ranges of 1 clip | 900 MiB | - | 62 |",
    ]


@pytest.mark.parametrize("is_random", [True, False])
def test_a_copy_is_calibrated_once_and_the_bundle_is_left_alone(
    bundle, tmp_path, monkeypatch, is_random
):
    calls = []

    def run(*arguments):
        calls.append(arguments)
        (arguments[1] / "calibrated").touch()
        return ""

    monkeypatch.setattr(int8_speed, "run_mutoscope", run)
    target = tmp_path / "copy-int8"
    for _ in range(2):
        assert int8_speed.calibrate_copy(bundle, target, is_random) == target
    (arguments,) = calls
    assert arguments[0] == "calibrate"
    assert arguments[1] != bundle
    assert arguments[2:] == (int8_speed.RANDOM_OPTIONS if is_random else int8_speed.SHIPPED_OPTIONS)
    assert (target / "calibrated").exists()
    assert not (bundle / "calibrated").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["copy-int8"]


def test_a_calibration_that_fails_is_not_taken_for_done(bundle, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory")

    target = tmp_path / "copy-int8"
    monkeypatch.setattr(int8_speed, "run_mutoscope", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        int8_speed.calibrate_copy(bundle, target, is_random=True)
    assert not target.exists()
    monkeypatch.setattr(int8_speed, "run_mutoscope", lambda *_: "")
    int8_speed.calibrate_copy(bundle, target, is_random=True)
    assert Bundle.open(target).manifest == Bundle.open(bundle).manifest


def test_random_models_are_calibrated_with_options_that_the_command_takes(
    bundle, tmp_path, monkeypatch, run_command
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Reaches the prompts, which is after every option was read and checked.
    result = run_command(
        "calibrate", bundle, *int8_speed.RANDOM_OPTIONS, "--prompts", tmp_path / "none.txt"
    )
    assert "none.txt does not exist" in result.stderr
