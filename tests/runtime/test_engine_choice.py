"""Generation, decoding and verification on another engine than onnxruntime."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mutoscope.engines.errors import EngineError
from mutoscope.engines.openvino_engine import check_precision
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime import main
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.components import Components
from mutoscope.runtime.decoder import decode_latents
from mutoscope.runtime.decoding import DecodePlan
from mutoscope.runtime.latents_files import save_latents
from mutoscope.runtime.manifest import VAE_DECODER
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.timings import Timings

# Sums in another order move a value to the next of 255 levels; 1 was measured after 8 steps.
MAX_F32_ERROR = 2
# Bfloat16, with 8 bits of precision: 32 to 49 dB were measured, the less the smaller the clip.
BF16_MIN_PSNR_DB = 28
CLIP = {"seed": 7, "num_inference_steps": 2, "num_frames": 4, "height": 32, "width": 32}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def generate(engine: str, **options: object) -> np.ndarray:
    with VideoPipeline.open(engine=engine, num_threads=1) as pipeline:
        video = pipeline.generate("a red circle moves left", **{**CLIP, **options})
        assert video.timings.seconds_load > 0
    return video.frames.astype(np.float64)


def test_openvino_makes_the_video_of_onnxruntime() -> None:
    difference = generate("openvino:f32") - generate("onnxruntime")
    assert np.abs(difference).max() <= MAX_F32_ERROR


def test_openvino_in_bfloat16_makes_nearly_the_video_of_onnxruntime() -> None:
    try:
        check_precision("bf16")
    except EngineError as err:
        pytest.skip(str(err))
    difference = generate("openvino:bf16") - generate("onnxruntime")
    assert 10 * np.log10(255**2 / np.mean(difference**2)) > BF16_MIN_PSNR_DB


def test_compiling_is_loading_and_not_denoising(bundle_path: Path) -> None:
    with VideoPipeline.open(bundle_path, engine="openvino", num_threads=1) as pipeline:
        first, second = (pipeline.generate("a red circle", seed=1).timings for _ in range(2))
    # The second clip is of the size of the first, so that nothing is left to compile.
    assert second.seconds_load < first.seconds_load / 2


def test_low_memory_gives_the_same_frames_and_keeps_nothing(bundle_path: Path) -> None:
    frames = []
    for memory in ("normal", "low"):
        with VideoPipeline.open(bundle_path, engine="openvino", memory=memory) as pipeline:
            frames.append(pipeline.generate("a red circle", seed=1).frames)
            assert bool(pipeline._components.loaded) == (memory == "normal")
    np.testing.assert_array_equal(*frames)


def test_a_frame_in_tiles_is_that_of_the_whole_decoder() -> None:
    bundle = Bundle.default()
    tiles = bundle.find_component(VAE_DECODER).decoder.tiles
    assert tiles is not None
    latents = np.random.default_rng(1).standard_normal((1, 4, 1, 8, 6), dtype=np.float32)
    components = Components(bundle, EngineOptions("openvino", num_threads=1))
    plans = [DecodePlan(1), DecodePlan(1, tile_height=4, tiles=tiles)]
    whole, tiled = (decode_latents(components, latents, plan, Timings()) for plan in plans)
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    assert components.engine_properties["engine"] == "openvino"


def test_commands_run_on_the_engine_that_is_named_and_say_so(
    bundle_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_latents("x.npy", np.zeros((1, 4, 2, 4, 6), np.float32))
    for command in (["generate", "a red circle", "--seed", "1"], ["decode", "x.npy"]):
        for engine in ("openvino", "onnxruntime"):
            output = f"{command[0]}-{engine}.npy"
            arguments = ["--bundle", str(bundle_path), "--engine", engine, "-o", output, "--json"]
            assert main.run([*command, *arguments]) == 0
            assert json.loads(capsys.readouterr().out)["engine"]["engine"] == engine
        found, expected = (
            np.load(f"{command[0]}-{name}.npy").astype(int) for name in ("openvino", "onnxruntime")
        )
        assert np.abs(found - expected).max() <= MAX_F32_ERROR


def test_verify_runs_on_the_engine_that_is_named(
    bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["verify", str(bundle_path), "--engine", "openvino:f32"]) == 0
    error = capsys.readouterr().err
    assert "unet (float32) loads and is as declared" in error
    assert " s with openvino:f32\n" in error


@pytest.mark.parametrize("command", [["generate", "a"], ["decode", "x.npy"], ["verify"]])
def test_an_engine_that_cannot_be_is_refused_before_any_work(
    bundle_path: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    bundle = [str(bundle_path)] if command == ["verify"] else ["--bundle", str(bundle_path)]
    assert main.run([*command, *bundle, "--engine", "tensorflow"]) == 2
    assert "'tensorflow' is not one of 'onnxruntime'" in capsys.readouterr().err
    gpu = ["--engine", "openvino:bf16", "--execution-provider", "cuda"]
    assert main.run([*command, *bundle, *gpu]) == 1
    assert capsys.readouterr().err.startswith("error: execution_provider is 'cuda', which is onn")
    assert os.listdir(here) == []
