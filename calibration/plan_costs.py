"""What the search for a plan is told: how long rows take, and how much their errors matter.

An error of a model output reaches the clean latents by the coefficients of the table, and by what
the denoiser makes of it in the rows that follow. The first part is exact; the second is measured by
changing a few rows, one at a time, and taken to lie between its values for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from mutoscope.calibration.plan_search import F64, Plan, PlanCosts, RowChoice
from mutoscope.calibration.plan_trials import TunedSchedule
from mutoscope.calibration.row_recording import RowRecord
from mutoscope.runtime.sampler import F32, denoise
from mutoscope.runtime.schedule import ScheduleRow, ScheduleTable


class RowWeights:
    """How much of an error of each model output is left in the clean latents.

    Attributes:
        linear: By the coefficients of the table alone, float64 [N].
        factors: What the denoiser makes of it in later rows, by the row, where it was measured.
    """

    def __init__(self, table: ScheduleTable) -> None:
        """Find what the table alone says."""
        count = len(table.rows)
        self.linear = np.array([_weigh_row(table, index) for index in range(count)])
        self.factors: dict[int, float] = {}

    def add(self, row: int, output_error: float, latents_error: float) -> None:
        """Take into account what a change of a row alone did."""
        expected = self.linear[row] * output_error
        if expected > 0 and latents_error > 0:
            self.factors[row] = latents_error / expected

    def compute(self) -> F64:
        """Return the weights, float64 [N]; factors in between are taken to change evenly."""
        if not self.factors:
            return self.linear
        rows = sorted(self.factors)
        logarithms = np.log([self.factors[row] for row in rows])
        return self.linear * np.exp(np.interp(np.arange(len(self.linear)), rows, logarithms))


def choose_probe(errors: F64, schedule: TunedSchedule, row: int) -> tuple[Plan, float] | None:
    """Return the smallest change of a row, as a plan, and what it does to the model output.

    Args:
        errors: float64 [A + 1, 2], of the row.
        schedule: The schedule.
        row: Which it is.

    Returns:
        None if nothing in the row can be changed.
    """
    choices = [(RowChoice(True, True), errors[1:2, 1])]
    if schedule.drops_guidance:
        choices.append((RowChoice(False, False), errors[:1, 0]))
    found = [
        (float(error[0]), choice)
        for choice, error in choices
        if error.size and 0 < error[0] < np.inf
    ]
    if not found:
        return None
    error, choice = min(found)
    plan = list(schedule.unchanged)
    plan[row] = choice
    return tuple(plan), error


def make_costs(records: Sequence[RowRecord], weights: F64, *, drops_guidance: bool) -> PlanCosts:
    """Return what the search is told.

    Args:
        records: Of clips of the schedule as it is.
        weights: Of `RowWeights.compute`.
        drops_guidance: Whether rows may go without guidance.
    """
    errors = np.mean([np.square(np.stack(record.errors)) for record in records], axis=0)
    errors *= np.square(weights)[:, None, None]
    if not drops_guidance:
        errors[:, :, 0] = np.inf
    whole, shallow = measure_passes(records)
    num_passes = len(records[0].outputs[0])
    of_pass = np.array([whole, *[shallow] * (errors.shape[1] - 1)])
    return PlanCosts(errors, np.outer(of_pass, [1, num_passes]))


def measure_passes(records: Sequence[RowRecord]) -> tuple[float, float]:
    """Return the median seconds of a pass of the denoiser, and of what reuses features, or 0."""
    whole = [seconds for record in records for seconds in record.seconds_whole]
    shallow = [seconds for record in records for seconds in record.seconds_shallow]
    return median(whole), median(shallow or [0.0])


def _weigh_row(table: ScheduleTable, index: int) -> float:
    """How much of a model output is in the clean latents, if later ones stay as they are."""
    outputs = iter(np.eye(1, len(table.rows), index, dtype=np.float32)[0])
    nothing = np.zeros((1,), dtype=np.float32)

    def predict(_sample: F32, _row: ScheduleRow) -> F32:
        return np.full((1,), next(outputs))

    return abs(float(denoise(nothing, table, predict, noise=lambda _: nothing)[0]))
