import dataclasses
import json
import shutil

import numpy as np
import pytest

from mutoscope.calibration import TuningError, tuned_schedule
from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.samples import SamplingOptions, make_samples
from mutoscope.calibration.tuned_schedule import find_schedule
from mutoscope.calibration.tuning import tune_bundle
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import (
    CancelledError,
    OutputError,
    ParameterError,
    ScheduleError,
)
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.schedule import ScheduleTable
from tests.calibration.layered_bundle import BROKEN_WORD
from tests.calibration.reusing_bundle import (
    FEW_STEP_SCHEDULER,
    REUSE,
    REUSING_SCHEDULER,
    prefer,
)
from tests.calibration.small_calibration import (
    IMPOSSIBLE_DB,
    list_labels,
    make_up_times,
    read_files,
)
from tests.calibration.tuned_bundle import (
    NUM_STEPS,
    PLAN,
    ROUNDED_DB,
    TUNED,
    generate,
    make_all_guided,
    make_options,
    make_up_passes,
    measure_anew,
)
from tests.runtime.hand_made_bundle import write_manifest

TABLE = f"schedules/{PLAN}_{NUM_STEPS}.json"


@pytest.fixture
def path(reusing_path):
    return reusing_path


@pytest.fixture
def tune(path, prompts, monkeypatch):
    """A function that tunes with little work; or as it is told."""
    make_up_passes(monkeypatch)

    def run(on_progress=None, **changes):
        return tune_bundle(Bundle.open(path), make_options(prompts, **changes), on_progress)

    return run


@pytest.fixture
def samples(path, prompts):
    """What a tuning makes clips of."""
    texts = prompts.read_text().splitlines()
    made = make_samples(Bundle.open(path), texts, [], 2, 0, SamplingOptions(NUM_STEPS, TUNED))
    return make_all_guided(made)


def load_plan(path):
    return ScheduleTable.load(path / TABLE)


def stop_in(label, error):
    """What raises an error in the middle of a part of the work."""

    def on_progress(now, done, total):
        if now == label and done >= total / 2:
            raise error

    return on_progress


@pytest.mark.parametrize("min_psnr_db", [25.0, 30.0, 40.0])
def test_a_plan_holds_what_it_states_when_it_is_generated_anew(tune, path, samples, min_psnr_db):
    report = tune(min_psnr_db=min_psnr_db)
    median, minimum = measure_anew(Bundle.open(path), samples, PLAN)
    assert median >= min_psnr_db
    assert report.median_psnr_db == pytest.approx(median, abs=ROUNDED_DB)
    assert report.minimum_psnr_db == pytest.approx(minimum, abs=ROUNDED_DB)
    assert report.reused_rows or report.unguided_rows


def test_less_psnr_leaves_less_work(tune):
    def count_seconds(report):
        shallow, unguided = set(report.reused_rows), set(report.unguided_rows)
        return sum(
            (0.3 if row in shallow else 1.0) * (1 if row in unguided else 2)
            for row in range(NUM_STEPS)
        )

    costs = [count_seconds(tune(min_psnr_db=db, force=True)) for db in (20.0, 30.0, 40.0)]
    assert costs == sorted(costs)
    assert costs[0] < costs[2] < 2 * NUM_STEPS


def test_the_table_is_what_the_report_says_and_else_the_schedule(tune, path):
    before = Bundle.open(path).manifest
    report = tune(min_psnr_db=25.0)
    plan, old = load_plan(path), ScheduleTable.load(path / f"schedules/{TUNED}_{NUM_STEPS}.json")
    reused = tuple(i for i, row in enumerate(plan.rows) if row.denoiser is not None)
    assert reused == report.reused_rows
    assert {plan.rows[i].denoiser for i in reused} == {REUSE}
    assert report.unguided_rows == tuple(i for i, row in enumerate(plan.rows) if not row.guidance)
    plain = [dataclasses.replace(row, denoiser=None, guidance=True) for row in plan.rows]
    assert dataclasses.replace(plan, rows=tuple(plain), graph_sha256=None) == old
    after = Bundle.open(path).manifest
    assert plan.graph_sha256 == after.files["unet/model.onnx"].sha256
    assert list(after.schedules) == [*before.schedules, PLAN]
    assert after.schedules[PLAN] == {str(NUM_STEPS): TABLE}
    assert {name: after.files[name] for name in before.files} == before.files


def test_a_plan_says_how_it_was_found(tune, path):
    report = tune(seed=5)
    found = load_plan(path).provenance["plan"]
    assert found["scheduler"] == TUNED
    assert found["variant"] == "float32"
    assert found["seed"] == 5
    assert found["num_samples"] == 2
    assert found["min_psnr_db"] == 30.0
    assert found["median_psnr_db"] == report.median_psnr_db
    assert (found["seconds_before"], found["seconds_after"]) == (
        report.seconds_before,
        report.seconds_after,
    )
    tune(seed=6, force=True)
    assert load_plan(path).provenance["plan"]["samples_sha256"] != found["samples_sha256"]


def test_reuse_and_guidance_can_each_be_left_out(tune):
    report = tune(reuses_features=False, min_psnr_db=20.0, name=None)
    assert report.unguided_rows
    assert not report.reused_rows
    assert report.name == f"{TUNED}-interval"
    assert report.seconds_shallow == 0.3  # as made up
    report = tune(drops_guidance=False, min_psnr_db=20.0)
    assert report.reused_rows
    assert not report.unguided_rows


def test_a_plan_for_another_graph_is_refused(tune, path, samples):
    tune()
    generate(Bundle.open(path), samples[0], PLAN, NUM_STEPS)
    graph = path / "unet" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x7a\x00")  # an empty field that readers pass over
    write_manifest(path, json.loads((path / "manifest.json").read_text()))
    with pytest.raises(ScheduleError, match=r"was made for another graph of unet .*: tune again"):
        generate(Bundle.open(path), samples[0], PLAN, NUM_STEPS)


def test_int8_and_a_plan_go_together(tune, calibrate, path, samples, monkeypatch):
    make_up_times(monkeypatch)
    calibrate()
    report = tune(variant="int8")
    assert report.variant == "int8"
    assert load_plan(path).provenance["plan"]["variant"] == "int8"
    bundle = Bundle.open(path)
    median, _ = measure_anew(bundle, samples, PLAN, "int8")
    assert median >= report.min_psnr_db
    assert report.median_psnr_db == pytest.approx(median, abs=ROUNDED_DB)
    with VideoPipeline(bundle, variant="int8") as pipeline:
        assert pipeline.variants[REUSE] == "int8"
    # The float model runs it too: it is the same graph before quantization.
    assert generate(bundle, samples[0], PLAN, NUM_STEPS).frames.any()


def test_a_plan_is_replaced_with_force_only(tune, path):
    tune()
    before = read_files(path)
    with pytest.raises(OutputError, match="has a plan plan of 8 steps: choose another --name, or"):
        tune()
    assert read_files(path) == before
    tune(force=True, min_psnr_db=45.0)
    assert load_plan(path).provenance["plan"]["min_psnr_db"] == 45.0
    tune(num_inference_steps=4, min_psnr_db=20.0)
    assert list(Bundle.open(path).manifest.schedules[PLAN]) == ["8", "4"]


def test_what_a_bundle_without_guidance_could_tune_is_another_schedule(tune, path, deep_bundle):
    change = {"guidance": False}
    write_manifest(path, json.loads((path / "manifest.json").read_text()) | change)
    with pytest.raises(
        TuningError, match=r"few-step has nothing to tune: .*: use --scheduler ddim$"
    ):
        tune(scheduler=FEW_STEP_SCHEDULER, num_inference_steps=4)
    shutil.rmtree(path)
    shutil.copytree(deep_bundle, path)
    write_manifest(path, json.loads((path / "manifest.json").read_text()) | change)
    with pytest.raises(TuningError, match=r"export the checkpoint again with --reuse-layers 1$"):
        tune()


def test_a_variant_that_only_other_components_have_is_no_variant_of_the_plan(
    tune, calibrate, path, monkeypatch
):
    make_up_times(monkeypatch)
    calibrate(components=("vae_decoder",))
    before = read_files(path)
    message = (
        r"variant is 'int8', which unet does not have \(it has float32\): calibrate it first: "
        f"mutoscope calibrate {path} --components unet --scheduler ddim$"
    )
    with pytest.raises(ParameterError, match=message):
        tune(variant="int8")
    assert read_files(path) == before


def test_without_a_scheduler_the_first_with_25_steps_is_meant(tune):
    with pytest.raises(ParameterError, match=r"num_inference_steps is 25; .* ddim for .*: use 8"):
        tune(scheduler=None, num_inference_steps=None)


@pytest.mark.parametrize(("default", "num_steps"), [(TUNED, 4), (FEW_STEP_SCHEDULER, NUM_STEPS)])
def test_without_steps_those_that_a_generation_takes_are_tuned(path, default, num_steps):
    prefer(path, default)
    found = find_schedule(Bundle.open(path), TUNED, None, reuses_features=True, drops_guidance=True)
    assert (found.scheduler, found.table.num_inference_steps) == (TUNED, num_steps)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"scheduler": "euler"}, ParameterError, "scheduler 'euler' is not in this bundle: use"),
        ({"num_inference_steps": 7}, ParameterError, "num_inference_steps is 7; .*: use 8"),
        ({"min_psnr_db": np.nan}, ParameterError, "min_psnr_db is nan; it must be a number: use"),
        ({"num_samples": 0}, CalibrationError, "num_samples is 0; it must be at least 1"),
        ({"name": "a plan"}, ParameterError, "name is 'a plan'; it may have small letters.*reuse"),
        ({"name": TUNED}, ParameterError, "name is 'ddim', which .* plan: choose another --name"),
        (
            {"name": "d.dim"},
            ParameterError,
            "name is 'd.dim', which is too like 'ddim', a schedule",
        ),
        (
            {"scheduler": REUSING_SCHEDULER, "num_inference_steps": 4},
            TuningError,
            "ddim-reuse with 4 steps is a plan already: tune the schedule that it was made of",
        ),
        (
            {"scheduler": FEW_STEP_SCHEDULER, "num_inference_steps": 4},
            TuningError,
            "few-step has nothing to tune: unet_few_step has no part that reuses its features, and "
            "its rows have no guidance to drop: use --scheduler ddim",
        ),
        (
            {"reuses_features": False, "drops_guidance": False},
            TuningError,
            "ddim has nothing to tune: reuse is left out, and guidance is left as it is: leave "
            "--no-guidance-interval out",
        ),
        (
            {"min_psnr_db": IMPOSSIBLE_DB},
            TuningError,
            r"no row of ddim can be changed at 250 dB \(the best plan that was tried has \d+\.\d "
            r"dB\): ask for less with --min-psnr-db",
        ),
        ({"variant": "int4"}, ParameterError, "variant 'int4' is not in this bundle"),
    ],
)
def test_what_cannot_be_tuned_is_an_error_and_changes_nothing(tune, path, changes, kind, message):
    before = read_files(path)
    with pytest.raises(kind, match=message):
        tune(**changes)
    assert read_files(path) == before


def test_a_plan_that_was_tuned_names_the_schedule_it_was_made_of(tune):
    tune()
    with pytest.raises(TuningError, match=r"plan with 8 steps is a plan already: .*: use .* ddim$"):
        tune(scheduler=PLAN, name="again")


def test_prompts_that_break_the_model_are_an_error(tune, path, prompts):
    prompts.write_text(f"a {BROKEN_WORD}\n")
    with pytest.raises(TuningError, match="the latents are NaN or infinite"):
        tune()


def test_a_bundle_without_shallow_part_is_tuned_for_guidance(tune, path, deep_bundle):
    shutil.rmtree(path)
    shutil.copytree(deep_bundle, path)
    report = tune(min_psnr_db=20.0, name=None)
    assert report.name == f"{TUNED}-interval"
    assert report.unguided_rows
    with pytest.raises(
        TuningError, match=r"unet has no part that reuses its features, and .* out$"
    ):
        tune(drops_guidance=False)


def test_an_unguided_bundle_is_tuned_for_reuse_alone(tune, path):
    manifest = json.loads((path / "manifest.json").read_text())
    write_manifest(path, manifest | {"guidance": False})
    with pytest.raises(TuningError, match=r"no guidance to drop: leave --no-reuse out$"):
        tune(reuses_features=False)
    report = tune(min_psnr_db=20.0)
    assert report.reused_rows
    assert not report.unguided_rows


@pytest.mark.parametrize(
    ("label", "error"),
    [
        ("clips of ddim", KeyboardInterrupt()),
        ("changing single rows", RuntimeError("broken")),
        ("trying plans", KeyboardInterrupt()),
        ("timing guidance", RuntimeError("broken")),
        ("timing clips", KeyboardInterrupt()),
    ],
    ids=str,
)
def test_a_bundle_is_untouched_by_a_tuning_that_stops(tune, path, label, error):
    before = read_files(path)
    with pytest.raises(type(error)):
        tune(stop_in(label, error), times_guidance_passes=True)
    assert read_files(path) == before


def test_a_tuning_is_cancelled_by_what_it_tells(tune, path):
    before, labels = read_files(path), []
    with pytest.raises(CancelledError):
        tune(
            lambda label, *_: labels.append(label) or label != "timing guidance",
            times_guidance_passes=True,
        )
    assert labels[-1] == "timing guidance"
    assert read_files(path) == before


@pytest.mark.parametrize("place", ["make_file_record", "save_manifest"])
def test_a_bundle_is_untouched_by_a_failure_while_it_is_written(tune, path, monkeypatch, place):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tuned_schedule, place, fail)
    before = read_files(path)
    with pytest.raises(KeyboardInterrupt):
        tune()
    assert read_files(path) == before


def test_progress_never_goes_back_within_a_part_and_ends_with_all_of_it(tune):
    calls = []
    tune(lambda *call: calls.append(call), times_guidance_passes=True)
    # The plan is made once more in one batch, if that is measured to be faster.
    labels = [label for label in list_labels(calls) if label != "the plan in batched passes"]
    assert labels == [
        "clips of ddim",
        "timing guidance",
        "changing single rows",
        "trying plans",
        "timing clips",
    ]
    for label in labels:
        part = [(done, total) for now, done, total in calls if now == label]
        assert [done for done, _ in part] == sorted(done for done, _ in part)
        assert all(done <= total for done, total in part)
        assert part[-1][0] == part[-1][1], label
