import itertools
import math

import numpy as np
import pytest

from mutoscope.calibration.plan_search import (
    UNCHANGED,
    PlanCosts,
    RowChoice,
    find_cheapest,
)

NUM_ROWS, MAX_AGE = 5, 3
REUSED, UNGUIDED = RowChoice(True, True), RowChoice(False, False)
BOTH = RowChoice(True, False)
CHOICES = (UNCHANGED, REUSED, UNGUIDED, BOTH)
# Sums of a few float64 in another order.
CLOSE = 1e-9


def make_costs(seed=0, num_rows=NUM_ROWS):
    """Random errors; a pass of the denoiser takes one second, with reused features a third."""
    errors = np.random.default_rng(seed).random((num_rows, MAX_AGE + 1, 2))
    errors[:, 0, 1] = 0
    seconds = np.outer([1, *[0.3] * MAX_AGE], [1, 2])
    return PlanCosts(errors, seconds)


def list_all(costs):
    """Every plan that can be, with its price."""
    plans = itertools.product(CHOICES, repeat=costs.num_rows)
    priced = ((costs.price(plan), plan) for plan in plans)
    return [(price, plan) for price, plan in priced if math.isfinite(price.error)]


@pytest.mark.parametrize("penalty", [0.0, 0.1, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_plan_that_is_found_is_the_best_of_all(seed, penalty):
    costs = make_costs(seed)
    best = min(price.seconds + penalty * price.error for price, _ in list_all(costs))
    price = costs.price(costs.find_plan(penalty))
    assert price.seconds + penalty * price.error == pytest.approx(best, abs=CLOSE)


def test_the_price_is_that_of_the_rows_with_features_of_their_age():
    costs = make_costs()
    price = costs.price((UNCHANGED, REUSED, BOTH, UNGUIDED, BOTH))
    assert price.seconds == pytest.approx(2 + 0.6 + 0.3 + 1 + 0.3, abs=CLOSE)
    errors = costs.errors
    expected = errors[1, 1, 1] + errors[2, 2, 0] + errors[3, 0, 0] + errors[4, 1, 0]
    assert price.error == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize(
    "plan",
    [
        (REUSED, *[UNCHANGED] * 4),
        (UNCHANGED, *[REUSED] * 4),
        (UNGUIDED, REUSED, *[UNCHANGED] * 3),
        (UNCHANGED, UNGUIDED, BOTH, REUSED, UNCHANGED),
    ],
    ids=["nothing to reuse", "too old", "of one pass", "of one pass, later"],
)
def test_a_plan_that_cannot_be_has_no_finite_error(plan):
    costs = make_costs()
    assert costs.price(plan).error == math.inf
    assert plan not in [found for _, found in list_all(costs)]


def test_what_was_not_measured_is_never_chosen():
    costs = make_costs()
    costs.errors[:, :, 0] = np.inf
    assert all(choice.guided for plan in costs.list_frontier() for choice in plan)
    costs.errors[:, 1:, 1] = np.inf
    assert costs.list_frontier() == [(UNCHANGED,) * NUM_ROWS]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_frontier_has_the_corners_of_the_hull_from_dear_to_cheap(seed):
    costs = make_costs(seed)
    frontier = costs.list_frontier()
    prices = [costs.price(plan) for plan in frontier]
    assert frontier[0] == (UNCHANGED,) * NUM_ROWS
    assert prices[-1].seconds == min(price.seconds for price, _ in list_all(costs))
    assert prices == sorted(prices, key=lambda price: -price.seconds)
    assert prices == sorted(prices, key=lambda price: price.error)
    for (dear, cheap), (other, _) in itertools.product(itertools.pairwise(prices), list_all(costs)):
        penalty = (dear.seconds - cheap.seconds) / (cheap.error - dear.error)
        line = dear.seconds + penalty * dear.error
        assert other.seconds + penalty * other.error >= line - CLOSE


def test_cheaper_plans_differ_in_one_row_and_begin_with_the_least_error_for_what_they_save():
    costs = make_costs()
    plan = (UNCHANGED, REUSED, UNCHANGED, UNGUIDED, UNCHANGED)
    before = costs.price(plan)
    cheaper = costs.list_cheaper(plan)
    assert cheaper
    rates = []
    for other in cheaper:
        assert sum(old != new for old, new in zip(plan, other, strict=True)) == 1
        after = costs.price(other)
        assert after.seconds < before.seconds
        rates.append((after.error - before.error) / (before.seconds - after.seconds))
    assert rates == sorted(rates)


@pytest.mark.parametrize("limit", [0.0, 0.3, 1.0, 3.0, 100.0])
def test_the_search_finds_a_plan_that_holds_and_asks_little(limit):
    costs, asked = make_costs(num_rows=25), []

    def holds(plan):
        asked.append(plan)
        return costs.price(plan).error <= limit

    frontier = costs.list_frontier()
    plan = find_cheapest(costs, frontier, holds, num_repairs=4)
    assert costs.price(plan).error <= limit
    held = [costs.price(other).seconds for other in frontier if costs.price(other).error <= limit]
    assert costs.price(plan).seconds <= min(held)
    assert len(asked) <= len(frontier).bit_length() + 4
    assert len(asked) == len(set(asked))


def test_a_search_in_which_nothing_holds_changes_nothing():
    costs = make_costs()
    plan = find_cheapest(costs, costs.list_frontier(), lambda _: False, num_repairs=6)
    assert plan == (UNCHANGED,) * NUM_ROWS


def test_single_rows_are_changed_where_no_corner_of_the_hull_holds():
    costs = make_costs()
    frontier = costs.list_frontier()
    target = next(plan for plan in costs.list_cheaper(frontier[0]) if plan not in frontier)
    assert find_cheapest(costs, frontier, target.__eq__, num_repairs=20) == target
