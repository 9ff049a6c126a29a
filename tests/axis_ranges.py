"""Lengths of the axes of a bundle's graphs, for tests that try several sizes."""

from __future__ import annotations

from mutoscope.runtime.manifest import LimitsRecord, Manifest

MAX_BATCH = 2
MAX_FRAMES = 16
# The largest clip is this many of the smallest that the bundle takes, along each side.
MAX_MULTIPLE = 4


def make_axis_ranges(manifest: Manifest) -> dict[str, tuple[int, int, int]]:
    """Return the least, usual and largest size of every axis that graphs have."""
    limits, scale = manifest.limits, manifest.latents.vae_scale_factor_spatial
    height, width = _make_side(limits, "height"), _make_side(limits, "width")
    most = min(limits.num_frames.maximum or MAX_FRAMES, MAX_FRAMES)
    lengths = [tokenizer.max_length for tokenizer in manifest.tokenizers.values()]
    return {
        "batch": (1, MAX_BATCH, MAX_BATCH),
        "num_frames": (limits.num_frames.minimum, most, most),
        "height": height,
        "width": width,
        "latent_height": _divide(height, scale),
        "latent_width": _divide(width, scale),
        **({"sequence": (1, max(lengths), max(lengths))} if lengths else {}),
    }


def _make_side(limits: LimitsRecord, name: str) -> tuple[int, int, int]:
    minimum: int = getattr(limits, name).minimum
    return minimum, 2 * minimum, MAX_MULTIPLE * minimum


def _divide(sizes: tuple[int, int, int], scale: int) -> tuple[int, int, int]:
    minimum, optimum, maximum = (size // scale for size in sizes)
    return minimum, optimum, maximum
