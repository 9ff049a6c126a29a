"""Generation with tables whose rows name denoisers: what runs, what it is fed, what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.engines.engine import Array
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.component_inputs import make_inputs
from mutoscope.runtime.components import Components
from mutoscope.runtime.errors import EngineError, ParameterError
from mutoscope.runtime.guidance import GUIDANCE_PASSES, GuidancePasses, make_batch
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.sampler import F32
from mutoscope.runtime.settings import make_settings
from mutoscope.runtime.timings import Timings
from tests.runtime.fake_denoisers import OUTPUT, Call, sample_in_numpy, use_fakes
from tests.runtime.hand_made_bundle import FEATURES, make_bundle
from tests.runtime.reuse_bundle import FEATURE, add_denoisers, add_schedule, make_rows

# Float32 in another order of the sums, over a few rows.
TOLERANCE = 1e-5
TEXTS = [0.5, -0.25]
SHAPE = (1, 4, 3, 2, 4)
REUSE = ("unet", "unet_reuse", "unet_reuse", "unet", "unet_reuse")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with several denoisers and tables for them; not to be changed."""
    bundle = make_bundle(tmp_path_factory.mktemp("denoisers") / "bundle")
    add_denoisers(bundle)
    add_schedule(bundle, "plain", make_rows(*[None] * 5))
    add_schedule(bundle, "all-named", make_rows(*["unet"] * 5))
    add_schedule(bundle, "reuse", make_rows(*REUSE))
    add_schedule(bundle, "tail", make_rows(*REUSE, unguided=(2, 3, 4)))
    few_step = make_rows(None, None, unguided=(0, 1))
    add_schedule(bundle, "few-step", few_step, denoiser="unet_few_step")
    add_schedule(bundle, "both", make_rows("unet_few_step", "unet"))
    return bundle


@pytest.fixture
def pipeline(path: Path) -> Iterator[VideoPipeline]:
    with VideoPipeline.open(path, num_threads=1) as pipeline:
        yield pipeline


def make_embeds(number: float) -> F32:
    return np.full((1, 8, FEATURES), number, dtype=np.float32)


def make_start(shape: tuple[int, ...] = SHAPE) -> F32:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def sample(pipeline: VideoPipeline, scheduler: str, **arguments: Any) -> Array:
    negative = {"negative_prompt_embeds": make_embeds(TEXTS[1])}
    video = pipeline.generate(
        prompt_embeds=make_embeds(TEXTS[0]),
        latents=make_start(),
        scheduler=scheduler,
        **{**negative, **arguments},
    )
    assert video.latents is not None
    return video.latents


def expect(path: Path, scheduler: str, texts: list[float], guidance: float = 3.0) -> F32:
    steps = next(iter(Bundle.open(path).manifest.schedules[scheduler]))
    table = Bundle.open(path).load_schedule(scheduler, int(steps))
    scale = np.full((1, 1, SHAPE[2], 1, 1), guidance, dtype=np.float32)
    return sample_in_numpy(table, make_start(), texts, scale)


def check_close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("guidance_passes", GUIDANCE_PASSES)
@pytest.mark.parametrize("scheduler", ["plain", "reuse", "tail", "both"])
def test_latents_are_those_of_a_plain_loop(
    path: Path, pipeline: VideoPipeline, scheduler: str, guidance_passes: GuidancePasses
) -> None:
    use_fakes(pipeline)
    found = sample(pipeline, scheduler, guidance_passes=guidance_passes)
    check_close(found, expect(path, scheduler, TEXTS))


@pytest.mark.parametrize("scheduler", ["plain", "reuse", "tail", "both"])
def test_graphs_give_the_latents_of_a_plain_loop(
    path: Path, pipeline: VideoPipeline, scheduler: str
) -> None:
    found = sample(pipeline, scheduler)
    check_close(found, expect(path, scheduler, TEXTS))
    # The second clip uses what the first left in the engines.
    np.testing.assert_array_equal(sample(pipeline, scheduler), found)


def test_reuse_changes_the_latents(path: Path, pipeline: VideoPipeline) -> None:
    assert np.abs(sample(pipeline, "reuse") - sample(pipeline, "plain")).max() > 0.1


@pytest.mark.parametrize("guidance_passes", GUIDANCE_PASSES)
def test_rows_that_all_name_the_first_denoiser_change_nothing(
    pipeline: VideoPipeline, guidance_passes: GuidancePasses
) -> None:
    plain, named = (
        sample(pipeline, scheduler, guidance_passes=guidance_passes)
        for scheduler in ("plain", "all-named")
    )
    np.testing.assert_array_equal(plain, named)


def list_calls(*names: str, batches: tuple[int, ...]) -> list[Call]:
    """The runs of a table of REUSE, each name as often as it has batches."""
    rows = make_rows(*REUSE)
    wanted = {"unet": [OUTPUT, FEATURE], "unet_reuse": [OUTPUT]}
    return [
        Call(name, batch, SHAPE[2], int(row.timestep), wanted[name])
        for name, row in zip(names, rows, strict=True)
        for batch in batches
    ]


@pytest.mark.parametrize(("guidance_passes", "batches"), [("separate", (1, 1)), ("batched", (2,))])
def test_each_row_runs_its_denoiser_once_for_each_pass_or_for_both(
    pipeline: VideoPipeline, guidance_passes: GuidancePasses, batches: tuple[int, ...]
) -> None:
    calls, _ = use_fakes(pipeline)
    sample(pipeline, "reuse", guidance_passes=guidance_passes)
    assert calls == list_calls(*REUSE, batches=batches)


@pytest.mark.parametrize("guidance_passes", GUIDANCE_PASSES)
def test_a_row_without_guidance_runs_the_prompt_alone(
    pipeline: VideoPipeline, guidance_passes: GuidancePasses
) -> None:
    calls, _ = use_fakes(pipeline)
    sample(pipeline, "tail", guidance_passes=guidance_passes)
    assert [call.name for call in calls[-3:]] == list(REUSE[2:])
    assert [call.batch for call in calls[-3:]] == [1, 1, 1]
    assert sum(call.batch for call in calls) == 2 * 2 + 3


def test_what_no_row_takes_is_not_asked_for(pipeline: VideoPipeline) -> None:
    calls, _ = use_fakes(pipeline)
    sample(pipeline, "plain")
    assert {tuple(call.wanted) for call in calls} == {(OUTPUT,)}


def test_guidance_of_one_runs_the_prompt_alone_in_every_row(
    path: Path, pipeline: VideoPipeline
) -> None:
    calls, _ = use_fakes(pipeline)
    alone = {"guidance_scale": 1, "negative_prompt_embeds": None}
    found = sample(pipeline, "reuse", guidance_passes="batched", **alone)
    assert [call.batch for call in calls] == [1] * len(REUSE)
    check_close(found, expect(path, "reuse", TEXTS[:1]))


def test_a_table_without_guidance_has_neither_a_scale_nor_a_second_pass(
    path: Path, pipeline: VideoPipeline
) -> None:
    calls, _ = use_fakes(pipeline)
    found = sample(pipeline, "few-step", negative_prompt_embeds=None)
    assert [(call.name, call.batch) for call in calls] == [("unet_few_step", 1)] * 2
    check_close(found, expect(path, "few-step", TEXTS[:1]))
    settings = make_settings(pipeline.bundle, scheduler="few-step")
    assert (settings.guidance_scale, settings.uses_guidance) == (1.0, False)


@pytest.mark.parametrize("guidance_scale", [None, 1])
def test_a_table_without_guidance_refuses_a_negative_prompt(
    pipeline: VideoPipeline, guidance_scale: float | None
) -> None:
    with pytest.raises(ParameterError) as caught:
        pipeline.generate(
            "a", negative_prompt="red", scheduler="few-step", guidance_scale=guidance_scale
        )
    assert str(caught.value) == (
        "negative_prompt has no effect; no step of few-step takes guidance: leave it out, or use "
        "--scheduler ddim"
    )


def test_a_bundle_without_guidance_refuses_a_negative_prompt(path: Path) -> None:
    bundle = Bundle.open(path)
    manifest = dataclasses.replace(bundle.manifest, guidance=False)
    with (
        VideoPipeline(dataclasses.replace(bundle, manifest=manifest)) as pipeline,
        pytest.raises(ParameterError) as caught,
    ):
        pipeline.generate("a", negative_prompt="red")
    assert str(caught.value) == (
        "negative_prompt has no effect; this bundle's denoiser works without guidance: leave it out"
    )


def test_without_guidance_passes_those_of_the_bundle_are_taken(path: Path) -> None:
    bundle = Bundle.open(path)
    defaults = dataclasses.replace(bundle.manifest.defaults, guidance_passes="batched")
    bundle = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, defaults=defaults)
    )
    with VideoPipeline(bundle, num_threads=1) as pipeline:
        calls, _ = use_fakes(pipeline)
        sample(pipeline, "plain")
        assert {call.batch for call in calls} == {2}
        sample(pipeline, "plain", guidance_passes="separate")
        assert calls[-1].batch == 1


def test_what_is_carried_is_written_to_the_same_arrays_again(
    pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fakes = use_fakes(pipeline)
    given: list[Array | None] = []
    run = fakes["unet"].run

    def run_and_look(feeds: Any, outputs: Any, wanted: Any) -> Any:
        given.append(outputs.get(FEATURE))
        return run(feeds, outputs, wanted)

    monkeypatch.setattr(fakes["unet"], "run", run_and_look)
    sample(pipeline, "reuse")
    # Two passes in each of two rows: the first allocates, the second writes there.
    assert [array is None for array in given] == [True, True, False, False]
    assert given[2] is not given[3]


def test_low_memory_frees_every_denoiser_after_the_rows(path: Path) -> None:
    with VideoPipeline.open(path, num_threads=1, memory="low") as pipeline:
        _, fakes = use_fakes(pipeline)
        sample(pipeline, "reuse")
        closed = {name: fake.is_closed for name, fake in fakes.items()}
    assert closed == {"unet": True, "unet_reuse": True, "unet_few_step": False}


@pytest.mark.parametrize(
    ("scheduler", "guidance_passes", "expected"),
    [
        ("reuse", "separate", {("unet", 1), ("unet_reuse", 1)}),
        ("reuse", "batched", {("unet", 2), ("unet_reuse", 2)}),
        ("tail", "batched", {("unet", 1), ("unet", 2), ("unet_reuse", 1), ("unet_reuse", 2)}),
        ("few-step", "batched", {("unet_few_step", 1)}),
    ],
)
def test_every_denoiser_is_checked_before_any_work(
    pipeline: VideoPipeline,
    monkeypatch: pytest.MonkeyPatch,
    scheduler: str,
    guidance_passes: GuidancePasses,
    expected: set[tuple[str, int]],
) -> None:
    seen: set[tuple[str, int]] = set()

    def refuse_last(self: Components, name: str, shape: tuple[int, ...]) -> None:
        seen.add((name, shape[0]))
        if seen == expected:
            raise EngineError("no engine takes that")

    monkeypatch.setattr(Components, "check_latents", refuse_last)
    with pytest.raises(EngineError, match="no engine takes that"):
        pipeline.generate("a", scheduler=scheduler, guidance_passes=guidance_passes)
    assert pipeline._components.loaded == ()


def test_a_denoiser_for_one_clip_at_a_time_is_refused_in_a_batch_wherever_it_runs(
    path: Path,
) -> None:
    bundle = Bundle.open(path)
    record = bundle.manifest.components["unet_reuse"]
    tensor = dataclasses.replace(record.inputs["sample"], shape=(1, 4, "num_frames", "h", "w"))
    bundle.manifest.components["unet_reuse"] = dataclasses.replace(
        record, inputs={**record.inputs, "sample": tensor}
    )
    message = "takes sample with a first axis of 1"
    with VideoPipeline(bundle) as pipeline, pytest.raises(ParameterError, match=message):
        pipeline.generate("a", scheduler="reuse", guidance_passes="batched")


def test_the_inputs_of_a_reusing_denoiser_come_from_the_one_before_it(path: Path) -> None:
    bundle = Bundle.open(path)
    settings = make_settings(bundle, seed=0)
    feeds = make_inputs(bundle, settings, num_threads=1)
    components = Components(bundle, EngineOptions(num_threads=1))
    expected = components.load("unet", Timings()).run(feeds["unet"])[FEATURE]
    np.testing.assert_array_equal(feeds["unet_reuse"][FEATURE], expected)
    np.testing.assert_array_equal(feeds["unet_reuse"]["sample"], feeds["unet"]["sample"])
    components.unload("unet")


def test_a_batch_to_be_measured_holds_what_is_carried_twice(path: Path) -> None:
    bundle = Bundle.open(path)
    record = bundle.find_component("unet_reuse")
    feeds = make_inputs(bundle, make_settings(bundle, seed=0), num_threads=1)["unet_reuse"]
    batch = make_batch(record, feeds, feeds, [FEATURE])
    components = Components(bundle, EngineOptions(num_threads=1))
    engine = components.load("unet_reuse", Timings())
    one, two = (engine.run(tensors)[OUTPUT] for tensors in (feeds, batch))
    np.testing.assert_allclose(two, np.concatenate([one, one]), rtol=TOLERANCE)
    components.unload("unet_reuse")


def test_the_time_of_every_denoiser_counts_as_the_denoisers(pipeline: VideoPipeline) -> None:
    video = pipeline.generate("a", scheduler="few-step", seed=0)
    assert video.timings.seconds_denoiser > 0
    assert video.timings.seconds_other == 0


def test_a_seed_makes_the_same_clip_with_the_settings_of_the_video(
    pipeline: VideoPipeline,
) -> None:
    first = pipeline.generate("a red circle", scheduler="reuse", context_length=4)
    assert first.settings is not None
    chosen = dataclasses.asdict(first.settings)
    del chosen["latents_shape"]
    again = pipeline.generate("a red circle", **chosen)
    np.testing.assert_array_equal(first.frames, again.frames)
    assert again.settings == first.settings
