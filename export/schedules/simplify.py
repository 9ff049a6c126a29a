"""Make a traced program short: fewer values kept between rows, fewer terms in a row.

None of it changes what a program computes, save the last digits; the limits below keep those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from mutoscope.export.schedules.program import (
    START_NOISE,
    Combination,
    ProgramRow,
    Symbol,
    clean,
    drop_dead,
    find_live,
    forward_multiples,
    measure_magnitudes,
    substitute,
)

# Terms that cancel in exact arithmetic leave less than this of their size.
CANCELLED: Final = 1e-9
# Writing a value through others may not subtract numbers that are larger than it by more than this:
# each factor of ten costs a digit of float32.
MAX_CANCELLATION: Final = 8.0


def simplify(rows: list[ProgramRow], init_noise_sigma: float) -> None:
    """Forward multiples, drop dead values, and values that others hold between them; in place."""
    forward_multiples(rows)
    drop_dead(rows)
    _drop_dependent(rows, measure_magnitudes(rows, init_noise_sigma))
    drop_dead(rows)


def share_work(row: ProgramRow) -> dict[int, Combination]:
    """Return the definitions of a row, written through each other where that is shorter.

    UniPC's new latents are a few terms in its corrected sample, and many in what that is made of.
    Nothing is written through the new latents, so that they can always come last.
    """
    result = dict(row.definitions)
    order = sorted(result, key=lambda value: (value == row.latents_out, len(result[value])))
    for position, value in enumerate(order):
        # Only what comes before in this order, so that nothing is written in a circle.
        for helper in order[:position]:
            result[value] = _write_through(result[value], helper, row.definitions[helper])
    return result


def _write_through(target: Combination, helper: int, meaning: Combination) -> Combination:
    """The target with the helper as one of its symbols, if that has fewer terms."""
    largest = MAX_CANCELLATION * max(map(abs, target.values()), default=0.0)
    best = target
    for symbol in meaning.keys() & target.keys():
        factor = target[symbol] / meaning[symbol]
        removed = {inner: factor * coefficient for inner, coefficient in meaning.items()}
        if max(map(abs, removed.values())) > largest or abs(factor) > largest:
            continue
        rest = {s: _subtract(target.get(s, 0.0), removed.get(s, 0.0)) for s in target | removed}
        candidate = clean({**rest, helper: factor})
        best = min(best, candidate, key=len)
    return best


def _subtract(left: float, right: float) -> float:
    """The difference, exactly zero where only rounding is left."""
    difference = left - right
    return difference if abs(difference) > CANCELLED * max(abs(left), abs(right)) else 0.0


def _drop_dependent(rows: list[ProgramRow], sizes: dict[Symbol, float]) -> None:
    """Drop each value that the values kept beside it hold between them, in place.

    UniPC keeps its corrected sample, the estimates that the new latents are made of, and has the
    new latents: one of them follows from the others and need not be kept. So too in Heun and
    SA-Solver.
    """
    last_read = {
        value: index for index, live in enumerate(find_live(rows), start=1) for value in live
    }
    live = {START_NOISE}
    for index, row in enumerate(rows[:-1]):
        live = {v for v in live | row.definitions.keys() if last_read.get(v, -1) > index}
        while found := min(_find_dependent(row, live, last_read, sizes), default=None):
            _, value, replacement = found
            live.discard(value)
            row.definitions.pop(value, None)
            for later in rows[index + 1 : last_read.pop(value) + 1]:
                for name, meaning in later.definitions.items():
                    later.definitions[name] = substitute(meaning, value, replacement)


def _find_dependent(
    row: ProgramRow, live: set[int], last_read: dict[int, int], sizes: dict[Symbol, float]
) -> Iterator[tuple[float, int, Combination]]:
    """Ways to drop a value after a row: loss of digits, the value, what it is made of."""
    meanings = {value: row.definitions.get(value, {value: 1.0}) for value in live}
    for value in live - {row.latents_out}:
        helpers = sorted(h for h in live if h != value and last_read[h] >= last_read[value])
        solution = _express(meanings[value], [meanings[helper] for helper in helpers])
        if solution is None:
            continue
        replacement: Combination = {h: c for h, c in zip(helpers, solution, strict=True) if c}
        loss = max(abs(c) * sizes[h] for h, c in replacement.items()) / sizes[value]
        if loss <= MAX_CANCELLATION:
            yield loss, value, replacement


def _express(target: Combination, helpers: list[Combination]) -> list[float] | None:
    """The factors by which helpers add up to the target, or None if they do not."""
    symbols = sorted({s for meaning in (target, *helpers) for s in meaning}, key=str)
    if not helpers:
        return None
    matrix = np.array([[meaning.get(s, 0.0) for meaning in helpers] for s in symbols])
    goal = np.array([target.get(s, 0.0) for s in symbols])
    factors = np.linalg.lstsq(matrix, goal, rcond=None)[0]
    floor = CANCELLED * float(np.abs(goal).max())
    factors[np.abs(factors) * np.abs(matrix).max(axis=0) <= floor] = 0.0
    if np.abs(matrix @ factors - goal).max() > floor:
        return None
    return [float(factor) for factor in factors]
