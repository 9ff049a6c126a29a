"""Context windows: which there are, how they blend, what noise they start from, what they cost."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.engines.engine import Array
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import CancelledError, ParameterError
from mutoscope.runtime.manifest import LimitRecord, Manifest
from mutoscope.runtime.noise import NoiseGenerator
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.preview import PreviewInfo
from mutoscope.runtime.sampler import F32, StepInfo
from mutoscope.runtime.schedule import ScheduleRow
from mutoscope.runtime.settings import make_settings
from mutoscope.runtime.windows import (
    WindowedDenoiser,
    choose_windows,
    list_windows,
    make_window_weights,
    shuffle_start_noise,
)
from tests.runtime.fake_denoisers import sample_in_numpy, use_fakes
from tests.runtime.hand_made_bundle import FEATURES, make_bundle
from tests.runtime.reuse_bundle import add_denoisers, add_schedule, make_rows

# Float32 in another order of the sums, over a few rows.
TOLERANCE = 1e-5
# Of a weighted mean of equal values: a product, a sum and a quotient of float32.
MEAN_TOLERANCE = 1e-6
# The register, the sample, the noise of a step and the blended model output.
WHOLE_CLIP_ARRAYS = 4
TEXTS = [0.5, -0.25]
ROW = ScheduleRow(7.0, 1.0, 0, ())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with several denoisers and tables for them; not to be changed."""
    bundle = make_bundle(tmp_path_factory.mktemp("windows") / "bundle")
    add_denoisers(bundle)
    add_schedule(bundle, "plain", make_rows(None, None, None))
    add_schedule(bundle, "reuse", make_rows("unet", "unet_reuse", "unet", "unet_reuse"))
    return bundle


@pytest.fixture
def bundle(path: Path) -> Bundle:
    return Bundle.open(path)


@pytest.fixture
def pipeline(path: Path) -> Iterator[VideoPipeline]:
    with VideoPipeline.open(path, num_threads=1) as pipeline:
        yield pipeline


def make_noise(num_frames: int, height: int = 2, width: int = 4) -> F32:
    shape = (1, 4, num_frames, height, width)
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("sizes", "starts"),
    [
        ((16, 16, 8), [0]),
        ((17, 16, 8), [0, 1]),
        ((32, 16, 8), [0, 8, 16]),
        ((33, 16, 8), [0, 8, 16, 17]),
        ((10, 4, 4), [0, 4, 6]),
        ((3, 1, 1), [0, 1, 2]),
    ],
)
def test_windows_follow_the_stride_and_the_last_ends_with_the_clip(
    sizes: tuple[int, int, int], starts: list[int]
) -> None:
    windows = list_windows(*sizes)
    assert [window.start for window in windows] == starts
    assert {window.stop - window.start for window in windows} == {sizes[1]}


def test_weights_rise_to_the_middle_and_fall() -> None:
    assert make_window_weights(5).tolist() == [1, 2, 3, 2, 1]
    assert make_window_weights(4).tolist() == [1, 2, 2, 1]
    assert make_window_weights(1).tolist() == [1]
    assert make_window_weights(4).dtype == np.float32


def test_a_frame_gets_the_weighted_mean_of_its_windows() -> None:
    windows, sample = list_windows(6, 4, 2), make_noise(6)
    factors = {0: 1.0, 2: 10.0}
    denoiser = WindowedDenoiser(
        lambda part, _row, frames: np.float32(factors[frames.start]) * part, sample.shape, windows
    )
    found = denoiser(sample, ROW) / sample
    # The first window weighs 1, 2, 2, 1 from frame 0, the second the same from frame 2.
    expected = [1, 1, (2 * 1 + 1 * 10) / 3, (1 * 1 + 2 * 10) / 3, 10, 10]
    np.testing.assert_allclose(found.mean(axis=(0, 1, 3, 4)), expected, rtol=MEAN_TOLERANCE)


def test_windows_that_agree_give_what_they_agree_on() -> None:
    sample = make_noise(11)
    denoiser = WindowedDenoiser(
        lambda part, row, _frames: row.timestep * part, sample.shape, list_windows(11, 4, 3)
    )
    first = denoiser(sample, ROW)
    np.testing.assert_allclose(first, 7 * sample, rtol=MEAN_TOLERANCE)
    # Nothing of a row stays in the sums of the next.
    second = denoiser(2 * sample, dataclasses.replace(ROW, timestep=1.0))
    assert second is first
    np.testing.assert_allclose(second, 2 * sample, rtol=MEAN_TOLERANCE)


@pytest.mark.parametrize(("num_frames", "length", "stride"), [(40, 16, 4), (19, 8, 8), (9, 4, 3)])
def test_start_noise_is_that_of_a_window_before_in_another_order(
    num_frames: int, length: int, stride: int
) -> None:
    noise = make_noise(num_frames)
    expected, generator = noise.copy(), NoiseGenerator(5)
    for first in range(length, num_frames, stride):
        order = generator.permutation(stride)
        for offset in range(min(stride, num_frames - first)):
            expected[:, :, first + offset] = expected[:, :, first - length + order[offset]]
    shuffle_start_noise(noise, length, stride, NoiseGenerator(5))
    np.testing.assert_array_equal(noise, expected)
    np.testing.assert_array_equal(noise[:, :, :length], make_noise(num_frames)[:, :, :length])


@pytest.mark.parametrize("scheduler", ["plain", "reuse"])
@pytest.mark.parametrize("guidance_passes", ["separate", "batched"])
@pytest.mark.parametrize("sizes", [(7, 4, 2), (6, 4, 4), (5, 5, 5)])
def test_latents_are_those_of_a_plain_loop_over_windows(
    path: Path,
    pipeline: VideoPipeline,
    scheduler: str,
    guidance_passes: Any,
    sizes: tuple[int, int, int],
) -> None:
    num_frames, length, stride = sizes
    calls, _ = use_fakes(pipeline)
    found = sample(
        pipeline,
        num_frames,
        scheduler=scheduler,
        guidance_passes=guidance_passes,
        context_length=length,
        context_stride=stride,
        min_guidance_scale=1.0,
    )
    scale = np.linspace(1, 3, num_frames, dtype=np.float32).reshape(1, 1, -1, 1, 1)
    windows = list_windows(num_frames, length, stride)
    (steps,) = pipeline.bundle.manifest.schedules[scheduler]
    table = pipeline.bundle.load_schedule(scheduler, int(steps))
    expected = sample_in_numpy(table, make_noise(num_frames), TEXTS, scale, windows)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max(), rtol=0)
    assert {call.num_frames for call in calls} == {length}
    assert sum(call.batch for call in calls) == 2 * len(windows) * len(table.rows)


def sample(pipeline: VideoPipeline, num_frames: int, **arguments: Any) -> Array:
    """Latents of a clip from `make_noise`, with embeddings of which the means are TEXTS."""
    embeds = [np.full((1, 8, FEATURES), text, dtype=np.float32) for text in TEXTS]
    video = pipeline.generate(
        prompt_embeds=embeds[0],
        negative_prompt_embeds=embeds[1],
        latents=make_noise(num_frames),
        **arguments,
    )
    assert video.latents is not None
    return video.latents


def test_a_clip_longer_than_the_bundle_allows_at_once_has_windows(pipeline: VideoPipeline) -> None:
    calls, _ = use_fakes(pipeline)
    video = pipeline.generate("a", num_frames=50, height=16, width=16, scheduler="plain", seed=1)
    assert video.frames.shape == (50, 16, 16, 3)
    assert video.settings is not None
    assert (video.settings.context_length, video.settings.context_stride) == (32, 16)
    assert {call.num_frames for call in calls} == {32}
    assert {"context_length": 32, "context_stride": 16}.items() <= video.describe().items()


def test_a_clip_that_fits_has_none(pipeline: VideoPipeline) -> None:
    calls, _ = use_fakes(pipeline)
    video = pipeline.generate("a", num_frames=32, height=16, width=16, scheduler="plain", seed=1)
    assert video.settings is not None
    assert (video.settings.windows, video.settings.context_length) == ([], None)
    assert {call.num_frames for call in calls} == {32}
    assert "context_length" not in video.describe()


def test_start_noise_is_shuffled_only_where_the_seed_makes_it(pipeline: VideoPipeline) -> None:
    noise = NoiseGenerator(4).normal((1, 4, 10, 2, 2))
    shuffled, generator = noise.copy(), NoiseGenerator(4)
    generator.normal(noise.shape)
    shuffle_start_noise(shuffled, 4, 2, generator)
    size: dict[str, Any] = {"height": 16, "width": 16, "num_frames": 10}
    arguments: dict[str, Any] = {"scheduler": "plain", "context_length": 4}
    of_seed = pipeline.generate("a", seed=4, **size, **arguments).latents
    of_noise, of_shuffled = (
        pipeline.generate("a", latents=latents, **arguments).latents
        for latents in (noise, shuffled)
    )
    np.testing.assert_array_equal(of_seed, of_shuffled)
    assert of_seed is not None
    assert of_noise is not None
    assert np.abs(of_seed - of_noise).max() > 0.1


def test_step_noise_is_drawn_for_the_whole_clip(pipeline: VideoPipeline) -> None:
    # The windows see what a whole clip would: of a linear model, so does what comes out.
    whole, windowed = (
        pipeline.generate(
            "a", latents=make_noise(6), seed=3, scheduler="euler-ancestral", **windows
        ).latents
        for windows in ({}, {"context_length": 3})
    )
    assert whole is not None
    np.testing.assert_allclose(windowed, whole, atol=TOLERANCE * np.abs(whole).max(), rtol=0)


def test_progress_and_cancelling_are_those_of_rows(pipeline: VideoPipeline) -> None:
    seen: list[tuple[int, int]] = []

    def stop_at_second(info: StepInfo) -> bool:
        seen.append((info.step_index, info.num_steps))
        return info.step_index < 1

    with pytest.raises(CancelledError, match="cancelled after step 2 of 3"):
        pipeline.generate("a", scheduler="plain", num_frames=40, on_step=stop_at_second)
    assert seen == [(0, 3), (1, 3)]


def test_previews_show_the_whole_clip(preview_bundle: Path) -> None:
    shapes: list[tuple[int, ...]] = []

    def look(info: PreviewInfo) -> None:
        shapes.append((*info.frames.shape, info.num_frames))

    with VideoPipeline.open(preview_bundle, num_threads=1) as pipeline:
        video = pipeline.generate("a", num_frames=40, on_preview=look)
        last = shapes[-1]
    assert last == (*video.frames.shape, 40)


def choose(bundle: Bundle, num_frames: int = 24, **given: int) -> tuple[int, int] | None:
    values = {"context_length": None, "context_stride": None, **given}
    return choose_windows(bundle.manifest, num_frames, *values.values())


def test_windows_are_half_a_window_apart_unless_told(bundle: Bundle) -> None:
    assert choose(bundle, 33) == (32, 16)
    assert choose(bundle, 24, context_length=9) == (9, 4)
    assert choose(bundle, 24, context_length=9, context_stride=9) == (9, 9)
    assert choose(bundle, 24, context_length=1) == (1, 1)
    assert choose(bundle, 40, context_stride=5) == (32, 5)
    assert choose(bundle, 24, context_stride=4) == (24, 4)
    assert choose(bundle, 24) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"context_length": 25},
            "context_length is 25; it must lie within 1 and 24, the frames of latents of the "
            "clip: use 24",
        ),
        (
            {"num_frames": 64, "context_length": 33},
            "context_length is 33; it must lie within 1 and 32, the frames of latents that this "
            "bundle allows: use 32",
        ),
        ({"context_length": 0}, "context_length is 0; it must lie within 1 and 24"),
        (
            {"context_length": 8, "context_stride": 9},
            "context_stride is 9; it must lie within 1 and the context_length, 8: use 4",
        ),
        ({"context_length": 8, "context_stride": 0}, "context_stride is 0; it must lie within 1"),
        ({"context_length": 2.5}, "context_length is 2.5; it must be a whole number"),
        ({"context_stride": True}, "context_stride is True; it must be a whole number"),
    ],
)
def test_windows_that_cannot_be_are_refused(
    bundle: Bundle, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError) as caught:
        make_settings(bundle, **{"num_frames": 24, **values})
    assert str(caught.value).startswith(message)


def change_manifest(bundle: Bundle, **inputs: Any) -> Manifest:
    """The manifest with other inputs of the first denoiser."""
    record = bundle.manifest.components["unet"]
    changed = dataclasses.replace(record, inputs={**record.inputs, **inputs})
    components = {**bundle.manifest.components, "unet": changed}
    return dataclasses.replace(bundle.manifest, components=components)


@pytest.mark.parametrize(
    "change",
    [{"shape": ("batch", "num_frames", 4), "source": "image"}, {"source": "num_frames"}],
)
def test_a_denoiser_that_takes_something_of_all_frames_has_no_windows(
    bundle: Bundle, change: dict[str, Any]
) -> None:
    timestep = bundle.manifest.components["unet"].inputs["timestep"]
    manifest = change_manifest(bundle, images=dataclasses.replace(timestep, **change))
    reason = "there can be no windows, since this bundle's denoiser takes images of all frames"
    with pytest.raises(ParameterError, match=f"num_frames is 40; {reason}: use 32"):
        choose_windows(manifest, 40, None, None)
    with pytest.raises(ParameterError, match=f"context_length is 8; {reason}: leave context_leng"):
        choose_windows(manifest, 24, 8, None)
    assert choose_windows(manifest, 32, None, None) is None


def test_a_long_clip_keeps_the_other_rules_of_its_length(bundle: Bundle) -> None:
    limit = LimitRecord(minimum=1, maximum=13, multiple=4, offset=1)
    manifest = dataclasses.replace(
        bundle.manifest,
        limits=dataclasses.replace(bundle.manifest.limits, num_frames=limit),
        latents=dataclasses.replace(bundle.manifest.latents, vae_scale_factor_temporal=4),
    )
    with pytest.raises(ParameterError, match=r"num_frames is 40; .* 4k \+ 1: use 37 or 41"):
        choose_windows(manifest, 40, None, None)
    assert choose_windows(manifest, 41, None, None) == (4, 2)
    with pytest.raises(ParameterError, match="within 1 and 4, the frames of latents that this"):
        choose_windows(manifest, 41, 5, None)


def test_a_bundle_for_clips_of_any_length_has_windows_where_they_are_asked_for(
    bundle: Bundle,
) -> None:
    limits = dataclasses.replace(bundle.manifest.limits, num_frames=LimitRecord(minimum=1))
    manifest = dataclasses.replace(bundle.manifest, limits=limits)
    assert choose_windows(manifest, 500, None, None) is None
    assert choose_windows(manifest, 500, 16, None) == (16, 8)


@pytest.mark.parametrize("guidance_passes", ["separate", "batched"])
def test_the_denoiser_takes_no_more_memory_for_a_longer_clip(
    pipeline: VideoPipeline, guidance_passes: Any
) -> None:
    use_fakes(pipeline)
    peaks = [find_peak(pipeline, num_frames, guidance_passes) for num_frames in (32, 64)]
    # What is of the whole clip is counted in clips, so that any array of the denoiser would show.
    grown = (peaks[1] - peaks[0]) / make_noise(32, 32, 32).nbytes
    assert grown < WHOLE_CLIP_ARRAYS + 0.5


def find_peak(pipeline: VideoPipeline, num_frames: int, guidance_passes: Any) -> int:
    """Bytes that numpy had at once while a clip was sampled, its start noise aside."""
    latents, peaks = make_noise(num_frames, 32, 32), [0]
    tracemalloc.start()
    try:
        with pytest.raises(CancelledError):
            pipeline.generate(
                "a",
                latents=latents,
                scheduler="plain",
                guidance_passes=guidance_passes,
                context_length=8,
                on_step=lambda _info: peaks.append(tracemalloc.get_traced_memory()[1]) or False,
            )
    finally:
        tracemalloc.stop()
    return max(peaks)
