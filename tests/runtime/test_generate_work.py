"""`mutoscope generate` with several denoisers and windows: what it takes, and what it tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.runtime import main
from mutoscope.runtime.latents_files import load_latents
from mutoscope.runtime.pipeline import VideoPipeline
from tests.runtime.reuse_bundle import add_denoisers, add_schedule, make_rows


@pytest.fixture
def path(own_bundle: Path) -> Path:
    add_denoisers(own_bundle)
    add_schedule(own_bundle, "plan", make_rows("unet", "unet_reuse", "unet", "unet_reuse", None))
    few_step = make_rows(None, None, unguided=(0, 1))
    add_schedule(own_bundle, "few-step", few_step, denoiser="unet_few_step")
    return own_bundle


def generate(path: Path, output: Path, *arguments: object) -> int:
    fixed = ("generate", "a red circle", "--bundle", path, "--seed", 7, "-o", output)
    return main.run([str(argument) for argument in (*fixed, *arguments)])


def test_it_tells_the_rows_of_each_denoiser_and_the_windows(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.npy"
    arguments = ("--scheduler", "plan", "--num-frames", 40, "--context-length", 16, "--json")
    assert generate(path, out, *arguments) == 0
    said = capsys.readouterr()
    record: dict[str, Any] = json.loads(said.out)
    assert {
        "scheduler": "plan",
        "num_inference_steps": 5,
        "denoisers": {"unet": 3, "unet_reuse": 2},
        "num_reused_rows": 2,
        "num_windows": 4,
    }.items() <= record.items()
    assert record["videos"][0]["context_length"] == 16
    assert record["videos"][0]["context_stride"] == 8
    assert "out.npy: seed 7, plan, 5 steps (2 reused), 4 windows, " in said.err
    with VideoPipeline.open(path) as pipeline:
        video = pipeline.generate(
            "a red circle", seed=7, scheduler="plan", num_frames=40, context_length=16
        )
    np.testing.assert_array_equal(np.load(out), video.frames)


def test_without_reuse_and_windows_it_tells_the_scheduler_and_the_steps(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(path, tmp_path / "out.npy", "--num-inference-steps", 5, "--json") == 0
    said = capsys.readouterr()
    record = json.loads(said.out)
    # ddim, the default, has no table of 5 steps.
    assert (record["scheduler"], record["num_windows"]) == ("plan", 1)
    assert "context_length" not in record["videos"][0]
    assert generate(path, tmp_path / "few.npy", "--scheduler", "few-step") == 0
    assert "few.npy: seed 7, few-step, 2 steps, " in capsys.readouterr().err


def test_latents_that_are_saved_tell_the_windows(path: Path, tmp_path: Path) -> None:
    latents = tmp_path / "clip.npz"
    arguments = ("--context-length", 4, "--context-stride", 1, "--save-latents", latents)
    assert generate(path, tmp_path / "out.npy", *arguments) == 0
    info = load_latents(latents).info
    assert (info["context_length"], info["context_stride"]) == (4, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--context-length", 7), "error: context_length is 7; it must lie within 1 and 6"),
        (("--context-stride", 0, "--num-frames", 33), "error: context_stride is 0; it must lie"),
        (
            ("--scheduler", "few-step", "--guidance-scale", 3),
            "error: guidance_scale is 3; no step of few-step takes guidance: leave it out, "
            "or use --scheduler ddim",
        ),
    ],
)
def test_bad_values_are_one_line(
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    assert generate(path, tmp_path / "out.npy", *arguments) == 1
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "out.npy").exists()
