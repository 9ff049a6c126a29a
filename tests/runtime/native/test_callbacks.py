"""Progress, frames as they are made, and cancelling: by a callback, or from another thread."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH
from mutoscope.runtime.errors import CancelledError, MutoscopeError
from mutoscope.runtime.native import (
    Library,
    NativeError,
    NativePipeline,
    NativeProgress,
    structs,
)
from mutoscope.runtime.native.pipeline import STAGES
from tests.runtime.hand_made_bundle import write_manifest
from tests.runtime.native.native_bundles import CHUNKS_LIMIT, TOKENIZER, read_manifest

WAIT_SECONDS = 60.0
ERROR_CANCELLED, ERROR_BUSY = -7, -9


@pytest.fixture
def chunked(library: Library, text_bundle: Path) -> Iterator[NativePipeline]:
    """A pipeline that decodes in several runs."""
    with NativePipeline.open(
        text_bundle, library=library, num_threads=1, memory_limit_bytes=CHUNKS_LIMIT
    ) as pipeline:
        yield pipeline


def watch(pipeline: NativePipeline, **arguments: Any) -> list[NativeProgress]:
    """What the progress callback sees."""
    seen: list[NativeProgress] = []
    pipeline.generate("a red circle", seed=1, on_progress=seen.append, **arguments)
    return seen


def test_progress_goes_through_the_stages_in_order(chunked: NativePipeline) -> None:
    seen = watch(chunked, num_inference_steps=3)
    stages = {stage: [p for p in seen if p.stage == stage] for stage in STAGES}
    assert [p for stage in STAGES for p in stages[stage]] == seen
    for stage, progress in stages.items():
        counts = [(p.num_done, p.num_in_all) for p in progress]
        assert counts == [(number + 1, len(counts)) for number in range(len(counts))], stage
    assert len(stages["encoding"]) >= 1
    assert len(stages["denoising"]) == 3
    assert len(stages["decoding"]) > 1
    seconds = [p.seconds_since_start for p in seen]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_latents_are_shown_while_denoising_alone(chunked: NativePipeline) -> None:
    for progress in watch(chunked, num_inference_steps=2):
        if progress.stage == "denoising":
            assert progress.latents is not None
            assert progress.latents.shape == (1, 4, 6, 4, 6)
            assert np.isfinite(progress.latents).all()
        else:
            assert progress.latents is None


@pytest.mark.parametrize("pipeline_name", ["native", "chunked"])
def test_frames_come_in_order_and_are_those_of_the_buffer(
    request: pytest.FixtureRequest, pipeline_name: str
) -> None:
    pipeline: NativePipeline = request.getfixturevalue(pipeline_name)
    indices: list[int] = []
    frames: list[NDArray[np.uint8]] = []

    def on_frame(index: int, frame: NDArray[np.uint8]) -> None:
        indices.append(index)
        frames.append(frame)

    video = pipeline.generate("a red circle", seed=1, on_frame=on_frame)
    assert indices == list(range(6))
    np.testing.assert_array_equal(np.stack(frames), video.frames)


def test_frames_come_before_the_last_is_decoded(chunked: NativePipeline) -> None:
    events: list[str] = []
    chunked.generate(
        "a",
        seed=1,
        on_progress=lambda progress: events.append(progress.stage),
        on_frame=lambda _index, _frame: events.append("frame"),
    )
    last_run = len(events) - 1 - events[::-1].index("decoding")
    assert "frame" in events[:last_run]


def test_the_callback_alone_may_take_the_frames(native: NativePipeline) -> None:
    expected = native.generate("a", seed=1).frames
    frames: list[NDArray[np.uint8]] = []

    def call(pointer: Any, _user_data: object) -> int:
        frame = pointer.contents
        assert frame.struct_size >= 32
        assert (frame.num_frames, frame.height, frame.width) == (6, 32, 48)
        assert frame.row_bytes == 3 * 48
        shape = (frame.height, frame.width, 3)
        frames.append(np.ctypeslib.as_array(frame.pixels, shape).copy())
        return 0

    params, _arguments = native._make_params("a", {"seed": 1})
    params.frame_callback = structs.FrameCallback(call)
    native._call("generate", None, None, 0, native._handle, params)
    np.testing.assert_array_equal(np.stack(frames), expected)


# ---- cancelling


@pytest.mark.parametrize("stage", STAGES)
def test_a_callback_cancels_in_every_stage_and_the_next_generation_works(
    chunked: NativePipeline, stage: str
) -> None:
    expected = chunked.generate("a red circle", seed=1).frames
    seen: list[str] = []

    def on_progress(progress: NativeProgress) -> bool:
        seen.append(progress.stage)
        return progress.stage != stage

    with pytest.raises(CancelledError) as caught:
        chunked.generate("a red circle", seed=1, on_progress=on_progress)
    assert "\n" not in str(caught.value)
    assert seen.count(stage) == 1
    assert seen[-1] == stage
    np.testing.assert_array_equal(chunked.generate("a red circle", seed=1).frames, expected)


def test_a_frame_callback_cancels(native: NativePipeline) -> None:
    indices: list[int] = []

    def on_frame(index: int, _frame: NDArray[np.uint8]) -> bool:
        indices.append(index)
        return index < 2

    with pytest.raises(CancelledError):
        native.generate("a", seed=1, on_frame=on_frame)
    assert indices == [0, 1, 2]
    assert native.generate("a", seed=1).frames.shape == (6, 32, 48, 3)


@pytest.mark.parametrize("kind", ["on_progress", "on_frame"])
def test_an_exception_in_a_callback_cancels_and_is_raised_again(
    native: NativePipeline, kind: str
) -> None:
    calls: list[int] = []

    def fail(*_values: object) -> None:
        calls.append(1)
        raise KeyError("of the caller")

    callbacks: dict[str, Any] = {kind: fail}
    with pytest.raises(KeyError, match="of the caller"):
        native.generate("a", seed=1, **callbacks)
    assert calls == [1]


def test_another_thread_cancels_and_the_next_generation_works(library: Library) -> None:
    started = threading.Event()
    arguments: dict[str, Any] = {
        "seed": 1,
        "height": 32,
        "width": 32,
        "num_frames": 4,
        "guidance_scale": 1.0,
    }
    with NativePipeline.open(DEFAULT_BUNDLE_PATH, library=library, num_threads=1) as pipeline:
        expected = pipeline.generate("a red circle", num_inference_steps=1, **arguments).frames
        done: list[int] = []
        errors: list[BaseException] = []

        def on_progress(progress: NativeProgress) -> None:
            if progress.stage == "denoising":
                done.append(progress.num_done)
                started.set()

        def run() -> None:
            try:
                pipeline.generate(
                    "a red circle", num_inference_steps=50, on_progress=on_progress, **arguments
                )
            except BaseException as err:
                errors.append(err)

        thread = threading.Thread(target=run)
        thread.start()
        assert started.wait(WAIT_SECONDS)
        pipeline.cancel()
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()
        assert [type(err) for err in errors] == [CancelledError]
        assert max(done) < 50
        again = pipeline.generate("a red circle", num_inference_steps=1, **arguments).frames
        np.testing.assert_array_equal(again, expected)


def test_cancelling_stops_in_the_middle_of_a_step(library: Library) -> None:
    started = threading.Event()
    # With the number that was done, whether `cancel` had returned by then.
    seen: list[tuple[int, bool]] = []
    cancelled = threading.Event()
    errors: list[MutoscopeError] = []

    def on_progress(progress: NativeProgress) -> None:
        if progress.stage == "denoising":
            seen.append((progress.num_done, cancelled.is_set()))
            started.set()

    def run() -> None:
        # A step of so many and such large frames takes half a second and more.
        try:
            pipeline.generate(
                "a red circle",
                seed=1,
                height=128,
                width=128,
                num_frames=16,
                num_inference_steps=8,
                guidance_scale=1.0,
                on_progress=on_progress,
            )
        except MutoscopeError as err:
            errors.append(err)

    with NativePipeline.open(DEFAULT_BUNDLE_PATH, library=library, num_threads=1) as pipeline:
        thread = threading.Thread(target=run)
        thread.start()
        assert started.wait(WAIT_SECONDS)
        # Into the next step.
        time.sleep(0.05)
        pipeline.cancel()
        cancelled.set()
        thread.join(WAIT_SECONDS)
    assert [type(err) for err in errors] == [CancelledError]
    # A step that went on to its end would be shown.
    assert seen
    assert not any(after for _, after in seen)


def test_cancelling_works_before_the_first_callback(library: Library, own_bundle: Path) -> None:
    # White space that takes a while to read, before any graph runs.
    tokenizer = own_bundle / TOKENIZER
    tokenizer.write_text(tokenizer.read_text() + " " * 40_000_000)
    write_manifest(own_bundle, read_manifest(own_bundle))
    for _ in range(3):
        # What was read stays.
        with NativePipeline.open(own_bundle, library=library, num_threads=1) as pipeline:
            assert cancel_as_soon_as_it_is_busy(library, pipeline) == ERROR_CANCELLED
            assert pipeline.generate("a", seed=1).frames.any()


def cancel_as_soon_as_it_is_busy(library: Library, pipeline: NativePipeline) -> int:
    """The status of a generation that is cancelled once, while it prepares."""
    functions, handle = library.functions, pipeline._handle
    params = structs.GenerateParams()
    functions.mutoscope_generate_params_init(params, ctypes.sizeof(params))
    params.prompt = b"a"
    cancelled = threading.Event()

    def wait(_progress: object, _user_data: object) -> int:
        # However late the other thread is, the generation does not end before.
        return int(not cancelled.wait(WAIT_SECONDS))

    params.progress_callback = structs.ProgressCallback(wait)
    frames = np.zeros((6, 32, 48, 3), dtype=np.uint8)
    pixels = frames.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    statuses: list[int] = []

    def run() -> None:
        # The other thread's question can be in the way.
        while not statuses or statuses[-1] == ERROR_BUSY:
            statuses.append(
                functions.mutoscope_generate(None, pixels, frames.nbytes, handle, params)
            )

    thread = threading.Thread(target=run)
    thread.start()
    while functions.mutoscope_pipeline_unload(handle) != ERROR_BUSY and thread.is_alive():
        pass
    time.sleep(0.01)
    pipeline.cancel()
    cancelled.set()
    thread.join(WAIT_SECONDS)
    return statuses[-1]


def test_cancelling_where_nothing_runs_does_nothing(native: NativePipeline) -> None:
    expected = native.generate("a", seed=1).frames
    native.cancel()
    np.testing.assert_array_equal(native.generate("a", seed=1).frames, expected)


def test_a_pipeline_that_is_generating_is_busy(native: NativePipeline) -> None:
    """From its own callback, and from another thread."""
    found: list[str] = []

    def generate_again() -> None:
        try:
            native.generate("a", seed=2)
        except NativeError as err:
            found.append(str(err))

    def on_progress(progress: NativeProgress) -> None:
        if progress.stage == "denoising" and progress.num_done == 1:
            generate_again()
            thread = threading.Thread(target=generate_again)
            thread.start()
            thread.join(WAIT_SECONDS)

    video = native.generate("a red circle", seed=1, on_progress=on_progress)
    assert len(found) == 2
    for message in found:
        assert message.startswith("MUTOSCOPE_ERROR_BUSY: ")
    np.testing.assert_array_equal(video.frames, native.generate("a red circle", seed=1).frames)


def test_two_pipelines_generate_at_the_same_time(library: Library, text_bundle: Path) -> None:
    expected = {}
    found: dict[int, NDArray[np.uint8]] = {}
    with NativePipeline.open(text_bundle, library=library, num_threads=1) as pipeline:
        for seed in (1, 2):
            expected[seed] = pipeline.generate("a", seed=seed, num_inference_steps=8).frames

    def run(seed: int) -> None:
        with NativePipeline.open(text_bundle, library=library, num_threads=1) as own:
            for _ in range(5):
                found[seed] = own.generate("a", seed=seed, num_inference_steps=8).frames

    threads = [threading.Thread(target=run, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    for seed, frames in expected.items():
        np.testing.assert_array_equal(found[seed], frames)


def test_last_error_belongs_to_its_thread(library: Library) -> None:
    seen: list[bytes] = []

    def ask() -> None:
        seen.append(library.functions.mutoscope_last_error())
        library.functions.mutoscope_pipeline_load(None)
        seen.append(library.functions.mutoscope_last_error())

    library.functions.mutoscope_cancel(None)
    mine = library.functions.mutoscope_last_error()
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert seen[0] == b""
    assert seen[1]
    assert library.functions.mutoscope_last_error() == mine
    # A call that works leaves it.
    library.functions.mutoscope_version()
    assert library.functions.mutoscope_last_error() == mine
