"""The schedule that is tuned, found in a bundle, and its plan, written beside it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from mutoscope.calibration.errors import TuningError
from mutoscope.calibration.plan_search import Plan
from mutoscope.calibration.plan_trials import TunedSchedule
from mutoscope.calibration.preparation import PLAN, explain_plan
from mutoscope.runtime.bundle import Bundle, shorten_scheduler
from mutoscope.runtime.bundle_writer import edit_bundle, make_file_record, save_manifest
from mutoscope.runtime.errors import OutputError, ParameterError
from mutoscope.runtime.manifest import Manifest
from mutoscope.runtime.row_plan import find_denoiser
from mutoscope.runtime.schedule import ScheduleTable
from mutoscope.runtime.schedule_choice import USUAL_NUM_INFERENCE_STEPS, choose_schedule

_PLAIN_VARIANT, _INT8 = "float32", "int8"
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*")


def find_schedule(
    bundle: Bundle,
    scheduler: str | None,
    num_inference_steps: int | None,
    *,
    reuses_features: bool,
    drops_guidance: bool,
) -> TunedSchedule:
    """Return a schedule and what may be changed in it.

    Args:
        bundle: The bundle.
        scheduler: None takes what a generation with so many steps takes.
        num_inference_steps: A number of steps that it has a table for; None takes 25, or what a
            generation with this scheduler takes.
        reuses_features: Whether rows may reuse features, where the bundle has what that takes.
        drops_guidance: Whether rows may go without guidance, where they have it.

    Raises:
        BundleError: The table is damaged.
        ParameterError: There is no such table.
        TuningError: It is a plan already, or nothing may be changed in it.
    """
    if scheduler is None and num_inference_steps is None:
        num_inference_steps = USUAL_NUM_INFERENCE_STEPS
    name, steps = choose_schedule(bundle, scheduler, num_inference_steps)
    table, manifest = bundle.load_schedule(name, steps), bundle.manifest
    problem = explain_plan(name, table, "tune")
    if problem is not None:
        raise TuningError(problem)
    denoiser = find_denoiser(manifest, table)
    shallow, is_guided = _find_shallow(manifest, denoiser), _is_guided(manifest, table)
    schedule = TunedSchedule(
        name,
        table,
        denoiser,
        shallow if reuses_features else None,
        drops_guidance and is_guided,
    )
    if schedule.shallow is None and not schedule.drops_guidance:
        reuse, guidance, way_out = "reuse is left out", "guidance is left as it is", None
        if is_guided:
            way_out = "leave --no-guidance-interval out"
        else:
            guidance = "its rows have no guidance to drop"
        if shallow is None:
            reuse = f"{denoiser} has no part that reuses its features"
        elif way_out is None:
            way_out = "leave --no-reuse out"
        raise TuningError(
            f"{name} has nothing to tune: {reuse}, and {guidance}: "
            + (way_out or _find_way_out(bundle, name))
        )
    return schedule


def check_variant(bundle: Bundle, schedule: TunedSchedule, variant: str | None) -> None:
    """Raise `ParameterError` if a schedule's denoisers lack a variant that others have.

    Args:
        bundle: The bundle.
        schedule: The schedule.
        variant: None for the default one.
    """
    components = bundle.manifest.components
    if variant is None or not any(variant in record.variants for record in components.values()):
        return  # what opens the graphs says which variants there are
    for name in (schedule.denoiser, schedule.shallow):
        if name is not None and variant not in components[name].variants:
            others = ", ".join(components[name].variants)
            way_out = f"use {components[name].default_variant}"
            if variant == _INT8:
                way_out = (
                    f"calibrate it first: mutoscope calibrate {bundle.path} --components "
                    f"{schedule.denoiser} --scheduler {schedule.scheduler}"
                )
            raise ParameterError(
                f"variant is {variant!r}, which {name} does not have (it has {others}): {way_out}"
            )


def choose_name(bundle: Bundle, schedule: TunedSchedule, name: str | None, *, force: bool) -> str:
    """Return what a plan is called, checked.

    Args:
        bundle: The bundle.
        schedule: What it is a plan for.
        name: None takes the scheduler's with "-reuse", or "-interval", behind it.
        force: Whether to replace a plan of this name.

    Raises:
        BundleError: A table is damaged.
        OutputError: There is one.
        ParameterError: It is no name, that of a schedule which is no plan, or too like another.
    """
    usual = f"{schedule.scheduler}-{'reuse' if schedule.shallow else 'interval'}"
    name = usual if name is None else name
    if not _NAME.fullmatch(name):
        raise ParameterError(
            f"name is {name!r}; it may have small letters, digits, '+', '.' and '-': use {usual}"
        )
    tables = bundle.manifest.schedules.get(name, {})
    for count in tables:
        if PLAN not in bundle.load_schedule(name, int(count)).provenance:
            raise ParameterError(
                f"name is {name!r}, which is a scheduler of this bundle and no plan: choose "
                "another --name"
            )
    for other in bundle.manifest.schedules:
        if other != name and shorten_scheduler(other) == shorten_scheduler(name):
            raise ParameterError(
                f"name is {name!r}, which is too like {other!r}, a scheduler of this bundle: "
                "choose another --name"
            )
    steps = schedule.table.num_inference_steps
    if str(steps) in tables and not force:
        raise OutputError(
            f"{bundle.path} has a plan {name} of {steps} steps: choose another --name, or replace "
            "it with --force"
        )
    return name


def add_plan(
    bundle: Bundle,
    schedule: TunedSchedule,
    plan: Plan,
    name: str,
    provenance: dict[str, Any],
    guidance_passes: str,
) -> None:
    """Write a plan into a bundle as one more schedule, whole or not at all.

    Args:
        bundle: It is replaced; open it again.
        schedule: What it is a plan for.
        plan: The plan.
        name: What it is called; one of this name and number of steps is replaced.
        provenance: What the table says of the plan, beside where the schedule came from.
        guidance_passes: The bundle's default.

    Raises:
        OutputError: The bundle cannot be written, or was changed in the meantime.
    """
    manifest, steps = bundle.manifest, str(schedule.table.num_inference_steps)
    record = manifest.components[schedule.denoiser]
    graph = record.variants[record.choose_variant(_PLAIN_VARIANT)]
    table = replace(
        schedule.apply(plan),
        graph_sha256=manifest.files[graph].sha256,
        provenance={**schedule.table.provenance, PLAN: provenance},
    )
    tables = manifest.schedules.get(name, {})
    path = f"schedules/{name}_{steps}.json"
    old = tables.get(steps, path)
    with edit_bundle(bundle, without={old, path}) as folder:
        table.save(folder / path)
        files = {key: record for key, record in manifest.files.items() if key != old}
        changed = replace(
            manifest,
            schedules={**manifest.schedules, name: {**tables, steps: path}},
            files={**files, path: make_file_record(folder / path)},
            defaults=replace(manifest.defaults, guidance_passes=guidance_passes),
        )
        save_manifest(changed, folder)


def _is_guided(manifest: Manifest, table: ScheduleTable) -> bool:
    return manifest.guidance and table.takes_guidance and manifest.defaults.guidance_scale > 1


def _find_shallow(manifest: Manifest, denoiser: str) -> str | None:
    """The part of a denoiser that takes what it returns beside its model output, if any."""
    made = set(list(manifest.components[denoiser].outputs)[1:])
    for name, record in manifest.components.items():
        sources = {tensor.source for tensor in record.inputs.values()}
        if record.weights_of == denoiser and made & sources:
            return name
    return None


def _find_way_out(bundle: Bundle, name: str) -> str:
    """What helps where a schedule has neither features to reuse nor guidance to drop."""
    manifest = bundle.manifest
    for other, tables in manifest.schedules.items():
        table = bundle.load_schedule(other, max(map(int, tables)))
        denoiser = find_denoiser(manifest, table)
        is_tunable = _is_guided(manifest, table) or _find_shallow(manifest, denoiser) is not None
        if other != name and is_tunable and explain_plan(other, table, "tune") is None:
            return f"use --scheduler {other}"
    return "export the checkpoint again with --reuse-layers 1"
