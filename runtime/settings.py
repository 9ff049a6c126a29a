"""The settings of one generation: what the caller asked for, checked, else the bundle's."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.manifest import LatentsRecord, Manifest
from mutoscope.runtime.row_plan import plan_rows
from mutoscope.runtime.schedule import ScheduleTable
from mutoscope.runtime.schedule_choice import choose_schedule
from mutoscope.runtime.windows import choose_windows, count_latent_frames, list_windows

SEED_MAX = 2**64 - 1
# A random seed is a number that a person can copy; the noise uses no more than 32 bits anyway.
_RANDOM_SEED_BITS = 32


@dataclass(frozen=True)
class Settings:
    """Everything besides the prompt that a generation depends on.

    Attributes:
        scheduler: Its name in the manifest.
        min_guidance_scale: Guidance of the first frame, from which it rises evenly to
            guidance_scale at the last; None if all frames have the same.
        conditions: The numbers that the bundle's denoiser takes, by name.
        latents_shape: [1, C, F, H, W] of the latents.
        context_length: The frames of latents that the denoiser sees at once; None if it sees the
            whole clip, without windows.
        context_stride: From the start of a window to that of the next, in frames of latents.
    """

    seed: int
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    num_frames: int
    frame_rate: float
    latents_shape: tuple[int, int, int, int, int]
    min_guidance_scale: float | None = None
    conditions: dict[str, float] = field(default_factory=dict)
    context_length: int | None = None
    context_stride: int | None = None

    @property
    def windows(self) -> list[slice]:
        """The frames of latents of each context window; none if the denoiser sees the whole."""
        if self.context_length is None or self.context_stride is None:
            return []
        return list_windows(self.latents_shape[2], self.context_length, self.context_stride)

    @property
    def uses_guidance(self) -> bool:
        """Whether each step needs a second pass of the denoiser, as in diffusers."""
        return bool(np.max(self.frame_guidance) > 1)

    @property
    def frame_guidance(self) -> NDArray[np.float32]:
        """The guidance scale of each frame of the latents, float32 [1, 1, F, 1, 1]."""
        num_frames = self.latents_shape[2]
        first = self.guidance_scale if self.min_guidance_scale is None else self.min_guidance_scale
        scales = np.linspace(first, self.guidance_scale, num_frames, dtype=np.float32)
        return scales.reshape(1, 1, num_frames, 1, 1)


def make_settings(
    bundle: Bundle,
    *,
    latents_shape: Sequence[int] | None = None,
    seed: int | None = None,
    scheduler: str | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    min_guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    frame_rate: float | None = None,
    conditions: Mapping[str, float] | None = None,
    context_length: int | None = None,
    context_stride: int | None = None,
) -> Settings:
    """Return the settings of a generation; what is None is taken from the bundle.

    Args:
        bundle: The bundle that will run.
        latents_shape: The shape of start latents, if the caller has any: it then sets the size.
        seed: From 0 to 2^64 - 1; None draws one.
        scheduler: A name that `Bundle.find_scheduler` knows; None for the default one, or for the
            first that has a table of num_inference_steps.
        num_inference_steps: A number of steps that the bundle has a table for; see
            `choose_schedule`.
        guidance_scale: At least 1, which is off.
        min_guidance_scale: Guidance of the first frame, at least 1.
        height: In pixels, within the bundle's limits.
        width: In pixels, within the bundle's limits.
        num_frames: Within the bundle's limits, or above them in context windows.
        frame_rate: Frames per second that the video says of itself, and that the denoiser is told
            if it takes it.
        conditions: Numbers that the bundle's denoiser takes, by name.
        context_length: Frames of latents in a context window; None for the most that the bundle
            allows, and for no windows if the clip is not longer than that.
        context_stride: From the start of a window to that of the next; None for half a window.

    Raises:
        BundleError: The file of the schedule table is damaged.
        ParameterError: A value is not allowed; the message names one that is.
        ScheduleError: The schedule table is none, or not for this bundle.
    """
    manifest = bundle.manifest
    defaults = manifest.defaults
    size = {"height": height, "width": width, "num_frames": num_frames}
    if latents_shape is not None:
        size = _size_from_latents(manifest, latents_shape, size)
    height = _check_whole("height", size["height"], defaults.height)
    width = _check_whole("width", size["width"], defaults.width)
    num_frames = _check_whole("num_frames", size["num_frames"], defaults.num_frames)
    manifest.limits.height.check("height", height)
    manifest.limits.width.check("width", width)
    if num_inference_steps is not None:
        num_inference_steps = _check_whole(
            "num_inference_steps", num_inference_steps, defaults.num_inference_steps
        )
    windows = choose_windows(
        manifest,
        num_frames,
        None if context_length is None else _check_whole("context_length", context_length, 1),
        None if context_stride is None else _check_whole("context_stride", context_stride, 1),
    )
    scheduler, num_inference_steps = choose_schedule(bundle, scheduler, num_inference_steps)
    table = bundle.load_schedule(scheduler, num_inference_steps)
    plan_rows(manifest, table, bundle.find_schedule(scheduler, num_inference_steps))
    return Settings(
        seed=_check_seed(seed),
        scheduler=scheduler,
        num_inference_steps=num_inference_steps,
        guidance_scale=_check_guidance_scale(bundle, scheduler, table, guidance_scale),
        min_guidance_scale=_check_min_guidance_scale(bundle, scheduler, table, min_guidance_scale),
        conditions=_check_conditions(manifest, conditions or {}),
        height=height,
        width=width,
        num_frames=num_frames,
        frame_rate=_check_frame_rate(defaults.frame_rate if frame_rate is None else frame_rate),
        latents_shape=_make_latents_shape(manifest.latents, num_frames, height, width),
        context_length=windows and windows[0],
        context_stride=windows and windows[1],
    )


def find_guidance_refusal(bundle: Bundle, scheduler: str, table: ScheduleTable) -> str | None:
    """Return why guidance cannot work with a schedule table and the way out; None if it can.

    Raises:
        BundleError: The file of another schedule table, which may be the way out, is damaged.
        ScheduleError: The same, of one that is none.
    """
    if not bundle.manifest.guidance:
        return "this bundle's denoiser works without guidance: leave it out"
    if table.takes_guidance:
        return None
    schedules = bundle.manifest.schedules.items()
    first_tables = {other: min(map(int, tables)) for other, tables in schedules if tables}
    others = (
        f", or use --scheduler {other}"
        for other, steps in first_tables.items()
        if bundle.load_schedule(other, steps).takes_guidance
    )
    return f"no step of {scheduler} takes guidance: leave it out{next(others, '')}"


def _make_latents_shape(
    record: LatentsRecord, num_frames: int, height: int, width: int
) -> tuple[int, int, int, int, int]:
    return (
        1,
        record.channels,
        count_latent_frames(record, num_frames),
        height // record.vae_scale_factor_spatial,
        width // record.vae_scale_factor_spatial,
    )


def _size_from_latents(
    manifest: Manifest, shape: Sequence[int], size: dict[str, int | None]
) -> dict[str, int | None]:
    """The size of the clip that latents of this shape decode to; raises `ParameterError`."""
    record = manifest.latents
    if len(shape) != 5 or shape[0] != 1 or shape[1] != record.channels or min(shape) < 1:
        raise ParameterError(
            f"latents has shape {list(shape)}; it must be [1, {record.channels}, F, H, W]"
        )
    implied: dict[str, int | None] = {
        "num_frames": (shape[2] - 1) * record.vae_scale_factor_temporal + 1,
        "height": shape[3] * record.vae_scale_factor_spatial,
        "width": shape[4] * record.vae_scale_factor_spatial,
    }
    for name, value in size.items():
        if value is not None and value != implied[name]:
            raise ParameterError(
                f"{name} is {value}; latents of shape {list(shape)} make {implied[name]}: "
                f"leave {name} out"
            )
    return implied


def _check_whole(name: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ParameterError(f"{name} is {value!r}; it must be a whole number: use {default}")
    return int(value)


def _check_seed(seed: int | None) -> int:
    if seed is None:
        return secrets.randbits(_RANDOM_SEED_BITS)
    seed = _check_whole("seed", seed, 0)
    if not 0 <= seed <= SEED_MAX:
        raise ParameterError(f"seed is {seed}; it must be from 0 to {SEED_MAX}: use 0")
    return seed


def _check_guidance_scale(
    bundle: Bundle, scheduler: str, table: ScheduleTable, guidance_scale: float | None
) -> float:
    if guidance_scale is None:
        takes_guidance = bundle.manifest.guidance and table.takes_guidance
        return bundle.manifest.defaults.guidance_scale if takes_guidance else 1.0
    value = _check_number("guidance_scale", guidance_scale)
    if value < 1:
        raise ParameterError(
            f"guidance_scale is {value:g}; it must be at least 1: use 1 for no guidance"
        )
    _check_takes_guidance(bundle, scheduler, table, "guidance_scale", value)
    return value


def _check_min_guidance_scale(
    bundle: Bundle, scheduler: str, table: ScheduleTable, min_guidance_scale: float | None
) -> float | None:
    if min_guidance_scale is None:
        takes_guidance = bundle.manifest.guidance and table.takes_guidance
        return bundle.manifest.defaults.min_guidance_scale if takes_guidance else None
    value = _check_number("min_guidance_scale", min_guidance_scale)
    if value < 1:
        raise ParameterError(
            f"min_guidance_scale is {value:g}; it must be at least 1: use 1 for no guidance of the "
            "first frame"
        )
    _check_takes_guidance(bundle, scheduler, table, "min_guidance_scale", value)
    return value


def _check_takes_guidance(
    bundle: Bundle, scheduler: str, table: ScheduleTable, name: str, value: float
) -> None:
    """Raise `ParameterError` if a guidance scale is above 1 where guidance cannot work."""
    if value > 1:
        refusal = find_guidance_refusal(bundle, scheduler, table)
        if refusal is not None:
            raise ParameterError(f"{name} is {value:g}; {refusal}")


def _check_conditions(manifest: Manifest, conditions: Mapping[str, float]) -> dict[str, float]:
    for name in conditions:
        if name not in manifest.conditions:
            known = ", ".join(manifest.conditions)
            raise ParameterError(
                f"condition {name!r} is not one that this bundle takes: "
                + (f"use some of {known}" if known else "it takes none")
            )
    values = {name: record.default for name, record in manifest.conditions.items()}
    for name, given in conditions.items():
        values[name] = _check_number(f"condition {name}", given)
        manifest.conditions[name].check(f"condition {name}", values[name])
    return values


def _check_frame_rate(frame_rate: float) -> float:
    value = _check_number("frame_rate", frame_rate)
    if not 0 < value <= 1000:
        raise ParameterError(f"frame_rate is {value:g}; it must be above 0, up to 1000: use 8")
    return value


def _check_number(name: str, value: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as err:
        raise ParameterError(f"{name} is {value!r}; it must be a number") from err
    if not math.isfinite(number):
        raise ParameterError(f"{name} is {value}; it must be finite")
    return number
