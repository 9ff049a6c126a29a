import dataclasses
import shutil
from contextlib import closing

import numpy as np
import pytest

from mutoscope.calibration.errors import TuningError
from mutoscope.calibration.plan_costs import RowWeights, choose_probe, make_costs
from mutoscope.calibration.plan_search import UNCHANGED, RowChoice
from mutoscope.calibration.plan_trials import PlanTrials
from mutoscope.calibration.samples import CalibrationSample
from mutoscope.calibration.tuned_schedule import find_schedule
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import CancelledError
from mutoscope.runtime.metrics import MAXIMUM_PSNR_DB, psnr_db
from tests.calibration.layered_bundle import BROKEN_WORD
from tests.calibration.reusing_bundle import REUSE, make_reusing_bundle
from tests.calibration.tuned_bundle import NUM_STEPS, ONE_THREAD, TUNED, generate, open_trials
from tests.runtime.reuse_bundle import add_schedule

MAX_AGE = 2
REUSED, UNGUIDED = RowChoice(True, True), RowChoice(False, False)
BOTH = RowChoice(True, False)
# What is exact but for float32: latents of some hundred values of size 1.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.open(make_reusing_bundle(tmp_path_factory.mktemp("trials") / "bundle"))


@pytest.fixture(scope="module", params=[(TUNED, NUM_STEPS), ("euler-ancestral", 4)], ids=str)
def trials(bundle, request):
    with open_trials(bundle, *request.param) as trials:
        for index in range(2):
            trials.make_unchanged(index, MAX_AGE)
        yield trials


def make_plan(trials, **choices):
    """A plan of choices by the row: `row_2=REUSED`."""
    plan = list(trials.schedule.unchanged)
    for row, choice in choices.items():
        plan[int(row.removeprefix("row_"))] = choice
    return tuple(plan)


def test_the_unchanged_plan_is_the_clip_that_was_recorded(trials):
    distance = trials.measure(0, trials.schedule.unchanged)
    assert distance.psnr_db == MAXIMUM_PSNR_DB
    assert distance.latents_error == 0.0


@pytest.mark.parametrize(
    "choices",
    [
        {"row_0": UNGUIDED},
        {"row_1": REUSED},
        {"row_2": REUSED, "row_3": REUSED},
        {"row_3": UNGUIDED},
        {"row_2": UNGUIDED, "row_3": BOTH},
        {"row_0": UNGUIDED, "row_1": BOTH, "row_3": BOTH},
    ],
    ids=str,
)
def test_a_clip_that_replays_its_first_rows_is_the_clip_of_the_plan(
    trials, bundle, tmp_path, choices
):
    plan = make_plan(trials, **choices)
    path = shutil.copytree(bundle.path, tmp_path / "bundle")
    table = trials.schedule.apply(plan)
    add_schedule(path, "tried", list(table.rows))
    scheduler, steps = trials.schedule.scheduler, trials.schedule.num_rows
    for index, sample in enumerate(trials.samples):
        expected = generate(bundle, sample, scheduler, steps).frames
        found = generate(Bundle.open(path), sample, "tried", steps).frames
        distance = trials.measure(index, plan)
        assert distance.psnr_db == psnr_db(expected, found)
        assert distance.psnr_db < MAXIMUM_PSNR_DB


@pytest.mark.parametrize("choice", [REUSED, UNGUIDED, BOTH], ids=str)
def test_the_error_of_the_last_row_is_that_of_its_model_output(trials, choice):
    last = trials.schedule.num_rows - 1
    plan = make_plan(trials, **{f"row_{last}": choice})
    output_error = trials.unchanged[0].rows.errors[last][int(choice.reuses), int(choice.guided)]
    expected = RowWeights(trials.schedule.table).linear[last] * output_error
    assert trials.measure(0, plan).latents_error == pytest.approx(expected, rel=CLOSE)


def test_errors_are_infinite_where_features_are_not_there_and_zero_where_nothing_changes(trials):
    errors = np.stack(trials.unchanged[0].rows.errors)
    assert errors.shape == (trials.schedule.num_rows, MAX_AGE + 1, 2)
    assert np.all(errors[:, 0, 1] == 0)
    assert np.isinf(errors[0, 1:]).all()
    assert np.isinf(errors[1, 2:]).all()
    assert np.isfinite(errors[2:]).all()
    assert np.all(errors[2:, 2, 1] > 0)


def test_a_factor_is_kept_at_its_row_and_changes_evenly_in_between(trials):
    weights = RowWeights(trials.schedule.table)
    before = weights.compute()
    assert np.array_equal(before, weights.linear)
    weights.add(1, 2.0, 2.0 * before[1] * 4)
    weights.add(3, 2.0, 2.0 * before[3] * 16)
    weights.add(2, 0.0, 1.0)  # nothing was changed, so that nothing is known
    after = weights.compute() / before
    assert after[:4] == pytest.approx([4, 4, 8, 16], rel=CLOSE)


def test_a_probe_is_the_smallest_change_of_its_row(trials):
    errors = trials.unchanged[0].rows.errors
    plan, error = choose_probe(errors[0], trials.schedule, 0)
    assert plan == make_plan(trials, row_0=UNGUIDED)
    assert error == errors[0][0, 0]
    plan, error = choose_probe(errors[2], trials.schedule, 2)
    assert plan == make_plan(trials, row_2=REUSED)
    assert error == errors[2][1, 1] < errors[2][0, 0]


def test_costs_are_squared_errors_in_the_latents(trials):
    weights = np.arange(1.0, trials.schedule.num_rows + 1)
    records = [clip.rows for clip in trials.unchanged.values()]
    costs = make_costs(records, weights, drops_guidance=True)
    first, second = (np.stack(record.errors)[2:] for record in records)
    expected = (first**2 + second**2) / 2 * weights[2:, None, None] ** 2
    assert costs.errors[2:] == pytest.approx(expected)
    assert costs.seconds[1, 1] == 2 * costs.seconds[1, 0] > 0
    without = make_costs(records, weights, drops_guidance=False)
    assert np.isinf(without.errors[:, :, 0]).all()
    assert all(choice.guided for choice in without.find_plan(0.0))


def test_clips_are_counted_by_the_rows_that_ran(trials):
    rows = trials.schedule.num_rows
    for choices, ran in (
        ({"row_0": UNGUIDED}, rows),
        ({"row_3": UNGUIDED}, rows - 3),
        ({"row_3": REUSED}, rows - 2),  # the row before it makes the features
        ({}, 0),
    ):
        before = trials.num_clips
        trials.measure(0, make_plan(trials, **choices))
        assert (trials.num_clips - before) * rows == pytest.approx(ran)


def test_a_whole_clip_is_that_of_the_plan_and_is_timed(trials):
    plan = make_plan(trials, row_1=REUSED, row_3=UNGUIDED)
    clip = trials.make_whole_clip(1, plan, "separate")
    assert clip.psnr_db == trials.measure(1, plan).psnr_db < MAXIMUM_PSNR_DB
    assert clip.seconds > 0


def test_what_is_timed_is_the_last_row_in_the_arrays_of_the_clip(trials):
    record = trials.find_record("unet")
    (sample,) = [name for name, tensor in record.inputs.items() if tensor.source == "latents"]
    first, second = trials.unchanged[0].rows.feeds
    assert first[sample] is second[sample]  # not a copy for each pass
    assert any((first[name] != second[name]).any() for name in first if name != sample)


def test_a_clip_is_cancelled_at_a_row(trials):
    seen = []

    def on_row(info):
        seen.append(info.step_index)
        return info.step_index < 1

    for make in (
        lambda: trials.measure(0, make_plan(trials, row_2=REUSED), on_row),
        lambda: trials.make_unchanged(0, MAX_AGE, on_row),
        lambda: trials.make_whole_clip(0, trials.schedule.unchanged, "separate", on_row),
    ):
        seen.clear()
        with pytest.raises(CancelledError):
            make()
        assert seen == [0, 1]


def test_latents_that_are_not_finite_are_an_error(bundle):
    with open_trials(bundle) as trials:
        schedule = trials.schedule
    sample = CalibrationSample(f"a {BROKEN_WORD}", 3, None, 3.0)
    with (
        closing(PlanTrials(bundle, schedule, [sample], ONE_THREAD, None)) as broken,
        pytest.raises(TuningError, match=r"NaN or infinite: .*a square.*seed 3"),
    ):
        broken.make_unchanged(0, MAX_AGE)


def test_no_row_reuses_features_with_the_shallow_part_of_another_denoiser(bundle):
    manifest = bundle.manifest
    other = dataclasses.replace(manifest.components[REUSE], weights_of="unet_few_step")
    changed = dataclasses.replace(manifest, components={**manifest.components, REUSE: other})
    options = {"reuses_features": True, "drops_guidance": True}
    assert find_schedule(bundle, TUNED, NUM_STEPS, **options).shallow == REUSE
    bundle = dataclasses.replace(bundle, manifest=changed)
    assert find_schedule(bundle, TUNED, NUM_STEPS, **options).shallow is None


def test_a_plan_is_the_table_with_other_denoisers_and_guidance(trials):
    schedule = trials.schedule
    table = schedule.apply(make_plan(trials, row_1=REUSED, row_2=BOTH, row_3=UNGUIDED))
    assert [row.denoiser for row in table.rows[:4]] == [None, REUSE, REUSE, None]
    assert [row.guidance for row in table.rows[:4]] == [True, True, False, False]
    assert [row.updates for row in table.rows] == [row.updates for row in schedule.table.rows]
    assert schedule.apply(schedule.unchanged) == schedule.table
    assert set(schedule.unchanged) == {UNCHANGED}
