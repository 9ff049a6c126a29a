"""Which schedule table runs where the caller leaves the scheduler or the steps open."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import BundleError, ParameterError, ScheduleError
from mutoscope.runtime.schedule_choice import choose_schedule
from mutoscope.runtime.settings import make_settings
from tests.runtime.reuse_bundle import add_denoisers, add_schedule, make_rows


@pytest.fixture
def path(own_bundle: Path) -> Path:
    """ddim: 1-4, 8; euler-ancestral: 1-4; few-step: 2 without guidance; long: 20, 25, 30."""
    add_denoisers(own_bundle)
    few_step = make_rows(None, None, unguided=(0, 1))
    add_schedule(own_bundle, "few-step", few_step, denoiser="unet_few_step")
    for steps in (20, 25, 30):
        add_schedule(own_bundle, "long", make_rows(*[None] * steps))
    add_schedule(own_bundle, "longer", make_rows(*[None] * 40))
    add_schedule(own_bundle, "longer", make_rows(*[None] * 30))
    return own_bundle


@pytest.fixture
def bundle(path: Path) -> Bundle:
    return Bundle.open(path)


def change_defaults(bundle: Bundle, **changes: Any) -> Bundle:
    defaults = dataclasses.replace(bundle.manifest.defaults, **changes)
    return dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, defaults=defaults)
    )


@pytest.mark.parametrize(
    ("scheduler", "steps", "expected"),
    [
        (None, None, ("ddim", 4)),
        (None, 8, ("ddim", 8)),
        ("DDIM", 3, ("ddim", 3)),
        # The default scheduler has no such table: the first of the manifest that has.
        (None, 25, ("long", 25)),
        (None, 30, ("long", 30)),
        (None, 40, ("longer", 40)),
        # The default count where the scheduler has it, else the most up to 25, else the fewest.
        ("euler-ancestral", None, ("euler-ancestral", 4)),
        ("few-step", None, ("few-step", 2)),
        ("long", None, ("long", 25)),
        ("longer", None, ("longer", 30)),
    ],
)
def test_what_is_left_open_is_chosen(
    bundle: Bundle, scheduler: str | None, steps: int | None, expected: tuple[str, int]
) -> None:
    assert choose_schedule(bundle, scheduler, steps) == expected
    settings = make_settings(bundle, scheduler=scheduler, num_inference_steps=steps)
    assert (settings.scheduler, settings.num_inference_steps) == expected


def test_the_default_scheduler_is_taken_before_others_that_have_the_steps(bundle: Bundle) -> None:
    changed = change_defaults(bundle, scheduler="euler-ancestral")
    assert choose_schedule(changed, None, 3) == ("euler-ancestral", 3)
    assert choose_schedule(changed, None, 8) == ("ddim", 8)


@pytest.fixture
def few_step_path(path: Path) -> Path:
    """With tables of unet_few_step for the default 4 steps, and one of the first denoiser."""
    for scheduler in ("few-step", "few-step-reuse"):
        for steps in (4, 12):
            rows = make_rows(*[None] * steps)
            add_schedule(path, scheduler, rows, denoiser="unet_few_step")
    add_schedule(path, "named", make_rows(*[None] * 4), denoiser="unet")
    add_schedule(path, "named", make_rows(*[None] * 12), denoiser="unet")
    return path


@pytest.mark.parametrize(
    ("defaults", "scheduler", "expected"),
    [
        # The most that they have for another denoiser than that of the default schedule.
        (("few-step", 4), "ddim", 8),
        (("few-step", 4), "DDIMScheduler", 8),
        (("few-step", 4), "named", 12),
        (("ddim", 4), "few-step", 12),
        # The same denoiser, by its name or as the first of the bundle.
        (("few-step", 4), "few-step", 4),
        (("few-step", 4), "few-step-reuse", 4),
        (("ddim", 4), "ddim", 4),
        (("ddim", 4), "named", 4),
        (("named", 4), "ddim", 4),
        (("longer", 30), "long", 30),
        # The default scheduler has no such table: the first that has makes the clips.
        (("ddim", 12), "few-step-reuse", 12),
        (("few-step", 8), "few-step", 12),
        (("few-step", 8), "ddim", 8),
    ],
)
def test_the_default_steps_are_for_the_denoiser_of_the_default_schedule(
    few_step_path: Path, defaults: tuple[str, int], scheduler: str, expected: int
) -> None:
    bundle = change_defaults(
        Bundle.open(few_step_path), scheduler=defaults[0], num_inference_steps=defaults[1]
    )
    assert choose_schedule(bundle, scheduler, None)[1] == expected


@pytest.mark.parametrize("damaged", ["few-step", "ddim"])
def test_a_damaged_table_that_the_choice_depends_on_is_named(
    few_step_path: Path, damaged: str
) -> None:
    bundle = change_defaults(Bundle.open(few_step_path), scheduler="few-step")
    table = few_step_path / "schedules" / f"{damaged}_4.json"
    table.write_bytes(table.read_bytes()[::-1])
    with pytest.raises(BundleError, match=f"{damaged}_4.json does not match its sha256"):
        choose_schedule(bundle, "ddim", None)
    # It is not read where the choice does not depend on what is in it.
    assert choose_schedule(bundle, "ddim", 3) == ("ddim", 3)
    assert choose_schedule(bundle, "few-step", None) == ("few-step", 4)
    assert choose_schedule(bundle, "euler-ancestral", None) == ("euler-ancestral", 4)
    assert choose_schedule(bundle, "long", None) == ("long", 25)


@pytest.mark.parametrize(
    ("scheduler", "steps", "message"),
    [
        (None, 7, "num_inference_steps is 7; this bundle has tables of ddim for 1-4, 8 steps"),
        # Without a scheduler, of the one that comes nearest.
        (
            None,
            22,
            "num_inference_steps is 22; this bundle has tables of long for 20, 25, 30 steps",
        ),
        (None, 41, "this bundle has tables of longer for 30, 40 steps: use 40"),
        (None, -1, "this bundle has tables of ddim for 1-4, 8 steps: use 1"),
        ("long", 4, "this bundle has tables of long for 20, 25, 30 steps: use 20"),
        ("heun", None, "scheduler 'heun' is not in this bundle: use ddim, euler-ancestral, few-"),
    ],
)
def test_steps_that_no_table_has_are_refused(
    bundle: Bundle, scheduler: str | None, steps: int | None, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        choose_schedule(bundle, scheduler, steps)


@pytest.mark.parametrize("steps", [None, 3])
def test_a_scheduler_without_tables_is_refused(bundle: Bundle, steps: int | None) -> None:
    schedules = {**bundle.manifest.schedules, "ddim": {}}
    manifest = dataclasses.replace(bundle.manifest, schedules=schedules)
    changed = dataclasses.replace(bundle, manifest=manifest)
    with pytest.raises(ParameterError, match="scheduler 'ddim' has no tables in this bundle: use"):
        choose_schedule(changed, "ddim", steps)
    assert choose_schedule(changed, None, 4) == ("euler-ancestral", 4)


@pytest.mark.parametrize("name", ["guidance_scale", "min_guidance_scale"])
def test_a_guidance_scale_is_refused_where_the_denoiser_has_it_inside(
    bundle: Bundle, name: str
) -> None:
    with pytest.raises(ParameterError) as caught:
        make_settings(bundle, scheduler="few-step", **{name: 3})
    assert str(caught.value) == (
        f"{name} is 3; no step of few-step takes guidance: leave it out, or use --scheduler ddim"
    )
    settings = make_settings(bundle, scheduler="few-step", **{name: 1})
    assert (settings.guidance_scale, settings.uses_guidance) == (1.0, False)


def test_no_scheduler_is_proposed_where_none_takes_guidance(bundle: Bundle) -> None:
    schedules = {"few-step": bundle.manifest.schedules["few-step"]}
    changed = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, schedules=schedules)
    )
    with pytest.raises(ParameterError, match=r"no step of few-step takes guidance: leave it out$"):
        make_settings(changed, scheduler="few-step", guidance_scale=2)


def test_the_guidance_of_the_bundle_is_off_where_the_denoiser_has_it_inside(
    bundle: Bundle,
) -> None:
    changed = change_defaults(bundle, min_guidance_scale=2.0)
    settings = make_settings(changed, scheduler="few-step")
    assert (settings.guidance_scale, settings.min_guidance_scale) == (1.0, None)
    assert make_settings(changed).min_guidance_scale == 2.0


def test_settings_are_not_made_for_a_table_that_does_not_fit(path: Path) -> None:
    add_schedule(path, "plan", make_rows(None), graph_sha256="0" * 64)
    message = "^schedules/plan_1.json: the plan was made for another graph of unet than"
    with pytest.raises(ScheduleError, match=message):
        make_settings(Bundle.open(path), scheduler="plan")
