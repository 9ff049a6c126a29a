"""The benchmark of GPUs, as far as a machine without one can show that it works."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import document, gpu, gpu_device, gpu_processes, gpu_rows
from benchmarks.against_diffusers import PROMPT
from benchmarks.against_peers import SHIPPED_CHECKPOINT
from benchmarks.gpu_processes import RowError
from benchmarks.gpu_rows import DTYPES, OWN, PEERS, Row, find_obstacle, list_rows
from benchmarks.gpu_table import describe
from mutoscope.engines.cuda_device import GpuRecord
from mutoscope.engines.options import TENSORRT_MODULES, EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import EngineError, ParameterError
from mutoscope.runtime.metrics import MAXIMUM_PSNR_DB
from tests.runtime.hand_made_bundle import make_bundle

TRIAL = (
    *("--device", "cpu", "--steps", "3", "--rounds", "2", "--only", "onnxruntime-cpu"),
    *("--prompt", "a red circle"),
)
GPU = GpuRecord("Test GPU", "sm86", 12 * 2**30, is_integrated=False, driver_version="580.1")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("gpu") / "bundle")


@pytest.fixture(scope="module")
def record(path: Path) -> dict[str, Any]:
    """What the command prints of a hand-made bundle on the CPU."""
    with redirect_stdout(io.StringIO()) as stdout:
        assert gpu.main([str(path), *TRIAL, "--json"]) == 0
    value: dict[str, Any] = json.loads(stdout.getvalue())
    return value


@pytest.fixture
def contest(path: Path, tmp_path: Path) -> gpu.Contest:
    return gpu.Contest(Bundle.open(path), SHIPPED_CHECKPOINT, "cpu", PROMPT, 3, tmp_path, None)


def test_rows_are_all_that_runs_in_all_that_it_computes_in() -> None:
    rows = list_rows("cuda")
    names = [name for name in (*PEERS, *OWN) if name != "onnxruntime-cpu"]
    assert rows == [Row(name, dtype) for name in names for dtype in DTYPES]
    assert {row.engine for row in rows} == {None, *TENSORRT_MODULES}
    on_cpu = list_rows("cpu")
    assert [str(row) for row in on_cpu if row not in rows] == [
        f"onnxruntime-cpu {dtype}" for dtype in DTYPES
    ]


def test_rows_are_chosen_by_name_by_type_or_by_both() -> None:
    assert list_rows("cuda", ["tensorrt"]) == [Row("tensorrt", dtype) for dtype in DTYPES]
    assert {row.dtype for row in list_rows("cuda", ["int8"])} == {"int8"}
    both = list_rows("cuda", ["onnxruntime-cuda float16", "diffusers"])
    assert [str(row) for row in both] == [
        *(f"diffusers {dtype}" for dtype in DTYPES),
        "onnxruntime-cuda float16",
    ]
    with pytest.raises(ParameterError, match="--only is 'tensorrt-rx': use one of diffusers, "):
        list_rows("cuda", ["tensorrt", "tensorrt-rx"])
    with pytest.raises(ParameterError, match="'onnxruntime-cpu'"):
        list_rows("cuda", ["onnxruntime-cpu"])


@pytest.mark.parametrize("row", list_rows("cuda"), ids=str)
def test_what_ours_is_told_is_what_engines_know(row: Row) -> None:
    if not row.is_peer:
        options = {key: value for key, value in row.options.items() if key != "variant"}
        assert EngineOptions(**options).engine == (row.engine or "onnxruntime")
        assert row.options["variant"] == row.dtype


@pytest.mark.parametrize(
    ("row", "device", "reason"),
    [
        (Row("diffusers", "int8"), "cuda", "diffusers has no int8 of its own"),
        (Row("torch-compile", "float16"), "cpu", "float16 is for GPUs in PyTorch"),
        (Row("tensorrt", "int8"), "cuda", "the bundle has no int8: mutoscope calibrate {path}"),
        (
            Row("onnxruntime-cuda", "float16"),
            "cuda",
            "the bundle has no float16: mutoscope export {checkpoint} -o {path} --dtype float16 "
            "--add",
        ),
        (Row("diffusers", "float16"), "cuda", None),
        (Row("onnxruntime-cpu", "float32"), "cpu", None),
    ],
    ids=str,
)
def test_a_row_that_cannot_run_has_a_reason(
    row: Row, device: str, reason: str | None, path: Path
) -> None:
    expected = reason and reason.format(path=path, checkpoint=SHIPPED_CHECKPOINT)
    assert find_obstacle(row, Bundle.open(path), SHIPPED_CHECKPOINT, device) == expected


def test_diffusers_needs_a_checkpoint(path: Path, tmp_path: Path) -> None:
    reason = find_obstacle(Row("diffusers", "float32"), Bundle.open(path), tmp_path, "cuda")
    assert reason == f"{tmp_path} is no checkpoint of diffusers: give one with --checkpoint"


def test_an_engine_that_is_not_here_is_a_reason_in_one_line(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(options: EngineOptions) -> None:
        asked.append(options)
        raise EngineError("there is none: install it")

    monkeypatch.setattr(gpu_rows, "check_available", refuse)
    for name in OWN:
        reason = find_obstacle(Row(name, "float32"), Bundle.open(path), Path(), "cuda")
        assert reason == "there is none: install it"
    assert [options.cuda_graphs for options in asked] == [name.endswith("graphs") for name in OWN]


def test_a_trial_on_the_cpu_measures_clips_and_steps(record: dict[str, Any]) -> None:
    assert record["gpu"] is None
    assert record["num_inference_steps"] == 3
    (row,) = record["rows"]
    assert (row["name"], row["dtype"]) == ("onnxruntime-cpu", "float32")
    assert row["psnr_db"] == MAXIMUM_PSNR_DB
    assert row["properties"]["engine"] == "onnxruntime"
    assert row["seconds_clip"]["count"] == 2 * gpu.CLIPS
    assert row["seconds_step"]["count"] == 2 * 2 * gpu.CLIPS
    assert 0 < row["seconds_step"]["minimum"] <= row["seconds_step"]["median"]
    assert row["seconds_step"]["median"] < row["seconds_clip"]["median"] < row["seconds_first_clip"]
    assert row["peak_device_bytes"] is None
    assert [(one["name"], one["dtype"]) for one in record["not_run"]] == [
        ("onnxruntime-cpu", "float16"),
        ("onnxruntime-cpu", "int8"),
    ]


def test_the_table_has_a_line_for_each_row_and_for_each_reason(record: dict[str, Any]) -> None:
    seconds = {"median": 0.02, "minimum": 0.01, "count": 6}
    first = {**record["rows"][0], "seconds_step": {**seconds, "median": 0.05}}
    other = {
        **record["rows"][0],
        "name": "tensorrt",
        "dtype": "int8",
        "seconds_step": seconds,
        "seconds_clip": {**seconds, "median": 1.5},
        "seconds_first_clip": 2.5,
        "seconds_build": 61.0,
        "seconds_copies": 0.0005,
        "peak_device_bytes": 900 * 2**20,
        "peak_rss_bytes": 2**30,
        "psnr_db": 38.64,
    }
    lines = list(describe({**record, "rows": [first, other]}))
    assert "No GPU: a trial of the command on the CPU." in lines
    assert lines[-1] == (
        "- onnxruntime-cpu in int8: the bundle has no int8: mutoscope calibrate "
        + record["not_run"][1]["reason"].split()[-1]
    )
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| onnxruntime-cpu | float32 | 50.0 ms |")
    assert table[3] == (
        "| tensorrt | int8 | 20.0 ms | 10.0 ms | 2.50 x | 2.5% | 1.50 s | 10.0 ms | 2.50 s | "
        "61.0 s | 900 MiB | 1024 MiB | 38.6 dB |"
    )


def test_rows_with_one_reason_are_one_line_and_nothing_is_said_to_be_nothing(
    record: dict[str, Any],
) -> None:
    not_run = [
        {"name": "tensorrt", "dtype": dtype, "reason": "TensorRT is absent"} for dtype in DTYPES
    ]
    lines = list(describe({**record, "rows": [], "not_run": not_run}))
    assert "Nothing could run here." in lines
    assert lines[-1] == "- tensorrt in float32, float16, int8: TensorRT is absent"
    assert not any(line.startswith("|") for line in lines)


def test_the_document_has_the_table(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "RESULTS", tmp_path)
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    filled = document.fill_document("<!-- results: gpu -->\n<!-- end -->")
    assert "| onnxruntime-cpu | float32 |" in filled


def test_a_gpu_is_described_with_its_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"tensorrt": "10.13.0"}

    def find_version(name: str) -> str:
        if name not in versions:
            raise EngineError("absent")
        return versions[name]

    monkeypatch.setattr(gpu_device, "list_gpus", lambda: (GPU,))
    monkeypatch.setattr(gpu_device, "find_version", find_version)
    described = gpu_device.describe_gpu()
    assert described["cuda_runtime"]
    line = gpu_device.format_gpu({**described, "cuda_driver": "13.0"})
    assert line == (
        "Test GPU (sm86), 12 GiB; driver 580.1 for CUDA 13.0, TensorRT 10.13.0, no TensorRT for RTX"
    )


def test_without_a_gpu_there_is_one_line(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise EngineError("no GPU: install a driver")

    monkeypatch.setattr(gpu_device, "list_gpus", refuse)
    assert gpu.main([str(path), "--steps", "2"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "error: no GPU: install a driver\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--record", "--device", "cpu"], "--record keeps figures of a GPU"),
        (["--steps", "1"], "--steps must be 2 or more"),
        (["--rounds", "0"], "--rounds 1 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        gpu.main(arguments)
    assert caught.value.code == 2
    assert reason in capsys.readouterr().err


def test_engines_are_built_before_they_run_with_the_command_that_users_run(
    contest: gpu.Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    jobs: list[dict[str, Any]] = []

    def run(command: list[str], log: Path, memory: object = None) -> None:
        calls.append(command)

    def make_clips(job: dict[str, Any], memory: object = None) -> dict[str, Any]:
        jobs.append(job)
        np.save(Path(job["output"], "clip.npy"), np.zeros((1, 2, 2, 3), np.uint8))
        return dict.fromkeys(("properties", "seconds_first_clip", "seconds_copies"))

    monkeypatch.setattr(gpu, "find_obstacle", lambda *_: None)
    monkeypatch.setattr(gpu_processes, "run_process", run)
    monkeypatch.setattr(gpu, "make_clips", make_clips)
    rows = (("tensorrt-graphs", "float16"), ("onnxruntime-cuda", "int8"))
    for row in (*(Row(*names) for names in rows), Row("onnxruntime-tensorrt", "float32")):
        figures = contest.start(row, np.zeros((1, 2, 2, 3), np.uint8))
        assert figures.first["seconds_build"] > 0
    (command,) = calls
    path = str(contest.bundle.path)
    wanted = ["build", path, "--engine", "tensorrt", "--variant", "float16", "--shapes", "fixed"]
    assert command[3:] == wanted
    first, *others, built, last = [job["own"] for job in jobs]
    assert first == {"engine": "tensorrt", "cuda_graphs": True, "variant": "float16"}
    assert others == [{"execution_provider": "cuda", "variant": "int8"}] * 2
    # What it builds is built in one process, and loaded by the others.
    assert Path(dict(built["provider_options"])["trt_engine_cache_path"]).is_dir()
    assert last == built


def test_a_row_that_fails_in_a_round_is_not_in_the_table(
    contest: gpu.Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = Row("onnxruntime-cuda", "float32"), Row("tensorrt", "float32")
    run: list[tuple[Row | None, int]] = []

    def make_clip(
        self: gpu.Contest, row: Row | None, count: int, memory: object = None
    ) -> tuple[dict[str, Any], Any]:
        run.append((row, count))
        if row == bad and count:
            raise RowError("killed by signal 11")
        figures: dict[str, Any] = {"properties": {}, "seconds_first_clip": 9.0}
        figures |= {"seconds_copies": None, "seconds_step": [0.5], "seconds_clip": [2.0]}
        return figures, np.zeros((1, 2, 2, 3), np.uint8)

    monkeypatch.setattr(gpu, "find_obstacle", lambda *_: None)
    monkeypatch.setattr(gpu, "build_engines", lambda *_: None)
    monkeypatch.setattr(gpu.Contest, "run", make_clip)
    results, reasons = gpu.measure(contest, [good, bad], rounds=2)
    assert list(results) == [good]
    assert reasons == {bad: "killed by signal 11"}
    assert results[good].summarize()["seconds_step"] == {
        "median": 0.5,
        "minimum": 0.5,
        "count": 2,
    }
    # In turn, and one that failed is not tried again.
    n = gpu.CLIPS
    assert run == [(None, 0), *[(good, 0)] * 2, (bad, 0), (good, n), (bad, n), (good, n)]


def test_copies_are_timed_with_the_memory_that_engines_use(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []

    class Stream:
        def synchronize(self) -> None:
            done.append(("wait", 0))

    class Buffer:
        def __init__(self, stream: Stream) -> None:
            self.size_bytes = 0

        def grow(self, size_bytes: int) -> None:
            self.size_bytes = size_bytes

        def copy_from(self, array: Any) -> None:
            assert self.size_bytes == array.nbytes
            done.append(("in", array.nbytes))

        def copy_to(self, array: Any) -> None:
            assert self.size_bytes == array.nbytes
            done.append(("out", array.nbytes))

    monkeypatch.setattr(gpu_device, "CudaStream", Stream)
    monkeypatch.setattr(gpu_device, "DeviceBuffer", Buffer)
    arrays = [np.zeros(4, np.float32), np.zeros(1, np.int64)]
    assert gpu_device.measure_copies(arrays, [np.zeros(8, np.float32)]) > 0
    assert done[:5] == [("in", 16), ("in", 8), ("out", 32), ("wait", 0), ("in", 16)]


def test_a_bundle_is_made_once_in_all_numeric_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[str, ...]] = []

    def run(*arguments: str | Path) -> str:
        commands.append(tuple(map(str, arguments)))
        if arguments[0] == "export":
            Path(arguments[3]).mkdir()
        return ""

    monkeypatch.setattr(gpu, "run_mutoscope", run)
    for _ in range(2):
        path = gpu.make_bundle(SHIPPED_CHECKPOINT, tmp_path)
        assert path == tmp_path / "moving-shapes-all-types"
        assert path.is_dir()
    assert [command[0] for command in commands] == ["export", "calibrate"]
    assert commands[0][-2:] == ("--dtype", "float32,float16")
