"""Which way of guidance a tuning makes the default, and that its plan is judged in that way."""

import pytest

from mutoscope.calibration import TuningError, plan_finding
from mutoscope.calibration.guidance_timing import GuidanceTiming
from mutoscope.calibration.samples import SamplingOptions, make_samples
from mutoscope.calibration.tuning import tune_bundle
from mutoscope.calibration.tuning_report import format_report
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.metrics import psnr_db
from tests.calibration.small_calibration import ANY_DB, list_labels, read_files
from tests.calibration.tuned_bundle import (
    NUM_STEPS,
    PLAN,
    ROUNDED_DB,
    TUNED,
    generate,
    make_options,
    make_up_passes,
)

MB = 10**6
BATCHED = GuidanceTiming(1.0, 0.5, 100 * MB, 110 * MB)


@pytest.fixture
def path(reusing_path):
    return reusing_path


@pytest.fixture
def tune(path, prompts, monkeypatch):
    """A function that tunes with little work, with these times of guidance, or measured ones."""
    make_up_passes(monkeypatch)

    def run(timing=None, on_progress=None, **changes):
        with pytest.MonkeyPatch.context() as patch:
            if timing is not None:
                patch.setattr(plan_finding, "time_guidance_passes", lambda *_: timing)
            options = make_options(prompts, **{"times_guidance_passes": True, **changes})
            return tune_bundle(Bundle.open(path), options, on_progress)

    return run


@pytest.mark.parametrize(
    ("timing", "better"),
    [
        (GuidanceTiming(1.0, 0.94), "batched"),
        (GuidanceTiming(1.0, 0.96), "separate"),
        (GuidanceTiming(1.0, 0.5, 100, 125), "batched"),
        (GuidanceTiming(1.0, 0.5, 100, 126), "separate"),
        (GuidanceTiming(1.0, 2.0, 100, 90), "separate"),
    ],
    ids=str,
)
def test_a_batch_is_better_if_it_is_faster_and_takes_little_more_memory(timing, better):
    assert timing.better == better


def test_memory_that_the_batch_does_not_need_is_no_negative_number():
    assert GuidanceTiming(1.0, 1.0, 100, 90).extra_bytes == 0
    assert GuidanceTiming(1.0, 1.0, None, 90).extra_bytes is None


@pytest.mark.parametrize(
    ("timing", "chosen", "line"),
    [
        (BATCHED, "batched", "500.0 ms and 10.0 MB more in a batch; "),
        (
            GuidanceTiming(1.0, 0.5, MB, 2 * MB),
            "separate",
            "batch, which takes too much memory; ",
        ),
        (GuidanceTiming(1.0, 1.0), "separate", "1000.0 ms in a batch; "),
    ],
    ids=str,
)
def test_the_better_way_becomes_the_default_and_the_report_says_why(
    tune, path, timing, chosen, line
):
    report = tune(timing, min_psnr_db=ANY_DB)
    assert report.guidance_passes == chosen
    assert Bundle.open(path).manifest.defaults.guidance_passes == chosen
    (found,) = [text for text in format_report(report) if text.startswith("  guidance: ")]
    assert found.endswith(f"{line}the bundle's default is {chosen}")
    if chosen == "batched":
        report = tune(min_psnr_db=ANY_DB, times_guidance_passes=False, force=True)
        assert report.guidance_timing is None
        assert report.guidance_passes == "batched"


def test_a_plan_is_judged_by_clips_of_the_way_that_is_chosen(tune, path, prompts):
    # The denoiser of this bundle mixes what is in a batch, so that its clips are others.
    bundle, texts = Bundle.open(path), prompts.read_text().splitlines()
    (sample,) = make_samples(bundle, texts, [], 1, 0, SamplingOptions(NUM_STEPS, TUNED))
    before = generate(bundle, sample, TUNED, NUM_STEPS)
    report = tune(BATCHED, min_psnr_db=ANY_DB, num_samples=1)
    after = generate(Bundle.open(path), sample, PLAN, NUM_STEPS)
    expected = psnr_db(before.frames, after.frames)
    assert report.median_psnr_db == pytest.approx(expected, abs=ROUNDED_DB)


def test_passes_stay_separate_where_the_plan_does_not_hold_in_a_batch(tune, path):
    labels = []
    report = tune(BATCHED, lambda label, *_: labels.append(label), min_psnr_db=30.0)
    assert "the plan in batched passes" in labels
    assert report.guidance_passes == "separate"
    assert report.median_psnr_db >= 30.0
    assert Bundle.open(path).manifest.defaults.guidance_passes == "separate"
    assert any("in which the plan does not reach 30 dB" in line for line in format_report(report))


def test_a_plan_that_does_not_hold_in_the_way_of_the_bundle_is_an_error(tune, path):
    tune(BATCHED, min_psnr_db=ANY_DB)
    before = read_files(path)
    message = (
        r"has -?\d+\.\d dB with guidance_passes 'batched', which is this bundle's default, and "
        r"\d+\.\d dB without: leave --no-guidance-passes out"
    )
    with pytest.raises(TuningError, match=message):
        tune(min_psnr_db=30.0, times_guidance_passes=False, force=True)
    assert read_files(path) == before


def test_guidance_is_timed_before_the_search(tune):
    calls = []
    timing = tune(None, lambda *call: calls.append(call)).guidance_timing
    assert timing.seconds_separate > 0
    assert timing.seconds_batched > 0
    assert timing.extra_bytes is None or timing.extra_bytes >= 0
    assert list_labels(calls)[:3] == ["clips of ddim", "timing guidance", "changing single rows"]
