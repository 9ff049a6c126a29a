"""Previews through the pipeline and the command line, with a bundle that has both decoders."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.runtime import VideoPipeline
from mutoscope.runtime.errors import CancelledError, ParameterError, ScheduleError
from mutoscope.runtime.preview import PreviewInfo
from mutoscope.runtime.sampler import StepInfo
from mutoscope.runtime.schedule import ScheduleTable
from tests.runtime.conftest import RunCli
from tests.runtime.hand_made_bundle import write_manifest


def look_at(info: PreviewInfo) -> None:
    assert info.frames.shape == (6, 32, 48, 3)


def test_generate_hands_over_the_frames_of_every_step(preview_bundle: Path) -> None:
    previews: list[tuple[PreviewInfo, NDArray[np.uint8]]] = []
    steps: list[StepInfo] = []
    with VideoPipeline.open(preview_bundle) as pipeline:
        video = pipeline.generate(
            "a red circle",
            seed=5,
            on_step=steps.append,
            on_preview=lambda info: previews.append((info, info.frames)),
        )
        plain = pipeline.generate("a red circle", seed=5)
    np.testing.assert_array_equal(video.frames, plain.frames)
    assert [info.step_index for info, _ in previews] == [info.step_index for info in steps]
    assert [info.num_steps for info, _ in previews] == [4] * 4
    # This bundle's last estimate is its result, and the first is not.
    np.testing.assert_array_equal(previews[-1][1], video.frames)
    assert (previews[0][1] != video.frames).any()
    assert video.timings.seconds_preview_decoder > 0
    assert plain.timings.seconds_preview_decoder == 0


def test_the_time_of_previews_is_not_the_samplers(
    preview_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxruntimeEngine.run

    def run_slowly(engine: OnnxruntimeEngine, *arguments: Any) -> Any:
        time.sleep(0.05)
        return run(engine, *arguments)

    monkeypatch.setattr(OnnxruntimeEngine, "run", run_slowly)
    with VideoPipeline.open(preview_bundle) as pipeline:
        options: dict[str, Any] = {"seed": 5, "guidance_scale": 1}
        timings = pipeline.generate("a", **options, on_preview=look_at).timings
    assert timings.seconds_preview_decoder >= 4 * 0.05
    assert 0 <= timings.seconds_sampler < 0.5 * timings.seconds_preview_decoder
    parts = (value for name, value in vars(timings).items() if name != "seconds_total")
    assert sum(parts) <= timings.seconds_total


@pytest.mark.parametrize("memory", ["normal", "low"])
def test_the_small_decoder_stays_in_memory_only_where_memory_is_normal(
    memory: Any, preview_bundle: Path
) -> None:
    with VideoPipeline.open(preview_bundle, memory=memory) as pipeline:
        pipeline.generate("a", seed=5, on_preview=look_at)
        assert ("preview_decoder" in pipeline._components.loaded) is (memory == "normal")


def test_generate_with_previews_can_be_cancelled(preview_bundle: Path) -> None:
    previews: list[PreviewInfo] = []
    with VideoPipeline.open(preview_bundle) as pipeline, pytest.raises(CancelledError):
        pipeline.generate("a", on_step=lambda _info: False, on_preview=previews.append)
    assert len(previews) == 1


def test_a_bundle_without_a_preview_decoder_is_refused_at_once(bundle_path: Path) -> None:
    with VideoPipeline.open(bundle_path) as pipeline:
        with pytest.raises(ParameterError, match=r"no preview_decoder.*--preview-vae DIR"):
            pipeline.generate("a", on_preview=lambda _info: None)
        assert not pipeline._components.loaded


def test_tables_without_estimates_are_refused_at_once(preview_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(preview_bundle, tmp_path / "bundle"))
    for path in (bundle / "schedules").iterdir():
        table = ScheduleTable.load(path)
        rows = tuple(dataclasses.replace(row, denoised=None) for row in table.rows)
        dataclasses.replace(table, rows=rows).save(path)
    write_manifest(bundle, json.loads((bundle / "manifest.json").read_text()))
    with VideoPipeline.open(bundle) as pipeline, pytest.raises(ScheduleError, match="no estimates"):
        pipeline.generate("a", on_preview=lambda _info: None)


def test_the_command_keeps_a_picture_beside_the_video(
    preview_bundle: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    options = ("--bundle", preview_bundle, "--seed", "5", "-o")
    run_cli("generate", "a red circle", *options, tmp_path / "with.npy", "--preview")
    run_cli("generate", "a red circle", *options, tmp_path / "without.npy")
    frames = np.load(tmp_path / "with.npy")
    np.testing.assert_array_equal(frames, np.load(tmp_path / "without.npy"))
    with Image.open(tmp_path / "with.npy.preview.png") as image:
        # Six frames in rows of three; the last estimate is the result.
        sheet = np.asarray(image)
    np.testing.assert_array_equal(sheet[:32, :48], frames[0])
    assert sheet.shape == (2 * 32 + 2, 3 * 48 + 2 * 2, 3)
    assert not (tmp_path / "without.npy.preview.png").exists()


def test_the_command_replaces_a_picture_only_with_force(
    preview_bundle: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    options = ("a", "--bundle", preview_bundle, "-o", tmp_path / "out.npy", "--preview")
    run_cli("generate", *options)
    (tmp_path / "out.npy").unlink()
    done = run_cli("generate", *options, code=1)
    assert "out.npy.preview.png exists: use --force" in done.stderr
    run_cli("generate", *options, "--force")


def test_the_command_draws_on_a_terminal_only(preview_bundle: Path, run_cli: RunCli) -> None:
    done = run_cli(
        "generate", "a", "--bundle", preview_bundle, "--preview-terminal", "-o", "x.npy", code=1
    )
    assert done.stderr.count("\n") == 1
    assert "stderr is no terminal: use --preview for a picture file" in done.stderr


def test_the_command_says_how_to_get_a_bundle_with_previews(
    bundle_path: Path, run_cli: RunCli
) -> None:
    done = run_cli("generate", "a", "--bundle", bundle_path, "--preview", "-o", "x.npy", code=1)
    assert "export it with --preview-vae DIR" in done.stderr
    assert done.stderr.count("\n") == 1
