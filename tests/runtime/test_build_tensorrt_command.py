"""`mutoscope build --engine tensorrt-rtx` and what the other commands make of what it built."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mutoscope.runtime import main
from tests.runtime.emulated_gpu import EmulatedGpu, emulate_gpu
from tests.runtime.test_variants import add_variants

pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13 (Linux, x86-64)")

BUILD = ("--engine", "tensorrt-rtx", "--target", "sm86")
COMPONENTS = ["text_encoder", "unet", "vae_decoder"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedGpu]:
    with emulate_gpu(monkeypatch) as machine:
        yield machine


def run(*arguments: object) -> int:
    return main.run([str(argument) for argument in arguments])


def build(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run("build", *arguments, *BUILD, "--json") == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    built: list[dict[str, Any]] = result["built"]
    return built


def test_build_proves_what_it_builds_and_generate_makes_the_same_video_of_it(
    own_bundle: Path, tmp_path: Path, machine: EmulatedGpu, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build(capsys, own_bundle)
    assert [record["component"] for record in built] == COMPONENTS
    for record in built:
        assert record["problem"] is None
        assert record["proof"]["psnr_db"] >= record["proof"]["minimum_psnr_db"]
        assert record["proof"]["seconds_run"] > 0
        assert record["proof"]["memory_bytes"] == {"weights": 3000, "activations": 2000}
        assert record["tensorrt"]["seconds_build"] > 0
        assert Path(record["folder"]).parent.parent == own_bundle / "engines"
    videos = {}
    for engine in ("onnxruntime", "tensorrt-rtx", "auto"):
        videos[engine] = tmp_path / f"{engine}.npy"
        arguments = ["a red circle", "--bundle", own_bundle, "--seed", 1, "--engine", engine]
        assert run("generate", *arguments, "-o", videos[engine]) == 0
    assert len({path.read_bytes() for path in videos.values()}) == 1
    assert "unet: float32 with tensorrt-rtx, " in capsys.readouterr().err


def test_build_prints_how_close_and_how_fast_each_variant_is_and_which_one_is_taken(
    own_bundle: Path, machine: EmulatedGpu, capsys: pytest.CaptureFixture[str]
) -> None:
    add_variants(own_bundle)
    machine.slow = {"unet/model_fp16.onnx": 0.02}
    variants = ["--variant", "float16", "--variant", "int8"]
    assert run("build", own_bundle, *BUILD, "--component", "unet", *variants) == 0
    title, float16, int8, choice = capsys.readouterr().out.splitlines()
    assert title.split()[:3] == ["component", "variant", "size"]
    for row, name in ((float16, "float16"), (int8, "int8")):
        assert row.split()[:2] == ["unet", name]
        assert " dB " in row
        assert " ms " in row
        assert " 5.0 kB " in row
    assert choice.startswith("unet: float16 ")
    assert choice.endswith("generate --engine auto takes int8 of these")


def test_build_leaves_what_is_there_and_says_why_it_builds_another(
    own_bundle: Path, machine: EmulatedGpu, capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = build(capsys, own_bundle, "--component", "unet")
    plan = Path(first["folder"], "model.plan")
    time = plan.stat().st_mtime_ns
    assert build(capsys, own_bundle, "--component", "unet") == [first]
    assert plan.stat().st_mtime_ns == time
    assert run("build", own_bundle, "--component", "unet", *BUILD, "--shapes", "sizes") == 0
    assert "what was built of unet (float32) does not do: it was built for 48x32x6" in (
        capsys.readouterr().err
    )
    build(capsys, own_bundle, "--component", "unet", "--force")
    assert plan.stat().st_mtime_ns > time


def test_a_build_for_another_gpu_is_proved_there(
    own_bundle: Path, machine: EmulatedGpu, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu, machine.gpu = machine.gpu, None
    assert run("build", own_bundle, *BUILD) == 0
    assert "not used here: text_encoder (float32), unet (float32), vae" in capsys.readouterr().out
    machine.gpu = gpu
    assert run("generate", "a", "--bundle", own_bundle, "--engine", "tensorrt-rtx") == 1
    assert "not compared yet: mutoscope verify" in capsys.readouterr().err
    assert run("verify", own_bundle, "--engine", "tensorrt-rtx") == 0
    error = capsys.readouterr().err
    assert error.count("dB against onnxruntime on the CPU, ") == len(COMPONENTS)
    assert run("inspect", own_bundle) == 0
    assert capsys.readouterr().out.count("used with --engine tensorrt-rtx, ") == len(COMPONENTS)


def test_verify_fails_where_results_are_wrong(
    own_bundle: Path, machine: EmulatedGpu, capsys: pytest.CaptureFixture[str]
) -> None:
    build(capsys, own_bundle)
    machine.error = "nan"
    assert run("verify", own_bundle, "--engine", "auto") == 1
    error = capsys.readouterr().err
    assert "FAILED unet (float32) for tensorrt-rtx-" in error
    assert "it will not be used" in error


def test_remove_removes_what_was_built_for_one_engine_or_for_all(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build(capsys, own_bundle)
    assert run("build", own_bundle) == 0
    capsys.readouterr()
    assert run("build", own_bundle, "--remove", "--engine", "tensorrt-rtx", "--json") == 0
    removed = json.loads(capsys.readouterr().out)["removed"]
    assert removed == [record["folder"] for record in built]
    assert run("build", own_bundle, "--remove") == 0
    assert capsys.readouterr().out.count("removed ") == len(COMPONENTS)
    assert not (own_bundle / "engines").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--target", "sm86"], 2, "--target is for building for TensorRT: use it with --engine"),
        (["--shapes", "sizes"], 2, "--shapes is for building for TensorRT"),
        ([*BUILD, "--shapes", "48x32"], 1, "use fixed or 48x32x6"),
        ([*BUILD, "--builder-level", "6"], 2, "6 is not in the range"),
        ([*BUILD, "--target", "sm1"], 1, "sm1"),
        (["--engine", "tensorrt-rtx"], 1, "or build for another machine, such as --target sm86"),
    ],
)
def test_build_refuses_what_it_cannot_do(
    own_bundle: Path,
    arguments: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("build", own_bundle, *arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert not (own_bundle / "engines").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--engine", "tensorrt-rtx"], ["--engine", "tensorrt"], ["--execution-provider", "cuda"]],
    ids=lambda arguments: arguments[-1],
)
@pytest.mark.parametrize("command", ["generate", "verify", "bench"])
def test_without_a_gpu_each_option_gives_one_clear_line(
    own_bundle: Path, command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    subject = ["a", "--bundle"] if command == "generate" else []
    assert run(command, *subject, own_bundle, *arguments) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.lower().startswith("error")]
    assert "Traceback" not in line
