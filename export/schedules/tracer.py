"""Read the linear map of each scheduler step off unit vectors.

Before a step, the sample and every tensor in the scheduler's state become unit vectors of their
own; so do the model output and the noise. After it, the new tensors are the coefficients.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from mutoscope.export.schedules.program import (
    START_NOISE,
    Combination,
    ProgramRow,
    Symbol,
    clean,
)
from mutoscope.export.schedules.runner import SchedulerRunner, StatePath
from mutoscope.runtime.errors import ScheduleError
from mutoscope.runtime.schedule import MAX_NOISE_DRAWS, MODEL_OUTPUT, NOISE

# The last axis enumerates the symbols: values, one model output, and the draws of noise.
NUM_LANES: Final = 64
SHAPE: Final = torch.Size((1, 1, 1, 1, NUM_LANES))
MODEL_OUTPUT_LANE: Final = NUM_LANES - 1
FIRST_NOISE_LANE: Final = MODEL_OUTPUT_LANE - MAX_NOISE_DRAWS


def trace_program(runner: SchedulerRunner) -> list[ProgramRow]:
    """Return the scheduler's whole run as a linear program.

    Raises:
        ScheduleError: A step fails, or its coefficients are not finite.
    """
    tracer = _Tracer(runner)
    return [tracer.trace_row(index) for index in range(len(runner.timesteps))]


class _Tracer:
    """Knows which value of the program each tensor of the scheduler holds."""

    def __init__(self, runner: SchedulerRunner) -> None:
        self.runner = runner
        self.latents = START_NOISE
        self.state: dict[StatePath, int] = {}
        self.num_values = START_NOISE + 1

    def trace_row(self, index: int) -> ProgramRow:
        """Run one step."""
        lanes = self._plant_symbols()
        sample = _unit(lanes.index(self.latents))
        scaled = self.runner.scale_model_input(index, sample)
        input_scale = self._read_input_scale(scaled, lanes, index)
        noise = _NoiseSymbols(self.runner.name)
        with self.runner.noise_from(noise.draw):
            prev_sample = self.runner.step(index, _unit(MODEL_OUTPUT_LANE), sample)
        definitions: dict[int, Combination] = {}
        latents_in, self.latents = self.latents, self._new_value()
        definitions[self.latents] = self._read(prev_sample, lanes, noise.count, index)
        for path, tensor in self.runner.find_state(SHAPE):
            meaning = self._read(tensor, lanes, noise.count, index)
            self.state[path] = self._define(meaning, definitions)
        return ProgramRow(
            timestep=float(self.runner.timesteps[index]),
            input_scale=input_scale,
            noise_draws=noise.count,
            latents_in=latents_in,
            latents_out=self.latents,
            definitions=definitions,
        )

    def _plant_symbols(self) -> list[int]:
        """Replace the scheduler's tensors by unit vectors; return the value of each lane."""
        lanes = [self.latents]
        planted: dict[int, torch.Tensor] = {}
        for path, tensor in list(self.runner.find_state(SHAPE)):
            value = self.state[path]
            if value not in lanes:
                lanes.append(value)
            # One tensor in two places stays one, since a scheduler may add to it in place.
            if id(tensor) not in planted:
                planted[id(tensor)] = _unit(lanes.index(value))
            self.runner.replace_state(path, planted[id(tensor)])
        if len(lanes) > FIRST_NOISE_LANE:
            raise ScheduleError(
                f"{self.runner.name} keeps {len(lanes)} tensors between steps; a schedule table "
                f"can be traced up to {FIRST_NOISE_LANE}"
            )
        self.state = {}
        return lanes

    def _new_value(self) -> int:
        self.num_values += 1
        return self.num_values - 1

    def _define(self, meaning: Combination, definitions: dict[int, Combination]) -> int:
        """The value that a combination is: an old one, one of this row, or a new one."""
        if len(meaning) == 1:
            symbol, coefficient = next(iter(meaning.items()))
            if isinstance(symbol, int) and coefficient == 1.0:
                return symbol
        for value, other in definitions.items():
            if other == meaning:
                return value
        value = self._new_value()
        definitions[value] = meaning
        return value

    def _read(
        self, tensor: torch.Tensor, lanes: list[int], noise_draws: int, index: int
    ) -> Combination:
        """The coefficients that a traced tensor holds."""
        if tensor.shape != SHAPE:
            raise ScheduleError(
                f"{self.runner.name} changes the shape of the latents in step {index + 1}, "
                "so it is not a linear schedule"
            )
        coefficients: list[float] = tensor.detach().to(torch.float64).flatten().tolist()
        if not all(map(math.isfinite, coefficients)):
            raise ScheduleError(
                f"{self.runner.name} divides by zero in step {index + 1} of "
                f"{len(self.runner.timesteps)} (timestep "
                f"{float(self.runner.timesteps[index]):g}): set another final_sigmas_type, "
                "timestep_spacing or step count"
            )
        symbols: list[Symbol] = [*lanes]
        found = dict(zip(symbols, coefficients, strict=False))
        found[MODEL_OUTPUT] = coefficients[MODEL_OUTPUT_LANE]
        draws = coefficients[FIRST_NOISE_LANE : FIRST_NOISE_LANE + noise_draws]
        if draws:
            found[NOISE] = draws[-1]
        if any(draws[:-1]):
            raise ScheduleError(
                f"{self.runner.name} uses several draws of noise in step {index + 1}; a schedule "
                "table can use one: choose another scheduler"
            )
        return clean(found)

    def _read_input_scale(self, scaled: torch.Tensor, lanes: list[int], index: int) -> float:
        """The factor between the latents and what the model sees."""
        found = self._read(scaled, lanes, 0, index)
        if set(found) - {self.latents}:
            raise ScheduleError(
                f"{self.runner.name}.scale_model_input does more than scale the latents, so it is "
                "not a linear schedule"
            )
        return found.get(self.latents, 0.0)


class _NoiseSymbols:
    """Gives each draw of a row its own unit vector."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0

    def draw(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The next symbol, in place of random numbers."""
        if shape != tuple(SHAPE) or self.count == MAX_NOISE_DRAWS:
            raise ScheduleError(
                f"{self.name} draws noise that is not shaped like the latents, or more than "
                f"{MAX_NOISE_DRAWS} times in a step: choose another scheduler"
            )
        self.count += 1
        return _unit(FIRST_NOISE_LANE + self.count - 1).to(dtype)


def _unit(lane: int) -> torch.Tensor:
    """The unit vector of a lane, float64."""
    tensor = torch.zeros(SHAPE, dtype=torch.float64)
    tensor[..., lane] = 1.0
    return tensor
