"""The sizes that engines are built for: from what a person asks for to a range of each input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from mutoscope.engines.tensorrt_build import ShapeRange
from mutoscope.runtime.baked_prompts import load_baked_prompts
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.decoding import plan_decode
from mutoscope.runtime.errors import EngineError, ParameterError
from mutoscope.runtime.manifest import LimitRecord, TensorRecord, is_denoiser
from mutoscope.runtime.settings import make_settings

PRESETS: Final = ("fixed", "sizes", "any")

_CLIP = re.compile(r"(\d+)x(\d+)x(\d+)")
# Of the usual height and width, with the preset of this name.
_FACTORS = {"sizes": (0.5, 1.5), "any": (0.0, 2.0)}


@dataclass(frozen=True)
class ClipSize:
    """The size of a clip in pixels and frames."""

    width: int
    height: int
    num_frames: int

    def __str__(self) -> str:
        """Return the size as people type it: `512x512x16`."""
        return f"{self.width}x{self.height}x{self.num_frames}"


@dataclass(frozen=True)
class ClipRange:
    """The clips that engines are built for.

    Attributes:
        minimum: The least of each length.
        optimum: The clip that they are made fast for.
        maximum: The greatest of each length.
        batch: How many clips the denoiser takes at once.
    """

    minimum: ClipSize
    optimum: ClipSize
    maximum: ClipSize
    batch: int = 1

    @property
    def is_fixed(self) -> bool:
        """Whether clips of one size are all that there is."""
        return self.minimum == self.maximum

    def __str__(self) -> str:
        """Return the range in words: `512x512x16`, `256x256x16 to 768x768x16`."""
        if self.is_fixed:
            return str(self.optimum)
        return f"{self.minimum} to {self.maximum}, best at {self.optimum}"


def parse_clip_range(bundle: Bundle, text: str, batch: int = 1) -> ClipRange:
    """Return the clips that a text asks for.

    Args:
        bundle: The bundle, whose limits hold.
        text: "fixed" is the bundle's usual size and nothing else; "sizes" takes heights and widths
            from half of that to one and a half times of it; "any" all from the least that the
            bundle takes to twice the usual, and all numbers of frames up to the usual. Or one size
            or three (least, usual, greatest), each WIDTHxHEIGHTxFRAMES, as in "512x512x16".
        batch: How many clips the denoiser takes at once: 2 for guidance in one batch.

    Raises:
        ParameterError: It is neither, or the bundle does not take such clips.
    """
    if text in PRESETS:
        return replace(_make_preset(bundle, text), batch=batch)
    found = [_CLIP.fullmatch(part.strip().lower()) for part in text.split(",")]
    clips = [ClipSize(*(int(number) for number in match.groups())) for match in found if match]
    if len(clips) != len(found) or len(clips) not in (1, 3):
        defaults = bundle.manifest.defaults
        usual = ClipSize(defaults.width, defaults.height, defaults.num_frames)
        raise ParameterError(
            f"shapes is {text!r}; it must be {', '.join(PRESETS)}, or one or three sizes "
            f"WIDTHxHEIGHTxFRAMES with commas between them: use fixed or {usual}"
        )
    least, usual, greatest = clips if len(clips) == 3 else clips * 3
    for clip in clips:
        _check_clip(bundle, clip)
    for name in ("width", "height", "num_frames"):
        if not getattr(least, name) <= getattr(usual, name) <= getattr(greatest, name):
            raise ParameterError(
                f"shapes is {text!r}, whose {name} does not rise: give the least, the usual and "
                "the greatest size in this order"
            )
    return ClipRange(least, usual, greatest, batch)


def make_shape_ranges(bundle: Bundle, name: str, clips: ClipRange) -> dict[str, ShapeRange]:
    """Return the range of each input of a component over some clips.

    Args:
        bundle: The bundle.
        name: A key of its components.
        clips: The clips.

    Raises:
        EngineError: An input has an axis that does not follow from the size of a clip.
        ParameterError: The bundle has no such component.
    """
    component = bundle.find_component(name)
    axes = _make_axes(bundle, name, clips)
    return {
        input_name: _make_range(name, input_name, tensor, axes)
        for input_name, tensor in component.inputs.items()
    }


def takes(ranges: Mapping[str, ShapeRange], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether inputs of these shapes are within the ranges of all of them."""
    return all(
        least <= length <= greatest
        for name, shape in shapes.items()
        for least, length, greatest in zip(
            ranges[name].minimum, shape, ranges[name].maximum, strict=True
        )
    )


def _make_preset(bundle: Bundle, preset: str) -> ClipRange:
    defaults, limits = bundle.manifest.defaults, bundle.manifest.limits
    usual = ClipSize(defaults.width, defaults.height, defaults.num_frames)
    if preset not in _FACTORS:
        return ClipRange(usual, usual, usual)
    widths, heights = (
        [_find_allowed(limit, factor * length) for factor in _FACTORS[preset]]
        for limit, length in ((limits.width, usual.width), (limits.height, usual.height))
    )
    fewest = limits.num_frames.minimum if preset == "any" else usual.num_frames
    return ClipRange(
        ClipSize(widths[0], heights[0], fewest),
        usual,
        ClipSize(widths[1], heights[1], usual.num_frames),
    )


def _find_allowed(limit: LimitRecord, length: float) -> int:
    """The greatest length that a limit allows up to this one, or the least that it allows."""
    most = int(length) if limit.maximum is None else min(int(length), limit.maximum)
    return max(most - (most - limit.offset) % limit.multiple, limit.minimum)


def _check_clip(bundle: Bundle, clip: ClipSize) -> None:
    """Raise `ParameterError` unless a bundle makes clips of this size."""
    limits = bundle.manifest.limits
    for name in ("width", "height", "num_frames"):
        getattr(limits, name).check(name, getattr(clip, name))


def _make_axes(bundle: Bundle, name: str, clips: ClipRange) -> dict[str, tuple[int, int, int]]:
    """The least, usual and greatest length of every axis that the inputs of a component have."""
    manifest = bundle.manifest
    sizes = (clips.minimum, clips.optimum, clips.maximum)
    latents = [
        make_settings(
            bundle, width=size.width, height=size.height, num_frames=size.num_frames
        ).latents_shape
        for size in sizes
    ]
    frames = [shape[2] for shape in latents]
    decoder, scale = manifest.components[name].decoder, manifest.latents.vae_scale_factor_spatial
    if decoder is not None:
        # As many as one run decodes; what is left for the last run may be any number.
        chunks = [plan_decode(decoder, shape, scale).frames_per_chunk for shape in latents]
        # Of small frames more fit into a run than in any of these clips.
        longest = (*latents[0][:2], frames[2], *latents[0][3:])
        most = plan_decode(decoder, longest, scale).frames_per_chunk
        is_cut = not clips.is_fixed and chunks != frames
        rest = 1 if is_cut else frames[1] % chunks[1] or chunks[1]
        frames = [min(rest, *chunks), chunks[1], most]
    tokens = _count_tokens(bundle)
    batch = clips.batch if is_denoiser(name) else 1
    return {
        "batch": (batch, batch, batch),
        "num_frames": _as_three(frames),
        "batch_frames": _as_three([batch * length for length in frames]),
        "latent_height": _as_three([shape[3] for shape in latents]),
        "latent_width": _as_three([shape[4] for shape in latents]),
        "height": _as_three([size.height for size in sizes]),
        "width": _as_three([size.width for size in sizes]),
        "sequence": (tokens, tokens, tokens),
    }


def _count_tokens(bundle: Bundle) -> int:
    """How many tokens a prompt has, 1 in a bundle without prompts."""
    lengths = [record.max_length for record in bundle.manifest.tokenizers.values()]
    baked = load_baked_prompts(bundle)
    return max(lengths, default=1 if baked is None else baked.num_tokens)


def _as_three(lengths: list[int]) -> tuple[int, int, int]:
    least, usual, greatest = lengths
    return least, usual, greatest


def _make_range(
    name: str, input_name: str, tensor: TensorRecord, axes: dict[str, tuple[int, int, int]]
) -> ShapeRange:
    lengths = []
    for axis in tensor.shape:
        if isinstance(axis, str) and axis not in axes:
            raise EngineError(
                f"{name} has an input {input_name} with an axis {axis!r}, whose length does not "
                f"follow from the size of a clip (known: {', '.join(axes)}): run it with "
                "--engine onnxruntime"
            )
        lengths.append(axes[axis] if isinstance(axis, str) else (axis, axis, axis))
    minimum, optimum, maximum = (tuple(length[i] for length in lengths) for i in range(3))
    return ShapeRange(minimum, optimum, maximum)
