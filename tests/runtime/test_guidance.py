"""GuidedDenoiser: guidance in two runs or one, in arrays that are used again."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.engines.engine import Array, TensorSpec
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.components import Components
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.guidance import (
    GUIDANCE_PASSES,
    GuidancePasses,
    GuidedDenoiser,
    check_guidance_passes,
)
from mutoscope.runtime.manifest import PROMPT_EMBEDS, ComponentRecord
from mutoscope.runtime.noise import NoiseGenerator, make_noise_source
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.row_plan import DenoiserUse, RowPlan
from mutoscope.runtime.sampler import F32, StepInfo, denoise
from mutoscope.runtime.schedule import ScheduleRow
from mutoscope.runtime.timings import Timings
from tests.runtime.conftest import RunCli

SHAPE = (1, 4, 3, 4, 6)
GUIDANCE = np.linspace(1, 3, SHAPE[2], dtype=np.float32).reshape(1, 1, -1, 1, 1)
# A graph may sum in another order when it gets two clips at once.
LATENTS_TOLERANCE = 1e-5
# That order may move a value across the middle between two levels.
FRAMES_TOLERANCE = 1

# 4 MiB, so that one array of this size is far above what the loop may allocate: the chunks in which
# noise is made (0.4 MB), and objects of Python.
LARGE_SHAPE = (1, 4, 16, 128, 128)
ALLOCATED_BYTES = 512 * 2**10


class FakeUnet:
    """An engine whose output is in proportion to the sample and to the mean of the prompt."""

    device = "cpu"
    properties: Mapping[str, str] = {"engine": "fake"}
    memory_bytes: Mapping[str, int] = {}

    def __init__(self, record: ComponentRecord) -> None:
        def make_specs(tensors: Any) -> dict[str, TensorSpec]:
            return {name: TensorSpec(name, t.dtype, t.shape) for name, t in tensors.items()}

        self.inputs = make_specs(record.inputs)
        self.outputs = make_specs(record.outputs)
        self.seen: list[dict[str, Array]] = []
        self.kept: list[dict[str, Array]] = []
        self.keeps_arrays = True
        self.num_runs = 0

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Nothing."""

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> dict[str, Array]:
        """Write the output into the array that is given, without a temporary one."""
        assert outputs is not None
        assert wanted == ["out_sample"]
        if self.keeps_arrays:
            self.seen.append({**feeds, **outputs})
            self.kept.append({name: array.copy() for name, array in feeds.items()})
        self.num_runs += 1
        output = outputs["out_sample"]
        prompt = feeds["encoder_hidden_states"].mean(axis=(1, 2)).reshape(-1, 1, 1, 1, 1)
        np.multiply(feeds["sample"], prompt, out=output, casting="same_kind")
        return dict(outputs)

    def close(self) -> None:
        """Nothing."""


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


def change_inputs(bundle: Bundle, **changes: Any) -> None:
    """Replace inputs of the denoiser in the manifest; None takes one away."""
    record = bundle.manifest.components["unet"]
    inputs = {**record.inputs, **changes}
    kept = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    bundle.manifest.components["unet"] = dataclasses.replace(record, inputs=kept)


def make_prompt(number: float, length: int = 8) -> dict[str, Array]:
    return {PROMPT_EMBEDS[0]: np.full((1, length, 6), number, dtype=np.float32)}


def make_denoiser(
    bundle: Bundle,
    passes: list[dict[str, Array]],
    guidance_passes: GuidancePasses = "separate",
    shape: tuple[int, ...] = SHAPE,
) -> tuple[GuidedDenoiser, FakeUnet]:
    components = Components(bundle, EngineOptions())
    unet = FakeUnet(bundle.find_component("unet"))
    components._engines["unet"] = unet
    guidance = GUIDANCE if shape == SHAPE else np.full((1, 1, 1, 1, 1), 3, dtype=np.float32)
    plan = RowPlan("unet", {"unet": DenoiserUse(num_rows=1, guided=True)})
    denoiser = GuidedDenoiser(
        bundle, components, passes, shape, guidance, Timings(), plan,
        guidance_passes=guidance_passes,
    )  # fmt: skip
    return denoiser, unet


def make_row(timestep: float) -> ScheduleRow:
    return ScheduleRow(timestep, 1.0, 0, ())


def make_sample(shape: tuple[int, ...] = SHAPE) -> F32:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def test_one_pass_returns_what_the_graph_returns(bundle: Bundle) -> None:
    predict, unet = make_denoiser(bundle, [make_prompt(2.0)])
    np.testing.assert_array_equal(predict(make_sample(), make_row(7.0)), 2 * make_sample())
    assert unet.num_runs == 1
    assert unet.seen[0]["timestep"] == 7


@pytest.mark.parametrize(("guidance_passes", "num_runs"), [("separate", 2), ("batched", 1)])
def test_guidance_leads_from_the_negative_prompt_to_the_prompt(
    bundle: Bundle, guidance_passes: GuidancePasses, num_runs: int
) -> None:
    passes = [make_prompt(2.0), make_prompt(0.5)]
    predict, unet = make_denoiser(bundle, passes, guidance_passes)
    sample = make_sample()
    expected = 0.5 * sample + GUIDANCE * (2.0 - 0.5) * sample
    np.testing.assert_allclose(predict(sample, make_row(7.0)), expected, rtol=LATENTS_TOLERANCE)
    assert unet.num_runs == num_runs


@pytest.mark.parametrize("guidance_passes", ["separate", "batched"])
def test_every_step_uses_the_arrays_of_the_first_again(
    bundle: Bundle, guidance_passes: GuidancePasses
) -> None:
    passes = [make_prompt(2.0), make_prompt(0.5)]
    predict, unet = make_denoiser(bundle, passes, guidance_passes)
    first = predict(make_sample(), make_row(7.0))
    second = predict(2 * make_sample(), make_row(5.0))
    assert second is first
    per_step = len(unet.seen) // 2
    for before, after in zip(unet.seen[:per_step], unet.seen[per_step:], strict=True):
        assert all(after[name] is array for name, array in before.items())
    np.testing.assert_array_equal(
        unet.kept[-1]["sample"], np.broadcast_to(2 * make_sample(), unet.kept[-1]["sample"].shape)
    )
    assert (unet.kept[0]["timestep"], unet.kept[-1]["timestep"]) == (7, 5)


def test_a_batch_stacks_what_has_its_axis_and_leaves_the_rest(bundle: Bundle) -> None:
    record = bundle.manifest.components["unet"].inputs["timestep"]
    change_inputs(
        bundle,
        timestep=dataclasses.replace(record, shape=("batch",)),
        rate=dataclasses.replace(record, shape=(1,), source="frame_rate"),
    )
    rate = {"frame_rate": np.asarray(8.0)}
    passes = [make_prompt(2.0) | rate, make_prompt(0.5) | rate]
    predict, unet = make_denoiser(bundle, passes, "batched")
    predict(make_sample(), make_row(7.0))
    (feeds,) = unet.kept
    np.testing.assert_array_equal(feeds["timestep"], [7, 7])
    np.testing.assert_array_equal(feeds["rate"], [8])
    np.testing.assert_array_equal(feeds["encoder_hidden_states"][:, 0, 0], [2.0, 0.5])
    assert feeds["sample"].shape == (2, *SHAPE[1:])


def test_graphs_in_float16_are_fed_and_read_in_float16(bundle: Bundle) -> None:
    record = bundle.manifest.components["unet"]
    half = {n: dataclasses.replace(t, dtype="float16") for n, t in record.inputs.items()}
    outputs = {n: dataclasses.replace(t, dtype="float16") for n, t in record.outputs.items()}
    bundle.manifest.components["unet"] = dataclasses.replace(record, inputs=half, outputs=outputs)
    predict, unet = make_denoiser(bundle, [make_prompt(2.0), make_prompt(0.5)])
    sample = make_sample().astype(np.float16).astype(np.float32)
    found = predict(sample, make_row(7.0))
    assert unet.seen[0]["sample"].dtype == unet.seen[0]["out_sample"].dtype == np.float16
    assert found.dtype == np.float32
    # 2 and 0.5 times a float16 is exact.
    np.testing.assert_allclose(found, 0.5 * sample + GUIDANCE * 1.5 * sample, rtol=1e-6)


def test_unequal_lengths_do_not_fit_into_a_batch(bundle: Bundle) -> None:
    passes = [make_prompt(2.0), make_prompt(0.5, length=5)]
    message = (
        r"guidance_passes is 'batched' \(asked for, or this bundle's default\), but "
        r"encoder_hidden_states is \[1, 8, 6\] and \[1, 5, 6\] in the two passes; one "
        r"batch needs equal shapes: use guidance_passes='separate'"
    )
    with pytest.raises(ParameterError, match=message):
        make_denoiser(bundle, passes, "batched")
    make_denoiser(bundle, passes)[0](make_sample(), make_row(7.0))


def test_conditions_without_a_batch_axis_must_be_equal_in_a_batch(bundle: Bundle) -> None:
    record = bundle.manifest.components["unet"].inputs["timestep"]
    change_inputs(bundle, rate=dataclasses.replace(record, shape=(1,), source="frame_rate"))
    passes = [make_prompt(x) | {"frame_rate": np.asarray(8.0 * x)} for x in (2.0, 0.5)]
    with pytest.raises(ParameterError, match="rate has no batch axis and differs"):
        make_denoiser(bundle, passes, "batched")


def test_a_graph_for_one_clip_takes_no_batch(bundle: Bundle) -> None:
    record = bundle.manifest.components["unet"]
    sample = dataclasses.replace(record.inputs["sample"], shape=(1, 4, "F", "h", "w"))
    fixed = dataclasses.replace(record, inputs={**record.inputs, "sample": sample})
    check_guidance_passes(fixed, "separate")
    with pytest.raises(ParameterError, match="takes sample with a first axis of 1"):
        check_guidance_passes(fixed, "batched")


def test_generate_refuses_an_unknown_way_before_any_work(pipeline: VideoPipeline) -> None:
    with pytest.raises(ParameterError, match="guidance_passes is 'both'; it must be one of"):
        pipeline.generate("a red circle", guidance_passes="both")  # type: ignore[arg-type]
    assert pipeline._components.loaded == ()


def test_both_ways_make_the_same_video(monkeypatch: pytest.MonkeyPatch) -> None:
    run, batches = OnnxruntimeEngine.run, []

    def run_and_look(engine: OnnxruntimeEngine, feeds: Any, *arguments: Any) -> Any:
        batches.extend(len(feeds[name]) for name in feeds if name == "sample")
        return run(engine, feeds, *arguments)

    monkeypatch.setattr(OnnxruntimeEngine, "run", run_and_look)
    with VideoPipeline.open(num_threads=1) as pipeline:
        separate, batched = (
            pipeline.generate(
                "a red circle moves left", seed=3, num_inference_steps=3, guidance_passes=how
            )
            for how in GUIDANCE_PASSES
        )
    assert batches == [1] * 6 + [2] * 3
    assert np.abs(separate.frames.astype(int) - batched.frames).max() <= FRAMES_TOLERANCE
    assert separate.latents is not None
    assert batched.latents is not None
    difference = np.abs(separate.latents - batched.latents).max()
    assert difference <= LATENTS_TOLERANCE * np.abs(separate.latents).max()


def test_the_command_takes_the_way_of_guidance(
    bundle_path: Path, pipeline: VideoPipeline, run_cli: RunCli, tmp_path: Path
) -> None:
    out = tmp_path / "out.npy"
    run_cli(
        "generate", "a red circle", "--bundle", bundle_path, "--seed", "3", "-o", out,
        "--guidance-passes", "batched",
    )  # fmt: skip
    found = np.load(out)
    # This bundle's denoiser is the mean over both prompts of a batch, which tells the ways apart.
    separate, batched = (
        pipeline.generate("a red circle", seed=3, guidance_passes=how).frames
        for how in GUIDANCE_PASSES
    )
    np.testing.assert_array_equal(found, batched)
    assert (found != separate).any()


@pytest.mark.parametrize("guidance_passes", ["separate", "batched"])
@pytest.mark.parametrize("frames_first", [False, True])
@pytest.mark.parametrize("scheduler", ["ddim", "euler-ancestral", "dpm++2m", "unipc", "lcm"])
def test_the_loop_allocates_nothing_of_the_size_of_the_latents(
    bundle: Bundle, scheduler: str, frames_first: bool, guidance_passes: GuidancePasses
) -> None:
    table = Bundle.default().load_schedule(scheduler, 4)
    assert table.draws_noise == (scheduler in ("euler-ancestral", "lcm"))
    passes = [make_prompt(0.2), make_prompt(0.1)]
    predict, unet = make_denoiser(bundle, passes, guidance_passes, LARGE_SHAPE)
    unet.keeps_arrays = False
    draw = make_noise_source(NoiseGenerator(0), LARGE_SHAPE, frames_first=frames_first)
    peaks: list[int] = []

    def look(info: StepInfo) -> None:
        if info.step_index == 0:
            tracemalloc.start()
        peaks.append(tracemalloc.get_traced_memory()[1])

    try:
        latents = make_sample(LARGE_SHAPE)
        denoise(latents, table, predict, noise=lambda _step_index: draw(), on_step=look)
    finally:
        tracemalloc.stop()
    assert len(peaks) == len(table.rows) > 2
    assert max(peaks) < ALLOCATED_BYTES
