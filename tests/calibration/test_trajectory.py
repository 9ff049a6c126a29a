import numpy as np
import pytest

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.samples import (
    SamplingOptions,
    generate_sample,
    make_samples,
    open_float_pipeline,
)
from mutoscope.calibration.trajectory import ClipError, TrajectoryJudge, TrajectoryResult
from mutoscope.engines.forwarding_engine import ForwardingEngine
from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import CancelledError
from mutoscope.runtime.metrics import MAXIMUM_PSNR_DB, psnr_db
from tests.calibration.layered_bundle import WEIGHT, make_bundle, make_unet
from tests.runtime.hand_made_bundle import save_graph

PROMPTS = ["a red circle", "a blue circle", "a circle moves left"]
NUM_STEPS = 4
# Both sides compute in float32 and take norms of it in float64.
CLOSE = 1e-6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.open(make_bundle(tmp_path_factory.mktemp("trajectory") / "bundle"))


@pytest.fixture(scope="module")
def samples(bundle):
    return make_samples(bundle, PROMPTS, [], 4, 0)


@pytest.fixture(scope="module")
def judge(bundle, samples):
    with TrajectoryJudge(bundle, samples, num_passes=8) as judge:
        judge.make_reference()
        yield judge


@pytest.fixture(scope="module")
def float_engine(bundle):
    return open_engine(bundle.load_graph("unet", for_cpu=True), EngineOptions())


@pytest.fixture(scope="module")
def candidate(tmp_path_factory):
    """The denoiser with coarser weights."""
    path = tmp_path_factory.mktemp("candidate") / "model.onnx"
    save_graph(make_unet(np.round(WEIGHT, 1)), path)
    return open_engine(path, EngineOptions())


def generate(bundle, sample, engine=None):
    """The frames of a sample, and its latents after each step."""
    steps = []
    with open_float_pipeline(bundle) as pipeline:
        if engine is not None:
            pipeline.replace_engine("unet", ForwardingEngine(engine))
        video = generate_sample(
            pipeline,
            sample,
            SamplingOptions(),
            on_step=lambda info: steps.append(info.latents.copy()),
        )
    return video.frames, steps


def error_of(reference, result):
    return np.linalg.norm(result - reference) / np.linalg.norm(reference)


def test_the_float_model_itself_has_no_error(judge, float_engine):
    result = judge.measure({"unet": float_engine})
    assert result.minimum_psnr_db == MAXIMUM_PSNR_DB
    assert all(clip.latents_error == 0.0 for clip in result.clips)
    assert np.all(judge.measure_one_pass(float_engine) == 0.0)


def test_errors_are_those_of_the_frames_and_of_the_latents_after_each_step(
    bundle, samples, judge, candidate
):
    result = judge.measure({"unet": candidate})
    assert [clip.sample for clip in result.clips] == list(samples)
    for clip in result.clips:
        frames, steps = generate(bundle, clip.sample)
        candidate_frames, candidate_steps = generate(bundle, clip.sample, candidate)
        expected = [error_of(*pair) for pair in zip(steps, candidate_steps, strict=True)]
        assert clip.psnr_db == psnr_db(frames, candidate_frames) < 60
        np.testing.assert_allclose(clip.step_errors, expected, rtol=CLOSE)
        assert clip.latents_error == clip.step_errors[NUM_STEPS - 1]


def test_the_result_has_the_median_and_the_worst_clip(samples):
    clips = [
        ClipError(samples[0], psnr, np.array([0.0, error]))
        for psnr, error in ((30.0, 0.3), (40.0, 0.1), (20.0, 0.2))
    ]
    result = TrajectoryResult(tuple(clips))
    assert (result.median_psnr_db, result.minimum_psnr_db) == (30.0, 20.0)
    assert result.median_latents_error == 0.2


def test_a_measurement_leaves_the_candidate_open_and_the_float_model_in_its_place(
    judge, candidate, float_engine
):
    judge.measure({"unet": candidate})
    assert judge.measure({}).minimum_psnr_db == MAXIMUM_PSNR_DB
    assert judge.measure({"unet": candidate}).minimum_psnr_db < MAXIMUM_PSNR_DB


def test_a_candidate_whose_values_are_not_finite_has_an_infinite_error(judge, tmp_path):
    save_graph(make_unet(np.full_like(WEIGHT, np.nan)), tmp_path / "model.onnx")
    broken = open_engine(tmp_path / "model.onnx", EngineOptions())
    for clip in judge.measure({"unet": broken}).clips:
        assert np.all(np.isinf(clip.step_errors))
    assert np.all(np.isinf(judge.measure_one_pass(broken)))


def test_recorded_passes_are_of_all_clips_steps_and_sides_of_guidance(bundle, samples, judge):
    assert len(judge.passes) == 8
    assert sorted(recorded.step_index for recorded in judge.passes) == [0, 0, 1, 1, 2, 2, 3, 3]
    per_clip = [judge.load_clip(index).passes for index in range(len(samples))]
    assert [len(passes) for passes in per_clip] == [2, 2, 2, 2]
    encoded = [recorded.inputs["encoder_hidden_states"] for recorded in judge.passes]
    # Three prompts, and the negative one of guidance, which is the same for all clips.
    assert len({array.tobytes() for array in encoded}) == 4


def test_a_recorded_pass_is_what_the_float_denoiser_took_and_returned(judge, float_engine):
    for recorded in judge.passes:
        output = float_engine.run(recorded.inputs)["out_sample"]
        np.testing.assert_array_equal(recorded.output, output)


def test_the_error_of_one_pass_is_that_of_each_recorded_pass(judge, candidate):
    errors = judge.measure_one_pass(candidate)
    expected = [
        error_of(recorded.output, candidate.run(recorded.inputs)["out_sample"])
        for recorded in judge.passes
    ]
    np.testing.assert_allclose(errors, expected, rtol=CLOSE)
    assert errors.min() > 0.0


def test_clips_in_a_folder_are_found_again(bundle, samples, tmp_path, candidate):
    seen = []
    for count in (2, 2, 3):
        with TrajectoryJudge(bundle, samples[:count], num_passes=count, folder=tmp_path) as judge:
            judge.make_reference(seen.append)
            found = judge.measure({"unet": candidate})
    # With a third clip, other passes of the first two are recorded.
    assert [progress.sample for progress in seen[: 2 * NUM_STEPS]] == [1] * 4 + [2] * 4
    assert len(seen) > 2 * NUM_STEPS
    with TrajectoryJudge(bundle, samples[:3], num_passes=3) as judge:
        judge.make_reference()
        assert judge.measure({"unet": candidate}).median_psnr_db == found.median_psnr_db


def test_a_damaged_clip_is_noted_and_made_again(bundle, samples, tmp_path, caplog):
    seen = []
    with TrajectoryJudge(bundle, samples[:2], folder=tmp_path) as judge:
        judge.make_reference()
        frames = judge.load_clip(0).frames
        for path in tmp_path.iterdir():
            path.write_bytes(path.read_bytes()[:-50])
        judge.make_reference(seen.append)
        assert {progress.sample for progress in seen} == {1, 2}
        np.testing.assert_array_equal(judge.load_clip(0).frames, frames)
    assert "is damaged and is made again" in caplog.text


def test_clips_of_other_options_are_not_taken(bundle, samples, tmp_path, float_engine):
    for steps in (4, 2):
        options = SamplingOptions(num_inference_steps=steps)
        with TrajectoryJudge(bundle, samples[:1], options, folder=tmp_path) as judge:
            judge.make_reference()
            assert judge.load_clip(0).step_latents.shape[0] == steps
            assert judge.measure({"unet": float_engine}).median_latents_error == 0.0


def test_there_is_nothing_to_measure_with_before_the_reference_is_made(
    bundle, samples, float_engine
):
    with (
        TrajectoryJudge(bundle, samples) as judge,
        pytest.raises(CalibrationError, match="call make_reference"),
    ):
        judge.measure({"unet": float_engine})


def test_a_measurement_can_be_cancelled(judge, candidate):
    seen = []

    def cancel(progress):
        seen.append(progress)
        return len(seen) < 6

    with pytest.raises(CancelledError, match="cancelled after step 2 of 4"):
        judge.measure({"unet": candidate}, on_progress=cancel)
    assert (seen[-1].sample, seen[-1].num_samples, seen[-1].step) == (2, 4, 2)


def test_nothing_is_left_of_clips_that_were_not_to_be_kept(bundle, samples, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with TrajectoryJudge(bundle, samples[:1]) as judge:
        judge.make_reference()
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
