import json
import shutil
import subprocess
import sys

import pytest

from mutoscope.calibration import plan_finding
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.main import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK
from tests.calibration.small_calibration import PROMPTS, read_files
from tests.calibration.tuned_bundle import NUM_STEPS, PLAN, TUNED, make_up_passes
from tests.conftest import run_in_process

USAGE_ERROR = 2
QUICK = ("--num-samples", "1", "--num-threads", "1", "--no-guidance-passes", "--steps", NUM_STEPS)


@pytest.fixture
def path(reusing_path):
    return reusing_path


@pytest.fixture
def run_tune(path, prompts, run_command):
    """A function that tunes as little as is possible."""

    def run(*arguments):
        arguments = (path, "--prompts", prompts, "--name", PLAN, *QUICK, *arguments)
        return run_command("tune", *map(str, arguments))

    return run


@pytest.fixture(scope="module")
def tuned(reusing_bundle, tmp_path_factory):
    """A bundle with a plan, and what the command that made it wrote."""
    folder = tmp_path_factory.mktemp("tuned")
    path = shutil.copytree(reusing_bundle, folder / "bundle")
    prompts = folder / "prompts.txt"
    prompts.write_text(PROMPTS)
    arguments = (path, "--prompts", prompts, "--name", PLAN, *QUICK, "--min-psnr", "25")
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_up_passes(monkeypatch)
        result = run_in_process("tune", *map(str, arguments))
    assert result.exit_code == EXIT_OK, result.stderr
    return path, result


def test_the_table_says_what_was_found_and_how_to_run_it(tuned):
    path, result = tuned
    lines = result.stdout.splitlines()
    assert lines[0] == (
        f"{path}: {PLAN} is a plan for {TUNED} with {NUM_STEPS} steps in float32; 1 samples, at "
        "least 25 dB"
    )
    for beginning, within in (
        ("rows that reuse features: ", f" of {NUM_STEPS} ("),
        ("rows without guidance: ", f" of {NUM_STEPS}"),
        (f"PSNR against {TUNED}: ", " dB (worst clip)"),
        ("a clip: ", " x)"),
        ("a pass of the denoiser: 1000.0 ms", "with reused features 300.0 ms"),
        ("guidance: separate passes, as before", "(not measured)"),
        ("found with ", " clips in "),
    ):
        (line,) = [line for line in lines if line.startswith(f"  {beginning}")]
        assert within in line
    assert lines[-1] == (
        f'run it: mutoscope generate "..." --bundle {path} --scheduler {PLAN} '
        f"--num-inference-steps {NUM_STEPS} -o out.mp4"
    )


def test_the_plan_generates_and_passes_verification(tuned, run_command, tmp_path):
    path, _ = tuned
    output = tmp_path / "clip.npy"
    arguments = ("a red circle", "--bundle", path, "--scheduler", PLAN, "-o", output)
    result = run_command("generate", *arguments)
    assert result.exit_code == EXIT_OK, result.stderr
    assert output.stat().st_size > 0
    assert run_command("verify", path).exit_code == EXIT_OK


def test_json_is_one_object_and_nothing_else(run_tune, path):
    result = run_tune("--json", "--min-psnr-db", "20", "--seed", "3")
    assert result.exit_code == EXIT_OK, result.stderr
    record = json.loads(result.stdout)  # fails for anything beside the object
    assert record["bundle"] == str(path)
    assert (record["name"], record["scheduler"]) == (PLAN, TUNED)
    assert record["num_inference_steps"] == record["num_rows"] == NUM_STEPS
    assert record["min_psnr_db"] == 20.0 <= record["median_psnr_db"]
    assert record["seconds_before"] > 0
    assert record["guidance_passes"] == "separate"
    assert "guidance_timing" not in record
    plan = Bundle.open(path).load_schedule(PLAN, NUM_STEPS)
    reused = [i for i, row in enumerate(plan.rows) if row.denoiser is not None]
    assert record["reused_rows"] == reused
    assert plan.provenance["plan"]["seed"] == 3


def test_options_reach_the_tuning(run_tune, path):
    result = run_tune("--no-reuse", "--min-psnr-db", "15", "--json")
    assert result.exit_code == EXIT_OK, result.stderr
    assert json.loads(result.stdout)["reused_rows"] == []
    result = run_tune(
        *("--no-guidance-interval", "--scheduler", "euler-ancestral", "--steps", "4", "--json"),
        *("--min-psnr-db", "15", "--variant", "float32", "--force"),
    )
    assert result.exit_code == EXIT_OK, result.stderr
    record = json.loads(result.stdout)
    assert record["unguided_rows"] == []
    assert record["scheduler"] == "euler-ancestral"
    assert record["num_inference_steps"] == 4
    assert record["chose_variant"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scheduler", "euler"), "scheduler 'euler' is not in this bundle: use ddim, "),
        (("--steps", "5"), "num_inference_steps is 5; this bundle has tables of ddim for"),
        (("--min-psnr", "nan"), "min_psnr_db is nan; it must be a number: use 30"),
        (("--no-reuse", "--no-guidance-interval"), "ddim has nothing to tune: reuse is left out"),
        (("--prompts", "none.txt"), "none.txt does not exist: give a text file of prompts"),
        (("--min-psnr", "250"), "no row of ddim can be changed at 250 dB"),
    ],
)
def test_an_error_is_one_line_and_changes_nothing(run_tune, path, arguments, message):
    before = read_files(path)
    result = run_tune("--scheduler", TUNED, *arguments)
    assert result.exit_code == EXIT_ERROR
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert read_files(path) == before


def test_a_plan_that_is_there_needs_force(tuned, run_command):
    path, _ = tuned
    result = run_command("tune", path, "--name", PLAN, "--steps", str(NUM_STEPS))
    assert result.exit_code == EXIT_ERROR
    assert "choose another --name, or replace it with --force" in result.stderr


def test_wrong_usage_is_exit_code_2(run_tune):
    for arguments in (("--num-samples", "few"), ("--num-threads", "0"), ("--steps", "x")):
        result = run_tune(*arguments)
        assert result.exit_code == USAGE_ERROR
        assert result.stdout == ""


def test_an_interrupt_leaves_nothing_behind(run_tune, path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan_finding, "make_costs", interrupt)
    before = read_files(path)
    result = run_tune()
    assert result.exit_code == EXIT_INTERRUPTED
    assert result.stderr.splitlines()[-1] == "error: interrupted; nothing was left behind"
    assert read_files(path) == before


def test_help_has_examples_and_the_unit_of_options(run_command):
    result = run_command("tune", "--help")
    assert result.exit_code == EXIT_OK
    assert "mutoscope tune bundle --variant int8 --name ddim-reuse-int8" in result.stdout
    for option in ("--min-psnr-db", "DB", "--num-samples N", "--prompts FILE", "--steps"):
        assert option in result.stdout


def test_the_command_runs_without_what_only_the_calibration_needs(path, prompts):
    program = (
        "import sys; sys.modules['onnx_ir'] = None; from mutoscope.runtime.main import run; "
        "sys.exit(run(sys.argv[1:]))"
    )
    arguments = ("tune", path, "--prompts", prompts, "--name", PLAN, *QUICK, "--min-psnr-db", "15")
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == EXIT_OK, done.stderr
