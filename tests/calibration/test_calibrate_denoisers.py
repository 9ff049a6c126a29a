"""Calibration of bundles with several denoisers, one of them cut out of another."""

import json

import numpy as np
import pytest

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.report import format_report
from mutoscope.calibration.reuse_graphs import DEEP_FEATURE
from mutoscope.calibration.samples import (
    SamplingOptions,
    make_samples,
)
from mutoscope.calibration.trajectory import TrajectoryJudge
from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.component_inputs import make_inputs
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.settings import make_settings
from tests.calibration.reusing_bundle import (
    FEW_STEP,
    FEW_STEP_SCHEDULER,
    NUM_STEPS,
    REUSE,
    REUSING_SCHEDULER,
    prefer,
)
from tests.calibration.small_calibration import IMPOSSIBLE_DB, count_int8, make_up_times, read_files
from tests.runtime.hand_made_bundle import write_manifest

PROMPTS = ["a red circle", "a blue circle"]
# Of the tables of ddim.
MOST_STEPS = 8
INT8_GRAPHS = ("unet/model_int8_reuse.onnx", "unet/model_int8_cpu_reuse.onnx")


@pytest.fixture
def path(reusing_path):
    return reusing_path


@pytest.fixture
def quick(monkeypatch):
    make_up_times(monkeypatch)


def run(graph, feeds):
    engine = open_engine(graph, EngineOptions(num_threads=1))
    try:
        wanted = {name: array for name, array in feeds.items() if name in engine.inputs}
        return engine.run(wanted)
    finally:
        engine.close()


def test_the_shallow_part_becomes_int8_with_its_denoiser(calibrate, path, quick):
    report = calibrate()
    assert list(report.components) == ["unet"]
    bundle = Bundle.open(path)
    record = bundle.find_component(REUSE)
    assert (record.variants["int8"], record.cpu_graphs["int8"]) == INT8_GRAPHS
    feeds = make_inputs(bundle, make_settings(bundle, seed=0))["unet"]
    for for_cpu in (False, True):
        whole, shallow = (
            bundle.load_graph(name, "int8", for_cpu=for_cpu) for name in ("unet", REUSE)
        )
        assert 0 < count_int8(shallow) < count_int8(whole)
        outputs = run(whole, feeds)
        found = run(shallow, {**feeds, DEEP_FEATURE: outputs[DEEP_FEATURE]})
        np.testing.assert_array_equal(found["out_sample"], outputs["out_sample"])
    for name in bundle.manifest.files:
        bundle.check_digest(name)


def test_reuse_and_int8_generate_together(calibrate, path, quick):
    calibrate()
    with VideoPipeline.open(path, variant="int8") as pipeline:
        options = {"seed": 0, "num_inference_steps": NUM_STEPS}
        reusing, plain = (
            pipeline.generate(PROMPTS[0], scheduler=scheduler, **options).frames
            for scheduler in (REUSING_SCHEDULER, "ddim")
        )
    assert reusing.shape == plain.shape
    assert (reusing != plain).any()


def test_int8_graphs_of_the_shallow_part_are_replaced_and_removed_with_force(
    calibrate, path, quick
):
    calibrate()
    calibrate(force=True)
    assert set(INT8_GRAPHS) <= set(Bundle.open(path).manifest.files)
    calibrate(force=True, min_psnr_db=IMPOSSIBLE_DB)
    bundle = Bundle.open(path)
    assert not set(INT8_GRAPHS) & set(bundle.manifest.files)
    assert not any((path / name).exists() for name in INT8_GRAPHS)
    assert "int8" not in bundle.find_component(REUSE).variants
    assert "int8" not in bundle.find_component(REUSE).cpu_graphs


def test_the_usual_components_are_those_of_the_default_clips(calibrate, quick):
    report = calibrate(components=())
    assert list(report.components) == ["text_encoder", "unet", "vae_decoder"]


def test_a_bundle_that_runs_another_denoiser_by_default_calibrates_that(calibrate, path, quick):
    prefer(path, FEW_STEP_SCHEDULER)
    report = calibrate(components=())
    assert list(report.components) == ["text_encoder", FEW_STEP, "vae_decoder"]
    assert "int8" not in Bundle.open(path).find_component("unet").variants
    # The base one, in clips that it makes: of the most steps up to 25, not of the default few.
    report = calibrate(sampling=SamplingOptions(scheduler="ddim"))
    assert list(report.components) == ["unet"]
    assert report.num_inference_steps == MOST_STEPS > NUM_STEPS
    assert list(format_report(report))[-1] == (
        f'run it: mutoscope generate "..." --bundle {path} --scheduler ddim '
        f"--num-inference-steps {MOST_STEPS} --variant int8 -o out.mp4"
    )
    assert "int8" in Bundle.open(path).find_component(REUSE).variants


@pytest.mark.parametrize(
    ("default", "scheduler", "asked", "expected"),
    [
        (FEW_STEP_SCHEDULER, None, None, (FEW_STEP_SCHEDULER, NUM_STEPS)),
        (FEW_STEP_SCHEDULER, FEW_STEP_SCHEDULER, None, (FEW_STEP_SCHEDULER, NUM_STEPS)),
        (FEW_STEP_SCHEDULER, "DDIMScheduler", None, ("ddim", MOST_STEPS)),
        (FEW_STEP_SCHEDULER, "ddim", 2, ("ddim", 2)),
        (FEW_STEP_SCHEDULER, None, 2, ("ddim", 2)),
        # The whole denoiser in place of the default plan, in as many steps.
        (REUSING_SCHEDULER, None, None, ("ddim", NUM_STEPS)),
        (REUSING_SCHEDULER, "ddim", None, ("ddim", NUM_STEPS)),
    ],
)
def test_clips_have_the_steps_that_a_generation_takes(path, default, scheduler, asked, expected):
    prefer(path, default)
    bundle = Bundle.open(path)
    settings = SamplingOptions(asked, scheduler).make_settings(bundle)
    assert (settings.scheduler, settings.num_inference_steps) == expected
    if scheduler is not None:
        generated = make_settings(bundle, scheduler=scheduler, num_inference_steps=asked)
        assert generated.num_inference_steps == settings.num_inference_steps


def test_a_plan_is_no_schedule_to_calibrate_with(calibrate, path):
    before = read_files(path)
    message = f"{REUSING_SCHEDULER} with 4 steps is a plan already: calibrate with the schedule"
    with pytest.raises(CalibrationError, match=message):
        calibrate(sampling=SamplingOptions(scheduler=REUSING_SCHEDULER))
    assert read_files(path) == before


def test_where_the_default_reuses_features_the_whole_denoiser_is_calibrated(calibrate, path, quick):
    prefer(path, REUSING_SCHEDULER)
    report = calibrate()
    assert list(report.components) == ["unet"]
    assert list(format_report(report))[-1] == (
        f'run it: mutoscope generate "..." --bundle {path} --variant int8 -o out.mp4'
    )


def test_a_plan_is_no_hint_for_a_denoiser(calibrate, path):
    manifest = json.loads((path / "manifest.json").read_text())
    schedules = manifest["schedules"]
    manifest["schedules"] = {REUSING_SCHEDULER: schedules.pop(REUSING_SCHEDULER), **schedules}
    write_manifest(path, manifest)
    prefer(path, FEW_STEP_SCHEDULER)
    message = (
        f"unet makes none of these clips, {FEW_STEP} does: use --scheduler ddim, or {FEW_STEP}"
    )
    with pytest.raises(ParameterError, match=message):
        calibrate(components=("unet",))


def test_a_denoiser_that_makes_none_of_the_clips_is_refused(calibrate):
    message = f"{FEW_STEP} makes none of these clips, unet does: use --scheduler few-step, or unet"
    with pytest.raises(ParameterError, match=message):
        calibrate(components=(FEW_STEP,))


def test_the_shallow_part_alone_is_refused(calibrate):
    with pytest.raises(ParameterError, match=f"{REUSE} becomes int8 with unet, .*: use unet"):
        calibrate(components=(REUSE,))


def test_samples_of_a_denoiser_without_guidance_have_none(reusing_bundle):
    bundle = Bundle.open(reusing_bundle)
    few_step = SamplingOptions(scheduler=FEW_STEP_SCHEDULER, num_inference_steps=NUM_STEPS)
    scales = [
        {sample.guidance_scale for sample in make_samples(bundle, PROMPTS, [], 8, 0, sampling)}
        for sampling in (None, few_step)
    ]
    assert scales == [{1.0, bundle.manifest.defaults.guidance_scale}, {1.0}]


def test_passes_are_recorded_in_the_rows_that_run_the_whole_denoiser(reusing_bundle):
    bundle = Bundle.open(reusing_bundle)
    sampling = SamplingOptions(scheduler=REUSING_SCHEDULER, num_inference_steps=NUM_STEPS)
    samples = make_samples(bundle, PROMPTS, [], 2, 0, sampling)
    with TrajectoryJudge(bundle, samples, sampling, num_passes=8, num_threads=1) as judge:
        assert judge.denoiser == "unet"
        judge.make_reference()
        assert {recorded.step_index for recorded in judge.passes} == {0, 2}
        assert len(judge.passes) == 8
        graph = bundle.load_graph("unet", "float32")
        engine = open_engine(graph, EngineOptions(num_threads=1))
        try:
            assert judge.measure({"unet": engine}).minimum_psnr_db > 100
        finally:
            engine.close()
