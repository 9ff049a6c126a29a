"""`mutoscope bench`: what it prints, in which order its contestants run, and how they may fail."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.benchmarks import measuring
from mutoscope.runtime.benchmarks.benchmark import measure_bundle
from mutoscope.runtime.benchmarks.contestants import Contestant, make_own, make_peers
from mutoscope.runtime.benchmarks.measuring import compute_error, summarize, take_turns
from mutoscope.runtime.benchmarks.memory import PeakMemory, watch_memory
from mutoscope.runtime.benchmarks.records import GuidanceRow, Results, Row, Seconds
from mutoscope.runtime.benchmarks.tables import format_results, format_seconds
from mutoscope.runtime.benchmarks.worker_process import WorkerError
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.component_inputs import make_inputs
from mutoscope.runtime.json_records import read_record, write_record
from mutoscope.runtime.settings import make_settings
from tests.conftest import RunCommand
from tests.runtime.test_lean_import import FORBIDDEN, roots

COMPONENTS = ["text_encoder", "unet", "vae_decoder"]
ONCE = ("--count", "1", "--warm-ups", "1")
# Rounding of float32 in another order.
RELATIVE_ERROR = 1e-5
ALLOCATED = 2**27
# Python itself and the pages that it touches beside the array.
PROCESS_BYTES = 2**26

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SETTLE_SECONDS", 0.0)


def make_turns(log: list[str], fails_at: dict[str, int] | None = None) -> dict[str, Any]:
    """Turns of 1, 2, 3, ... seconds that log who runs; one may fail in a round."""

    def make(name: str) -> Callable[[], float]:
        rounds = iter(range(100))

        def turn() -> float:
            index = next(rounds)
            if (fails_at or {}).get(name) == index:
                raise WorkerError(f"{name} died")
            log.append(name)
            return float(index)

        return turn

    return {name: make(name) for name in "ABC"}


def ignore(name: str, err: WorkerError) -> None:
    raise AssertionError(f"{name} failed: {err}")


def test_all_run_once_in_every_round_and_warm_ups_are_dropped() -> None:
    log: list[str] = []
    seconds = take_turns(make_turns(log), warm_ups=2, count=3, on_failure=ignore)
    assert "".join(log) == "ABC" * 5
    assert seconds == {name: [2.0, 3.0, 4.0] for name in "ABC"}


def test_the_others_go_on_where_one_fails() -> None:
    log: list[str] = []
    failed: dict[str, str] = {}
    seconds = take_turns(
        make_turns(log, {"B": 1}),
        warm_ups=0,
        count=3,
        on_failure=lambda name, err: failed.update({name: str(err)}),
    )
    assert "".join(log) == "ABC" + "AC" * 2
    assert list(seconds) == ["A", "C"]
    assert failed == {"B": "B died"}


def test_a_summary_has_median_minimum_and_count() -> None:
    assert summarize([5.0, 1.0, 2.0]) == Seconds(median=2.0, minimum=1.0, count=3)


def test_the_error_is_that_of_the_worst_output_relative_to_its_length() -> None:
    wanted = {"a": np.array([3, 4], np.uint8), "b": np.array([1.0, 0.0], np.float32)}
    outputs = {"a": np.array([3, 5], np.uint8), "b": np.array([1.0, 0.01], np.float32)}
    assert compute_error(outputs, wanted) == pytest.approx(0.2)
    assert compute_error({"a": np.zeros(2)}, {"a": np.zeros(2)}) == 0.0


def test_json_is_one_object_with_a_row_for_each_component_and_contestant(
    run_command: RunCommand, bundle_path: Path
) -> None:
    done = run_command("bench", bundle_path, "--against", "onnxruntime-plain", *ONCE, "--json")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("\n") == 1
    results = read_record(Results, json.loads(done.stdout), "stdout")
    names = ["onnxruntime-plain", "mutoscope onnxruntime"]
    found = [(row.component, row.contestant) for row in results.rows]
    assert found == [(component, name) for component in COMPONENTS for name in names]
    assert (results.num_frames, results.height, results.width) == (6, 32, 48)
    assert results.machine["cores"] > 0
    assert "numpy" in results.machine
    for row in results.rows:
        assert row.seconds_run.count == row.seconds_load.count == 1
        assert 0 < row.seconds_run.minimum <= row.seconds_run.median
        assert row.properties["engine"] == "onnxruntime"
        if row.contestant == names[0]:
            assert row.ratio == 1.0
            assert row.relative_l2_error is None
        else:
            base = results.rows[results.rows.index(row) - 1].seconds_run.median
            assert row.ratio == base / row.seconds_run.median
            assert row.relative_l2_error == 0.0
    assert [row.contestant for row in results.guidance] == names[1:]
    if sys.platform == "linux":
        peaks = [(row.peak_rss_bytes or 0, row.peak_anonymous_bytes or 0) for row in results.rows]
        assert all(rss > anonymous > 0 for rss, anonymous in peaks)


def test_people_get_tables_of_the_components_that_they_ask_for(
    run_command: RunCommand, bundle_path: Path
) -> None:
    done = run_command("bench", bundle_path, "--component", "unet", "--memory", "low", *ONCE)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("\n### ") == 1
    assert "\n| mutoscope onnxruntime |" in done.stdout
    # Neither compared nor timed in two ways, with one contestant and low memory.
    assert "error" not in done.stdout
    assert "guidance" not in done.stdout
    assert "unet: mutoscope onnxruntime: first run\n" in done.stderr


def test_openvino_takes_part_as_a_peer_and_as_an_engine(
    run_command: RunCommand, bundle_path: Path
) -> None:
    pytest.importorskip("openvino")
    arguments = ("--against", "openvino", "--engine", "openvino,onnxruntime", "--num-threads", "1")
    done = run_command("bench", bundle_path, *arguments, "--component", "unet", *ONCE, "--json")
    assert done.exit_code == 0, done.stderr
    results = read_record(Results, json.loads(done.stdout), "stdout")
    names = ["openvino", "mutoscope openvino:f32", "mutoscope onnxruntime"]
    assert [row.contestant for row in results.rows] == names
    for row in results.rows:
        # A graph that ran for its outputs alone is the reference.
        assert row.relative_l2_error is not None
        assert row.relative_l2_error < RELATIVE_ERROR
    assert [row.properties["precision"] for row in results.rows[:2]] == ["f32", "f32"]
    assert results.num_threads == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--against", "tensorflow"], 1, "peer 'tensorflow' is unknown: use diffusers, "),
        (["--against", "diffusers"], 1, "was made of: add --checkpoint DIR"),
        (
            ["--against", "diffusers", "--checkpoint", "/nowhere"],
            1,
            "checkpoint /nowhere does not exist",
        ),
        (["--checkpoint", "/nowhere"], 2, "--checkpoint needs --against diffusers"),
        (["--lora", "x"], 2, "--lora needs --checkpoint"),
        (["--component", "transformer"], 1, "this bundle has no transformer; it has text_encoder"),
        (["--engine", "tflite"], 1, "engine is 'tflite': use one of onnxruntime"),
        (["--engine", ","], 1, "--engine is empty: use onnxruntime"),
        (["--height", "33"], 1, "height is 33"),
        (["--num-frames", "33"], 1, "num_frames is 33; this bundle allows at most 32: use 32"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(
    run_command: RunCommand,
    bundle_path: Path,
    arguments: list[str],
    exit_code: int,
    message: str,
) -> None:
    done = run_command("bench", bundle_path, *arguments)
    assert done.exit_code == exit_code
    assert message in done.stderr
    assert "making the inputs" not in done.stderr
    assert done.stdout == ""


def test_a_missing_package_is_named_with_what_installs_it(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Exception, match=r"needs torch, .*pip install 'mutoscope\[export\]'"):
        make_peers(["diffusers"], bundle_path, checkpoint=str(bundle_path))


def test_who_dies_or_fails_is_named_and_the_rest_is_measured(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    own = make_own(bundle_path, EngineOptions())
    lost = Contestant("lost", own.module, {**own.settings, "bundle": "/nowhere"}, is_peer=True)
    contestants = [
        Contestant("broken", "no_such_module", own.settings, is_peer=True),
        lost,
        Contestant("failing", own.module, {**own.settings, "engine": "tflite"}, is_peer=True),
        own,
    ]
    results = measure_bundle(
        bundle,
        make_settings(bundle, seed=0),
        contestants,
        components=["unet"],
        warm_ups=1,
        count=1,
        report=lambda line: None,
    )
    assert [row.contestant for row in results.rows] == ["mutoscope onnxruntime"]
    # The first peer is the measure, and it is not there.
    assert results.rows[0].ratio is None
    errors = {failure.contestant: failure.error for failure in results.failures}
    assert list(errors) == ["broken", "lost", "failing"]
    assert "/nowhere does not exist" in errors["lost"]
    assert errors["broken"].endswith("No module named no_such_module")
    assert "engine is 'tflite'" in errors["failing"]
    assert all("\n" not in error for error in errors.values())


def test_the_command_fails_if_one_did_and_prints_the_rest(
    run_command: RunCommand, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ("no_such_module", {})
    monkeypatch.setitem(
        sys.modules["mutoscope.runtime.benchmarks.contestants"].PEERS, "onnxruntime-plain", broken
    )
    done = run_command(
        "bench", bundle_path, "--against", "onnxruntime-plain", "--component", "unet", *ONCE
    )
    assert done.exit_code == 1
    assert "| mutoscope onnxruntime |" in done.stdout
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: unet: onnxruntime-plain died: ")


def test_inputs_are_those_of_a_generation_and_the_same_every_time(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    settings = make_settings(bundle, seed=3, num_frames=2)
    inputs, again = make_inputs(bundle, settings), make_inputs(bundle, settings)
    assert list(inputs) == COMPONENTS
    shapes = {name: array.shape for name, array in inputs["unet"].items()}
    assert shapes == {
        "sample": (1, 4, 2, 4, 6),
        "timestep": (),
        "encoder_hidden_states": (1, 8, 6),
    }
    assert inputs["vae_decoder"]["latents"].shape == (1, 4, 2, 4, 6)
    for name, feeds in inputs.items():
        for input_name, array in feeds.items():
            np.testing.assert_array_equal(array, again[name][input_name])


@linux_only
def test_the_peak_of_a_process_is_seen() -> None:
    peak = PeakMemory()
    code = f"import time; x = bytearray({ALLOCATED}); time.sleep(0.3); del x; time.sleep(0.2)"
    with (
        subprocess.Popen([sys.executable, "-c", code]) as process,
        watch_memory(process.pid, peak),
    ):
        process.wait()
    for found in (peak.peak_rss_bytes, peak.peak_anonymous_bytes):
        assert found is not None
        assert ALLOCATED <= found < ALLOCATED + PROCESS_BYTES


@linux_only
def test_ctrl_c_ends_the_workers_too(bundle_path: Path) -> None:
    code = "from mutoscope.runtime.main import main; main()"
    command = [sys.executable, "-c", code, "bench", str(bundle_path), "--count", "1000"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that a shell runs in the background inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        while "rounds" not in process.stderr.readline():
            assert process.poll() is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 1
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.splitlines()[-1].startswith("error: interrupted")
    deadline = time.monotonic() + 5
    while Path(f"/proc/{children[0]}").exists():
        assert time.monotonic() < deadline


def test_the_worker_imports_nothing_that_only_the_export_needs() -> None:
    assert not FORBIDDEN & roots("import mutoscope.runtime.benchmarks.worker")


def test_tables_leave_out_what_was_not_compared() -> None:
    seconds = Seconds(0.0125, 0.01, 5)
    alone = Row("unet", "a", {}, seconds, 1.5, seconds, 2**21, None)
    results = Results({"machine": "m", "cores": 2, "python": "3"}, "b", "f", 1, 8, 8, 1, (alone,))
    assert read_record(Results, write_record(results), "results") == results
    text = "\n".join(format_results(results))
    assert "| a | 12.5 ms |    1.50 s |     12.5 ms | 10.0 ms |       2 MiB |         - |" in text
    compared = Row("unet", "b", {}, seconds, 1.5, seconds, 1, 1, 2e-7, 1.6)
    guidance = GuidanceRow("unet", "b", seconds, Seconds(0.01, 0.01, 5))
    text = "\n".join(
        format_results(Results({**results.machine}, "b", "f", 1, 8, 8, 1, (compared,), (guidance,)))
    )
    assert "| 2.0e-07 | 1.60 x |" in text
    assert "two passes 12.5 ms, a batch of two 10.0 ms: a batch of two is faster by 25.0%." in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.000123, "0.123 ms"),
        (0.0431, "43.1 ms"),
        (0.9999, "1.00 s"),
        (1.314, "1.31 s"),
        (27.04, "27.0 s"),
        (0.1124, "112 ms"),
        (132, "132 s"),
    ],
)
def test_times_have_three_digits(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
