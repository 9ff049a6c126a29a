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
) -> Settings:
    """Return the settings of a generation; what is None is taken from the bundle.

    Args:
        bundle: The bundle that will run.
        latents_shape: The shape of start latents, if the caller has any: it then sets the size.
        seed: From 0 to 2^64 - 1; None draws one.
        scheduler: A name that `Bundle.find_scheduler` knows.
        num_inference_steps: A number of steps that the bundle has a table for.
        guidance_scale: At least 1, which is off.
        min_guidance_scale: Guidance of the first frame, at least 1.
        height: In pixels, within the bundle's limits.
        width: In pixels, within the bundle's limits.
        num_frames: Within the bundle's limits.
        frame_rate: Frames per second that the video says of itself, and that the denoiser is told
            if it takes it.
        conditions: Numbers that the bundle's denoiser takes, by name.

    Raises:
        ParameterError: A value is not allowed; the message names one that is.
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
    manifest.limits.num_frames.check("num_frames", num_frames)
    num_inference_steps = _check_whole(
        "num_inference_steps", num_inference_steps, defaults.num_inference_steps
    )
    scheduler = bundle.find_scheduler(defaults.scheduler if scheduler is None else scheduler)
    bundle.find_schedule(scheduler, num_inference_steps)
    return Settings(
        seed=_check_seed(seed),
        scheduler=scheduler,
        num_inference_steps=num_inference_steps,
        guidance_scale=_check_guidance_scale(manifest, guidance_scale),
        min_guidance_scale=_check_min_guidance_scale(manifest, min_guidance_scale),
        conditions=_check_conditions(manifest, conditions or {}),
        height=height,
        width=width,
        num_frames=num_frames,
        frame_rate=_check_frame_rate(defaults.frame_rate if frame_rate is None else frame_rate),
        latents_shape=_make_latents_shape(manifest.latents, num_frames, height, width),
    )


def _make_latents_shape(
    record: LatentsRecord, num_frames: int, height: int, width: int
) -> tuple[int, int, int, int, int]:
    return (
        1,
        record.channels,
        (num_frames - 1) // record.vae_scale_factor_temporal + 1,
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


def _check_guidance_scale(manifest: Manifest, guidance_scale: float | None) -> float:
    if guidance_scale is None:
        return manifest.defaults.guidance_scale if manifest.guidance else 1.0
    value = _check_number("guidance_scale", guidance_scale)
    if value < 1:
        raise ParameterError(
            f"guidance_scale is {value:g}; it must be at least 1: use 1 for no guidance"
        )
    if value > 1 and not manifest.guidance:
        raise ParameterError(
            f"guidance_scale is {value:g}; this bundle's denoiser works without guidance: use 1"
        )
    return value


def _check_min_guidance_scale(manifest: Manifest, min_guidance_scale: float | None) -> float | None:
    if min_guidance_scale is None:
        return manifest.defaults.min_guidance_scale
    value = _check_number("min_guidance_scale", min_guidance_scale)
    if value < 1:
        raise ParameterError(
            f"min_guidance_scale is {value:g}; it must be at least 1: use 1 for no guidance of the "
            "first frame"
        )
    if value > 1 and not manifest.guidance:
        raise ParameterError(
            f"min_guidance_scale is {value:g}; this bundle's denoiser works without guidance: use 1"
        )
    return value


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
