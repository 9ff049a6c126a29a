"""Frames that go to a file, or to a callback, as they are decoded."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mutoscope.runtime import decoding, main, video_files
from mutoscope.runtime.components import Components
from mutoscope.runtime.errors import CancelledError, OutputError
from mutoscope.runtime.latents_files import save_latents
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.video import Video
from mutoscope.runtime.video_files import AddFrames, Clip
from tests.runtime.native.native_bundles import make_image, make_image_bundle

PROMPT = "a red circle moves left"
OPTIONS: dict[str, Any] = {"seed": 1, "num_inference_steps": 1}
# What a clip of 128 frames may take of the memory of one of 16.
MAXIMUM_GROWTH = 1.3
# Of writing, long beside all else that is done here.
SECONDS_OF_A_PART = 0.05


@pytest.fixture
def _two_frames_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # 200 bytes for each pixel of the hand-made decoder.
    monkeypatch.setattr(decoding, "RUN_BYTES", 2 * 200 * 32 * 48)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.usefixtures("_two_frames_a_run")
def test_parts_are_the_frames_of_the_whole_with_all_that_belongs_to_it(
    pipeline: VideoPipeline,
) -> None:
    parts: list[Video] = []
    streamed = pipeline.generate(PROMPT, **OPTIONS, on_frames=parts.append)
    whole = pipeline.generate(PROMPT, **OPTIONS)
    assert [len(part.frames) for part in parts] == [2, 2, 2]
    np.testing.assert_array_equal(np.concatenate([p.frames for p in parts]), whole.frames)
    assert parts[0].describe() == streamed.describe() == whole.describe()
    assert streamed.latents is not None
    np.testing.assert_array_equal(streamed.latents, whole.latents)
    assert streamed.frames.shape == (0, 32, 48, 3)


@pytest.mark.usefixtures("_two_frames_a_run")
def test_the_time_of_on_frames_is_apart(pipeline: VideoPipeline) -> None:
    started = time.perf_counter()
    video = pipeline.generate(
        PROMPT, **OPTIONS, on_frames=lambda part: time.sleep(SECONDS_OF_A_PART)
    )
    seconds = time.perf_counter() - started
    timings = video.timings
    assert timings.seconds_output >= 3 * SECONDS_OF_A_PART
    assert 0 < timings.seconds_total <= seconds - timings.seconds_output
    assert pipeline.generate(PROMPT, **OPTIONS).timings.seconds_output == 0


@pytest.mark.usefixtures("_two_frames_a_run")
def test_generate_and_decode_measure_the_writing_apart(
    bundle_path: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @contextmanager
    def open_slowly(path: Path, clip: Clip, video: Video) -> Iterator[AddFrames]:
        yield lambda frames: time.sleep(SECONDS_OF_A_PART)
        path.write_bytes(b"")
        time.sleep(SECONDS_OF_A_PART)

    monkeypatch.setitem(video_files._WRITERS, ".npy", open_slowly)
    arguments = ["--bundle", str(bundle_path), "-o", "x.npy", "--json"]
    options = ["--num-inference-steps", "1", "--save-latents", "x.npz"]
    for command in (["generate", PROMPT, *options], ["decode", "x.npz", "--force"]):
        started = time.perf_counter()
        assert main.run([*command, *arguments]) == 0
        seconds = time.perf_counter() - started
        found = json.loads(capsys.readouterr().out)
        timings = found["videos"][0] if "videos" in found else found
        assert timings["seconds_output"] >= 4 * SECONDS_OF_A_PART
        assert 0 < timings["seconds_total"] <= seconds - timings["seconds_output"]


def test_a_video_whose_frames_were_taken_is_not_saved(
    pipeline: VideoPipeline, tmp_path: Path
) -> None:
    video = pipeline.generate(PROMPT, **OPTIONS, on_frames=lambda part: None)
    with pytest.raises(OutputError, match=r"out.mp4 would have no frames, since on_frames took"):
        video.save(tmp_path / "out.mp4")
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("_two_frames_a_run")
def test_on_frames_cancels_and_low_memory_frees_the_decoder(bundle_path: Path) -> None:
    with VideoPipeline.open(bundle_path, memory="low") as pipeline:
        seen: list[int] = []

        def stop(part: Video) -> bool:
            seen.append(len(part.frames))
            return len(seen) < 2

        with pytest.raises(CancelledError, match="cancelled after part 2 of the frames"):
            pipeline.generate(PROMPT, **OPTIONS, on_frames=stop)
        assert seen == [2, 2]
        assert pipeline._components.loaded == ()


@pytest.mark.usefixtures("_two_frames_a_run")
@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif", ".webp", ".apng", ".npy", ""])
def test_an_error_in_the_middle_of_the_decoding_leaves_no_file(
    bundle_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    run, runs = Components.run, 0

    def fail_at_the_second(self: Components, name: str, *arguments: Any) -> Any:
        nonlocal runs
        runs += name == "vae_decoder"
        if runs == 2:
            raise CancelledError("cancelled")
        return run(self, name, *arguments)

    monkeypatch.setattr(Components, "run", fail_at_the_second)
    arguments = ["generate", PROMPT, "--bundle", str(bundle_path), "-o", f"x{ending}"]
    assert main.run(arguments) == 1
    assert runs == 2
    assert os.listdir(here) == []


@pytest.mark.usefixtures("_two_frames_a_run")
@pytest.mark.parametrize("ending", [".mp4", ".npy", ".webp"])
def test_generate_and_decode_write_the_file_that_a_whole_video_makes(
    bundle_path: Path, here: Path, ending: str
) -> None:
    arguments = ["--bundle", str(bundle_path), "-o", f"x{ending}", "--num-threads", "1"]
    options = ["--seed", "1", "--num-inference-steps", "1", "--save-latents", "x.npz"]
    assert main.run(["generate", PROMPT, *arguments, *options]) == 0
    with VideoPipeline.open(bundle_path, num_threads=1) as pipeline:
        video = pipeline.generate(PROMPT, **OPTIONS)
    video.save(f"whole{ending}")
    written = Path(f"x{ending}").read_bytes()
    assert written == Path(f"whole{ending}").read_bytes()
    assert main.run(["decode", "x.npz", *arguments, "--force"]) == 0
    if ending == ".npy":
        np.testing.assert_array_equal(np.load("x.npy"), video.frames)
    if ending == ".mp4":
        assert count_frames("x.mp4") == len(video.frames)


def count_frames(path: str) -> int:
    with av.open(path) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory as Linux counts it")
@pytest.mark.parametrize("ending", [".mp4", ".npy"])
def test_decoding_a_long_clip_takes_the_memory_of_a_short_one(here: Path, ending: str) -> None:
    peaks = {}
    for num_frames in (16, 128):
        shape = (1, 4, num_frames, 8, 8)
        noise = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
        save_latents("x.npy", noise, force=True)
        peaks[num_frames] = measure_peak("decode", "x.npy", "-o", f"out{ending}", "--force")
    assert peaks[128] <= MAXIMUM_GROWTH * peaks[16]


def measure_peak(*arguments: str) -> int:
    """The most memory of a process of its own that runs a command with one thread, in KiB."""
    line = "from mutoscope.runtime.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", line, *arguments, "--num-threads", "1"],
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss


@pytest.fixture(scope="session")
def image_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_bundle(tmp_path_factory.mktemp("continued") / "bundle")


@pytest.mark.parametrize("ending", [".npy", ".webp", ""])
def test_continue_starts_from_the_last_frame_of_a_clip(
    image_bundle: Path, here: Path, ending: str
) -> None:
    frames = np.stack([make_image(32, 48), 255 - make_image(32, 48)])
    Video(frames, 8.0).save(f"clip{ending}")
    arguments = ["--bundle", str(image_bundle), "--seed", "1", "--num-threads", "1"]
    start = ["generate", "--continue", f"clip{ending}", *arguments]
    assert main.run([*start, "-o", "next.npy"]) == 0
    with VideoPipeline.open(image_bundle, num_threads=1) as pipeline:
        expected = pipeline.generate(image=frames[1], seed=1).frames
        first = pipeline.generate(image=frames[0], seed=1).frames
    np.testing.assert_array_equal(np.load("next.npy"), expected)
    assert (first != expected).any()


def test_a_clip_that_is_continued_is_not_the_output(image_bundle: Path, here: Path) -> None:
    Video(make_image(32, 48)[None].repeat(3, axis=0), 8.0).save("clip.mp4")
    arguments = ["--bundle", str(image_bundle), "--num-inference-steps", "1"]
    assert main.run(["generate", "--continue", "clip.mp4", *arguments]) == 0
    assert sorted(os.listdir(here)) == ["clip-next.mp4", "clip.mp4"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--continue", "no.mp4"], 1, "no.mp4 cannot be read"),
        (["--continue", "a.mp4", "--image", "b.png"], 2, "--image and --continue both say what"),
    ],
)
def test_bad_starts_are_one_line(
    image_bundle: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert main.run(["generate", "--bundle", str(image_bundle), *arguments]) == code
    assert message in capsys.readouterr().err
    assert os.listdir(here) == []


def test_a_bundle_of_prompts_alone_continues_nothing(
    bundle_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", PROMPT, "--bundle", str(bundle_path), "--continue", "clip.mp4"]
    assert main.run(arguments) == 1
    message = "continue is clip.mp4, but this bundle makes a video of a prompt alone: leave "
    assert message in capsys.readouterr().err
