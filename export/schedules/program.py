"""The linear program between a traced scheduler and a schedule table.

In single assignment form: each value is written once, as a linear combination of earlier values and
of the model output and the noise of its own row. Value 0 is the start noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

from mutoscope.runtime.schedule import MODEL_OUTPUT, NOISE, Source

START_NOISE: Final = 0

# Rounding in a scheduler leaves coefficients of this size where exact arithmetic gives none; next
# to the largest one of their row they are far below float32.
NEGLIGIBLE: Final = 1e-10

# A value, or the model output or noise of the row at hand.
Symbol: TypeAlias = Source
Combination: TypeAlias = dict[Symbol, float]


@dataclass
class ProgramRow:
    """One denoiser call.

    Attributes:
        timestep: As in ScheduleRow.
        input_scale: As in ScheduleRow.
        noise_draws: As in ScheduleRow.
        latents_in: Value that the model sees (before input_scale).
        latents_out: Value that the next row's model sees, defined in this row.
        definitions: The values that this row writes, over values from before the row.
    """

    timestep: float
    input_scale: float
    noise_draws: int
    latents_in: int
    latents_out: int
    definitions: dict[int, Combination]


def clean(combination: Combination) -> Combination:
    """Drop the terms that only rounding left; a new combination."""
    largest = max((abs(coefficient) for coefficient in combination.values()), default=0.0)
    floor = largest * NEGLIGIBLE
    return {symbol: value for symbol, value in combination.items() if abs(value) > floor}


def substitute(combination: Combination, symbol: Symbol, meaning: Combination) -> Combination:
    """Write a combination without a symbol, given what the symbol means; a new combination."""
    if symbol not in combination:
        return combination
    result = dict(combination)
    factor = result.pop(symbol)
    for inner, coefficient in meaning.items():
        result[inner] = result.get(inner, 0.0) + factor * coefficient
    return clean(result)


def measure_magnitudes(rows: list[ProgramRow], start: float) -> dict[Symbol, float]:
    """Return the size that each value has, were all model outputs and noises independent.

    Args:
        rows: The program.
        start: The size of the start noise, init_noise_sigma.
    """
    sizes: dict[Symbol, float] = {START_NOISE: start, MODEL_OUTPUT: 1.0, NOISE: 1.0}
    for row in rows:
        for value, meaning in row.definitions.items():
            sizes[value] = math.hypot(*(c * sizes[symbol] for symbol, c in meaning.items()))
    return sizes


def find_live(rows: list[ProgramRow]) -> list[set[int]]:
    """For each row, the values that later rows read (and the result, in the last row)."""
    live = {rows[-1].latents_out}
    result: list[set[int]] = []
    for row in reversed(rows):
        result.append(live)
        needed = [meaning for value, meaning in row.definitions.items() if value in live]
        read = {symbol for meaning in needed for symbol in meaning if isinstance(symbol, int)}
        live = (live - set(row.definitions)) | read | {row.latents_in}
    return result[::-1]


def forward_multiples(rows: list[ProgramRow]) -> None:
    """Let later rows read a value itself where the scheduler kept a multiple of it, in place."""
    multiples: dict[int, Combination] = {}
    for row in rows:
        for value, meaning in list(row.definitions.items()):
            for symbol in list(meaning):
                if isinstance(symbol, int) and symbol in multiples:
                    meaning = substitute(meaning, symbol, multiples[symbol])
            row.definitions[value] = meaning
            single = len(meaning) == 1 and not {MODEL_OUTPUT, NOISE} & set(meaning)
            if single and value != row.latents_out:
                multiples[value] = row.definitions.pop(value)


def drop_dead(rows: list[ProgramRow]) -> None:
    """Drop the values that nobody reads, in place."""
    for row, live in zip(rows, find_live(rows), strict=True):
        row.definitions = {v: meaning for v, meaning in row.definitions.items() if v in live}
