"""denoise: what it computes, what it calls, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mutoscope.runtime import sampler
from mutoscope.runtime.errors import CancelledError, ParameterError
from mutoscope.runtime.sampler import F32, StepInfo, denoise
from mutoscope.runtime.schedule import ScheduleRow, ScheduleTable, ScheduleUpdate

SHAPE = (1, 4, 2, 3, 5)
# float32 products and sums of a few terms, against float64.
RELATIVE_TOLERANCE = 1e-5


def make_table(
    *rows: ScheduleRow, num_registers: int = 1, init_noise_sigma: float = 1.0
) -> ScheduleTable:
    return ScheduleTable("Made", len(rows), "epsilon", init_noise_sigma, num_registers, rows)


def make_row(*updates: ScheduleUpdate, noise_draws: int = 0, input_scale: float = 1.0) -> Any:
    return ScheduleRow(100.0, input_scale, noise_draws, updates)


HALVE = ScheduleUpdate(0, ((0, 0.5), ("model_output", -1.0)))
ADD_NOISE = ScheduleUpdate(0, ((0, 1.0), ("noise", 2.0)))


def make_latents(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def predict_zero(sample: F32, row: ScheduleRow) -> F32:
    return np.zeros_like(sample)


def run_slowly(latents: F32, table: ScheduleTable, outputs: list[F32], noises: list[F32]) -> F32:
    """The definition of a schedule table, in float64 and in the fewest lines."""
    registers: list[Any] = [np.zeros(latents.shape) for _ in range(table.num_registers)]
    registers[0] = latents * table.init_noise_sigma
    remaining = iter(noises)
    for row, output in zip(table.rows, outputs, strict=True):
        sources: dict[Any, Any] = {"model_output": output}
        for _ in range(row.noise_draws):
            sources["noise"] = next(remaining)
        for update in row.updates:
            values = [
                coefficient * (sources[source] if isinstance(source, str) else registers[source])
                for source, coefficient in update.terms
            ]
            registers[update.into] = np.sum(values, axis=0) if values else np.zeros(latents.shape)
    return registers[0].astype(np.float32)


@st.composite
def tables(draw: st.DrawFn) -> ScheduleTable:
    num_registers = draw(st.integers(1, 4))
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        noise_draws = draw(st.integers(0, 2))
        known: list[Any] = [*range(num_registers), "model_output"] + ["noise"] * bool(noise_draws)
        coefficients = st.just(1.0) | st.floats(-2, 2, width=32)
        updates = []
        for _ in range(draw(st.integers(0, 4))):
            sources = draw(st.lists(st.sampled_from(known), unique=True))
            terms = tuple((source, draw(coefficients)) for source in sources)
            updates.append(ScheduleUpdate(draw(st.integers(0, num_registers - 1)), terms))
        rows.append(make_row(*updates, noise_draws=noise_draws))
    return make_table(*rows, num_registers=num_registers, init_noise_sigma=3.0)


@settings(max_examples=80, deadline=None)
@given(table=tables(), block_elements=st.sampled_from([1, 7, 120, 4096]))
def test_denoise_equals_the_plain_definition(table: ScheduleTable, block_elements: int) -> None:
    latents = make_latents()
    outputs = [make_latents(seed) for seed in range(10, 10 + len(table.rows))]
    noises = [make_latents(seed) for seed in range(100, 120)]
    remaining_outputs, remaining_noises = iter(outputs), iter(noises)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "BLOCK_ELEMENTS", block_elements)
        found = denoise(
            latents,
            table,
            lambda _sample, _row: next(remaining_outputs),
            noise=lambda _step_index: next(remaining_noises),
        )
    expected = run_slowly(latents, table, outputs, noises)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found / scale, expected / scale, 0, RELATIVE_TOLERANCE)


def test_the_model_sees_scaled_latents_and_the_row() -> None:
    seen: list[tuple[F32, ScheduleRow]] = []

    def predict(sample: F32, row: ScheduleRow) -> F32:
        seen.append((sample.copy(), row))
        return np.zeros_like(sample)

    latents = make_latents()
    row = ScheduleRow(12.25, 0.25, 0, (HALVE,))
    denoise(latents, make_table(row, init_noise_sigma=8.0), predict)
    assert seen[0][1] is row
    np.testing.assert_allclose(seen[0][0], 2.0 * latents)


def test_the_argument_is_not_changed_and_the_result_is_new() -> None:
    latents = make_latents()
    before = latents.copy()
    found = denoise(latents, make_table(make_row(HALVE)), predict_zero)
    np.testing.assert_array_equal(latents, before)
    assert found.shape == latents.shape
    assert found.flags.owndata
    assert found.flags.writeable


def test_predict_may_write_to_its_sample() -> None:
    def predict(sample: F32, row: ScheduleRow) -> F32:
        sample *= 0.0
        return sample

    latents = make_latents()
    found = denoise(latents, make_table(make_row(HALVE)), predict)
    np.testing.assert_allclose(found, 0.5 * latents)


def test_latents_may_be_a_view_of_any_layout() -> None:
    latents = make_latents(shape=(5, 3, 2, 4, 1)).transpose()
    found = denoise(latents, make_table(make_row(HALVE)), lambda _sample, _row: latents)
    np.testing.assert_allclose(found, -0.5 * latents, rtol=1e-6)


def test_noise_is_drawn_after_predict_and_as_often_as_the_row_says() -> None:
    calls: list[str] = []
    latents = make_latents()

    def predict(sample: F32, row: ScheduleRow) -> F32:
        calls.append("predict")
        return np.zeros_like(sample)

    def noise(step_index: int) -> F32:
        calls.append(f"noise {step_index}")
        return np.full(SHAPE, len(calls), dtype=np.float32)

    rows = (make_row(ADD_NOISE, noise_draws=2), make_row(HALVE), make_row(HALVE, noise_draws=1))
    found = denoise(latents, make_table(*rows), predict, noise=noise)
    assert calls == ["predict", "noise 0", "noise 0", "predict", "predict", "noise 2"]
    np.testing.assert_allclose(found, (latents + 2.0 * 3.0) / 4.0, rtol=1e-6)


def test_on_step_sees_every_row() -> None:
    seen: list[tuple[int, int, float]] = []

    def on_step(info: StepInfo) -> None:
        seen.append((info.step_index, info.num_steps, float(info.latents.flat[0])))
        assert not info.latents.flags.writeable

    latents = np.ones(SHAPE, dtype=np.float32)
    denoise(latents, make_table(make_row(HALVE), make_row(HALVE)), predict_zero, on_step=on_step)
    assert seen == [(0, 2, 0.5), (1, 2, 0.25)]


def test_on_step_can_cancel() -> None:
    table = make_table(*[make_row(HALVE)] * 5)
    calls: list[int] = []

    def on_step(info: StepInfo) -> bool:
        calls.append(info.step_index)
        return info.step_index < 1

    with pytest.raises(CancelledError, match="cancelled after step 2 of 5"):
        denoise(make_latents(), table, predict_zero, on_step=on_step)
    assert calls == [0, 1]


def make_estimating_table(*pairs: tuple[float, float] | None) -> ScheduleTable:
    """A table of two registers and noise, whose rows estimate by these pairs."""
    keep = ScheduleUpdate(1, ((0, 1.0),))
    mix = ScheduleUpdate(0, ((0, 1.0), (1, -0.2), ("model_output", -0.4), ("noise", 0.1)))
    again = ScheduleUpdate(0, ((0, 0.5), (1, 0.5)))
    rows = (ScheduleRow(100.0, 0.25, 1, (keep, mix, again), pair) for pair in pairs)
    return make_table(*rows, num_registers=2, init_noise_sigma=3.0)


def run_estimating(
    table: ScheduleTable, on_step: Any, predict: Any = None
) -> tuple[F32, list[tuple[F32, F32]]]:
    """The result, and what each row's model saw and said."""
    seen: list[tuple[F32, F32]] = []

    def predict_and_keep(sample: F32, row: ScheduleRow) -> F32:
        shown = sample.copy()
        output = np.sin(3 * sample) if predict is None else predict(sample)
        seen.append((shown, output.copy()))
        return np.asarray(output)

    noises = iter(make_latents(seed) for seed in range(50, 60))
    result = denoise(
        make_latents(), table, predict_and_keep, noise=lambda _: next(noises), on_step=on_step
    )
    return result, seen


def test_a_step_estimates_from_the_latents_that_the_model_saw() -> None:
    pairs = ((2.0, -1.5), (1.25, -0.5), (0.0, 1.0))
    found: list[F32 | None] = []
    _, seen = run_estimating(
        make_estimating_table(*pairs), lambda info: found.append(info.denoised)
    )
    for (a, b), (sample, output), estimate in zip(pairs, seen, found, strict=True):
        assert estimate is not None
        # The model sees a quarter of the latents.
        np.testing.assert_allclose(
            estimate, a * 4 * sample + b * output, 0, RELATIVE_TOLERANCE * 10
        )


def test_looking_at_estimates_does_not_change_the_result() -> None:
    def look(info: StepInfo) -> None:
        assert info.denoised is not None

    table = make_estimating_table(*[(2.0, -1.5)] * 4)
    looked_at, _ = run_estimating(table, look)
    not_asked, _ = run_estimating(table, lambda info: None)
    not_shown, _ = run_estimating(table, None)
    without, _ = run_estimating(make_estimating_table(*[None] * 4), lambda info: None)
    np.testing.assert_array_equal(looked_at, not_shown)
    np.testing.assert_array_equal(not_asked, not_shown)
    np.testing.assert_array_equal(without, not_shown)


def test_a_row_without_coefficients_has_no_estimate() -> None:
    found: list[F32 | None] = []
    table = make_estimating_table((1.0, 0.0), None)
    run_estimating(table, lambda info: found.append(info.denoised))
    assert found[0] is not None
    assert found[1] is None
    assert StepInfo(0, 1, 1.0, make_latents()).denoised is None


def test_an_estimate_may_be_kept_but_not_written_to() -> None:
    found: list[F32] = []

    def on_step(info: StepInfo) -> None:
        assert info.denoised is not None
        assert info.denoised is info.denoised
        assert not np.may_share_memory(info.denoised, info.latents)
        found.append(info.denoised)

    _, seen = run_estimating(make_estimating_table(*[(4.0, 0.0)] * 3), on_step)
    for estimate, (sample, _output) in zip(found, seen, strict=True):
        np.testing.assert_array_equal(estimate, 16 * sample)
        assert estimate.shape == SHAPE
        with pytest.raises(ValueError, match="read-only"):
            estimate[...] = 0


def test_an_estimate_cannot_be_asked_for_when_its_row_is_gone() -> None:
    kept: list[StepInfo] = []
    run_estimating(make_estimating_table((1.0, 1.0)), kept.append)
    with pytest.raises(ParameterError, match=r"denoised was asked for after on_step had returned"):
        _ = kept[0].denoised


def test_predict_may_return_the_buffer_that_it_was_given() -> None:
    def negate(sample: F32) -> F32:
        return np.negative(sample, out=sample)

    table = make_estimating_table(*[(0.5, 1.0)] * 3)
    found: list[F32 | None] = []
    in_place, _ = run_estimating(table, lambda info: found.append(info.denoised), negate)
    copied, seen = run_estimating(table, None, lambda sample: -sample)
    np.testing.assert_array_equal(in_place, copied)
    for estimate, (sample, _output) in zip(found, seen, strict=True):
        assert estimate is not None
        np.testing.assert_allclose(estimate, sample, rtol=RELATIVE_TOLERANCE)


def test_a_table_that_draws_noise_needs_noise() -> None:
    with pytest.raises(ParameterError, match="noise is None; Made draws noise in its steps: pass"):
        denoise(make_latents(), make_table(make_row(ADD_NOISE, noise_draws=1)), predict_zero)


def test_latents_must_be_float32() -> None:
    table = make_table(make_row(HALVE))
    with pytest.raises(ParameterError, match="latents is float64; it must be float32"):
        denoise(np.zeros(SHAPE), table, predict_zero)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="latents is list; it must be float32"):
        denoise([1.0], table, predict_zero)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.zeros(SHAPE, dtype=np.float16), "model_output is float16; it must be float32"),
        (np.zeros((1, 4), dtype=np.float32), r"model_output has shape \(1, 4\); it must be"),
        (None, "model_output is NoneType; it must be float32"),
    ],
)
def test_a_wrong_model_output_is_refused(output: Any, message: str) -> None:
    table = make_table(make_row(HALVE))
    with pytest.raises(ParameterError, match=message):
        denoise(make_latents(), table, lambda _sample, _row: output)


def test_a_wrong_noise_is_refused() -> None:
    table = make_table(make_row(ADD_NOISE, noise_draws=1))
    with pytest.raises(ParameterError, match=r"noise has shape \(2,\); it must be"):
        denoise(make_latents(), table, predict_zero, noise=lambda _i: np.zeros(2, dtype=np.float32))
