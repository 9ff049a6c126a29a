"""Build the components of a bundle by TensorRT for RTX, for a GPU that is not in this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from mutoscope.engines.tensorrt_build import TensorrtBuildOptions, build_plan
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.shape_ranges import make_shape_ranges, parse_clip_range

# The Jetson Orin is SM 8.7; of what TensorRT for RTX compiles for, SM 8.6 is next to it.
OPTIONS = TensorrtBuildOptions(target="sm86")
# Both conditions of guidance in one run.
BATCH = 2
# The tiny I2VGen-XL has the usual clip of the real one, of which its VAE, which only halves, makes
# latents that no attention has room for: it is built for clips of this size in place of presets.
LARGEST_WIDTH = 256
SMALL_CLIPS = {"any": "4x4x1,32x32x16,64x64x16", "fixed": "32x32x16"}

# Strict: a version that mends it is to be noticed. It is the UNet alone, which is built where both
# height and width vary.
I2VGEN_OF_ONE_SIZE = pytest.param(
    "i2vgen",
    "fixed",
    marks=pytest.mark.xfail(
        strict=True, reason="TensorRT for RTX 1.7.1: internal error, host_instr.cpp: CHECK(0)"
    ),
)


def make_cases(families: tuple[str, ...]) -> list[object]:
    """Return each family with each preset."""
    cases: list[object] = [(family, preset) for family in families for preset in SMALL_CLIPS]
    return [I2VGEN_OF_ONE_SIZE if case == ("i2vgen", "fixed") else case for case in cases]


def build_component(
    path: Path, name: str, shapes: str, folder: Path, *, graph: Path | None = None
) -> int:
    """Return the size in bytes of the plan of a component; raises `EngineError`.

    Args:
        path: The bundle.
        name: The component.
        shapes: "any" or "fixed".
        folder: Where the plan goes.
        graph: What to build; None is the graph that the bundle runs by default.
    """
    bundle = Bundle.open(path)
    component = bundle.find_component(name)
    if graph is None:
        graph = path / component.variants[component.default_variant]
    is_small = bundle.manifest.defaults.width <= LARGEST_WIDTH
    clips = parse_clip_range(bundle, shapes if is_small else SMALL_CLIPS[shapes], BATCH)
    ranges = make_shape_ranges(bundle, name, clips)
    plan = folder / f"{name}-{shapes}.plan"
    report = build_plan("tensorrt-rtx", graph, ranges, OPTIONS, plan)
    assert plan.stat().st_size == report.plan_bytes
    return report.plan_bytes
