"""TensorRT engines that are built or run in other ways give the same results, or say why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mutoscope.engines.cuda_device import GpuRecord
from mutoscope.engines.engine import Tensors
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.engine_proof import MINIMUM_PSNR_DB
from mutoscope.runtime.errors import EngineError
from tests.gpu.conftest import Build, FindBundle
from tests.gpu.running import (
    TENSORRT,
    EngineCase,
    make_feeds,
    measure_psnr,
    open_built,
    open_component,
    run_on_cpu,
)

pytestmark = pytest.mark.gpu

VARIANT = "float16"
UNET = ("--component", "unet")
# The UNet of the shipped bundle has 12 MB of weights in float16.
WEIGHT_BUDGET_BYTES = 2**22
# What a plan has beside weights: code, which for a small model is much of it.
STRIPPED_PART = 0.8
# The same kernels in the same order; what plays them again adds nothing. Not all of them sum in
# the same order every time.
SAME_PSNR_DB = 80.0

on_every_flavour = pytest.mark.parametrize("case", TENSORRT, ids=str)


@on_every_flavour
def test_recorded_runs_give_what_runs_give(
    case: EngineCase, find_bundle: FindBundle, build: Build
) -> None:
    path = find_bundle("shipped")
    plain, recorded = case.make_options(), case.make_options(cuda_graphs=True)
    build(path, case, VARIANT)
    feeds = make_feeds(path)["unet"]
    others = {name: array[..., ::-1].copy() for name, array in feeds.items()}
    with open_component(path, "unet", plain, VARIANT, feeds) as engine:
        expected = [engine.run(given) for given in (feeds, others, feeds)]
    with open_component(path, "unet", recorded, VARIANT, feeds) as engine:
        found = [engine.run(given) for given in (feeds, others, feeds)]
    assert measure_psnr(expected[0], expected[1]) < SAME_PSNR_DB
    for one, other in zip(expected, found, strict=True):
        assert measure_psnr(one, other) >= SAME_PSNR_DB


@on_every_flavour
def test_recorded_runs_follow_the_shape(
    case: EngineCase, find_bundle: FindBundle, build: Build
) -> None:
    path, options = find_bundle("shipped"), case.make_options(cuda_graphs=True)
    (built,) = build(path, case, VARIANT, *UNET, "--shapes", "sizes")["built"]
    sizes = [{"height": 64, "width": 64}, {"height": 32, "width": 48}]
    with open_built(path, built, options) as engine:
        for size in (*sizes, sizes[0]):
            found = engine.run(make_feeds(path, **size)["unet"])
            expected = run_on_cpu(path, "unet", VARIANT, **size)
            assert measure_psnr(expected, found) >= MINIMUM_PSNR_DB[VARIANT]


@on_every_flavour
def test_weights_that_are_streamed_take_less_of_the_gpu(
    case: EngineCase, find_bundle: FindBundle, build: Build
) -> None:
    path, plain = find_bundle("shipped"), case.make_options()
    budget = case.make_options(weight_budget_bytes=WEIGHT_BUDGET_BYTES)
    (built,) = build(path, case, VARIANT, *UNET, "--weight-streaming")["built"]
    all_sizes, _ = run_built(path, built, plain)
    sizes, found = run_built(path, built, budget)
    assert measure_psnr(run_on_cpu(path, "unet", VARIANT), found) >= MINIMUM_PSNR_DB[VARIANT]
    if "weights" not in sizes:
        pytest.skip("this TensorRT does not say what weights take (10.3 does not)")
    assert sizes["weights"] < all_sizes["weights"]


@on_every_flavour
def test_a_budget_for_weights_that_are_not_streamed_is_refused(
    case: EngineCase, find_bundle: FindBundle, build: Build
) -> None:
    path = find_bundle("shipped")
    options = case.make_options(weight_budget_bytes=WEIGHT_BUDGET_BYTES)
    (built,) = build(path, case, VARIANT, *UNET)["built"]
    with pytest.raises(EngineError, match="cannot stream its weights"):
        run_built(path, built, options)


@on_every_flavour
def test_an_engine_without_weights_is_smaller_and_takes_those_of_the_graph(
    case: EngineCase, find_bundle: FindBundle, build: Build
) -> None:
    path, options = find_bundle("shipped"), case.make_options()
    (whole,) = build(path, case, VARIANT, *UNET)["built"]
    (stripped,) = build(path, case, VARIANT, *UNET, "--strip-weights")["built"]
    assert stripped["problem"] is None
    assert stripped["size_bytes"] < STRIPPED_PART * whole["size_bytes"]
    _, found = run_built(path, stripped, options)
    assert measure_psnr(run_on_cpu(path, "unet", VARIANT), found) >= MINIMUM_PSNR_DB[VARIANT]


@on_every_flavour
@pytest.mark.parametrize("flag", ["--refit", "--version-compatible", "--hardware-compatible"])
def test_an_engine_that_is_built_for_more_passes_its_proof(
    flag: str, case: EngineCase, gpu: GpuRecord, find_bundle: FindBundle, build: Build
) -> None:
    if gpu.is_integrated and flag == "--hardware-compatible":
        pytest.skip("TensorRT makes no hardware-compatible engines on a Jetson")
    if case.engine == "tensorrt-rtx" and flag == "--version-compatible":
        pytest.skip("TensorRT for RTX has no version-compatible engines")
    case.make_options()
    (built,) = build(find_bundle("tiny"), case, VARIANT, *UNET, flag)["built"]
    assert built["problem"] is None
    assert built["proof"]["psnr_db"] >= MINIMUM_PSNR_DB[VARIANT]


@on_every_flavour
def test_a_shape_that_it_was_not_built_for_is_refused(
    case: EngineCase, find_bundle: FindBundle, build: Build
) -> None:
    path, options = find_bundle("shipped"), case.make_options()
    build(path, case, VARIANT)
    feeds = make_feeds(path)["unet"]
    with open_component(path, "unet", options, VARIANT, feeds) as engine:
        engine.run(feeds)
        limits = engine.inputs["sample"].maximum
        assert limits
        wide = {**feeds, "sample": feeds["sample"].repeat(limits[-1], axis=-1)}
        with pytest.raises(EngineError, match="this engine was built for"):
            engine.run(wide)
        assert measure_psnr(engine.run(feeds), engine.run(feeds)) >= SAME_PSNR_DB


def run_built(
    path: Path, built: dict[str, Any], options: EngineOptions
) -> tuple[dict[str, int], Tensors]:
    """What an engine of the denoiser holds, and what it gives."""
    with open_built(path, built, options) as engine:
        outputs = engine.run(make_feeds(path)["unet"])
        return dict(engine.memory_bytes), outputs
