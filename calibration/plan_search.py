"""Which rows of a schedule may reuse features or go without guidance, at the least cost.

What a change of a row does to its model output can be measured while the unchanged clip is made:
both outputs are there. How much of that is left in the clean latents is a factor of the row. With
both, the predicted error of a plan is a sum over its rows, and the plans that are worth a try are
shortest paths: those with the least of seconds + penalty * error, for all penalties.

Source: features reused as in DeepCache (Ma et al. 2024, arXiv:2312.00858), guidance in a part of
the rows as in Kynkäänniemi et al. 2024 (arXiv:2404.07724).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

F64: TypeAlias = NDArray[np.float64]


class RowChoice(NamedTuple):
    """How a row makes its model output.

    Attributes:
        reuses: With the features of the last row that did not.
        guided: With guidance, as far as the row has it.
    """

    reuses: bool
    guided: bool


UNCHANGED = RowChoice(reuses=False, guided=True)
Plan: TypeAlias = tuple[RowChoice, ...]


class Price(NamedTuple):
    """What a plan is predicted to cost: its seconds in the denoiser, and its error."""

    seconds: float
    error: float


class _Features(NamedTuple):
    """What a row finds: how many rows ago features were made, and whether of both passes."""

    age: int
    of_both: bool


_Step: TypeAlias = "tuple[RowChoice, _Features]"
_NOTHING = _Features(-1, of_both=False)


@dataclass(frozen=True)
class PlanCosts:
    """What the search knows of the rows of a schedule.

    Attributes:
        errors: float64 [N, A + 1, 2]: the error in the clean latents of a row whose features are so
            many rows old (0: its own), without and with guidance; infinite where that cannot be. It
            is 0 of the unchanged row.
        seconds: float64, of the same axes but the first: of a row in the denoiser.
    """

    errors: F64 = field(repr=False)
    seconds: F64 = field(repr=False)

    @property
    def num_rows(self) -> int:
        """Rows of the schedule."""
        return len(self.errors)

    def find_plan(self, penalty: float) -> Plan:
        """Return the plan with the least of seconds + penalty * error."""
        best: dict[_Features, tuple[float, Plan]] = {_NOTHING: (0.0, ())}
        for row in range(self.num_rows):
            reached: dict[_Features, tuple[float, Plan]] = {}
            for features, (cost, plan) in best.items():
                for choice, after in self._list_steps(row, features):
                    added = self._price_row(row, choice, after)
                    total = cost + added.seconds + penalty * added.error
                    if after not in reached or total < reached[after][0]:
                        reached[after] = total, (*plan, choice)
            best = reached
        return min(best.values())[1]

    def price(self, plan: Plan) -> Price:
        """Return what a plan costs; its error is infinite if it cannot be."""
        features, total = _NOTHING, Price(0.0, 0.0)
        for row, wanted in enumerate(plan):
            steps = self._list_steps(row, features)
            found = next((after for choice, after in steps if choice == wanted), None)
            if found is None:
                return Price(total.seconds, math.inf)
            features = found
            added = self._price_row(row, wanted, features)
            total = Price(total.seconds + added.seconds, total.error + added.error)
        return total

    def list_frontier(self) -> list[Plan]:
        """Return all plans that are best for some penalty, from the unchanged to the cheapest."""
        unchanged = (UNCHANGED,) * self.num_rows
        cheapest = self.find_plan(0.0)
        if self.price(cheapest).seconds >= self.price(unchanged).seconds:
            return [unchanged]
        return [unchanged, *self._list_between(unchanged, cheapest), cheapest]

    def list_cheaper(self, plan: Plan) -> list[Plan]:
        """Return the plans that differ in one row and are cheaper, the least error for it first."""
        before, found = self.price(plan), []
        for row, old in enumerate(plan):
            for choice in (RowChoice(True, True), RowChoice(False, False), RowChoice(True, False)):
                other = (*plan[:row], choice, *plan[row + 1 :])
                after = self.price(other)
                saved = before.seconds - after.seconds
                if choice != old and saved > 0 and math.isfinite(after.error):
                    found.append(((after.error - before.error) / saved, other))
        return [other for _, other in sorted(found)]

    def _list_between(self, dear: Plan, cheap: Plan) -> Iterator[Plan]:
        """The plans of the frontier between two of it, as corners of a convex hull are found."""
        first, last = self.price(dear), self.price(cheap)
        penalty = (first.seconds - last.seconds) / (last.error - first.error)
        middle = self.find_plan(penalty)
        price = self.price(middle)
        if last.seconds < price.seconds < first.seconds:
            yield from self._list_between(dear, middle)
            yield middle
            yield from self._list_between(middle, cheap)

    def _list_steps(self, row: int, features: _Features) -> Iterator[_Step]:
        """What a row may do with the features that it finds, and what it leaves."""
        age, of_both = features
        for guided in (True, False):
            steps = [(RowChoice(False, guided), _Features(0, of_both=guided))]
            if features != _NOTHING and (of_both or not guided):
                steps.append((RowChoice(True, guided), _Features(age + 1, of_both)))
            for choice, after in steps:
                is_measured = after.age < self.errors.shape[1]
                if is_measured and math.isfinite(self.errors[row, after.age, int(guided)]):
                    yield choice, after

    def _price_row(self, row: int, choice: RowChoice, features: _Features) -> Price:
        place = features.age, int(choice.guided)
        return Price(float(self.seconds[place]), float(self.errors[row][place]))


def find_cheapest(
    costs: PlanCosts, frontier: list[Plan], holds: Callable[[Plan], bool], *, num_repairs: int
) -> Plan:
    """Return the cheapest plan that was found to hold, which may be the unchanged one.

    The plans of the frontier are bisected; then the best of them is changed in single rows, for as
    long as it still holds.

    Args:
        costs: What the search knows.
        frontier: Its plans, from the unchanged to the cheapest.
        holds: Whether a plan is good enough; called once for each bit of the number of plans, and
            for each repair.
        num_repairs: How many changes of single rows are tried.
    """
    good, bad = 0, len(frontier)
    while bad - good > 1:
        middle = (good + bad) // 2
        if holds(frontier[middle]):
            good = middle
        else:
            bad = middle
    best, failed = frontier[good], set[Plan](frontier[bad : bad + 1])
    for _ in range(num_repairs):
        untried = (plan for plan in costs.list_cheaper(best) if plan not in failed)
        plan = next(untried, None)
        if plan is None:
            break
        if holds(plan):
            best = plan
        else:
            failed.add(plan)
    return best
