"""Buffers on the GPU: used again for the same shape, right for another, and counted."""

from __future__ import annotations

import numpy as np
import pytest

from mutoscope.engines.engine import Engine, Tensors
from mutoscope.engines.options import TENSORRT_MODULES
from mutoscope.runtime.engine_proof import MINIMUM_PSNR_DB
from tests.gpu.conftest import Build, FindBundle
from tests.gpu.running import (
    PROVIDERS,
    TENSORRT,
    EngineCase,
    make_feeds,
    measure_psnr,
    open_component,
    run_on_cpu,
)

pytestmark = pytest.mark.gpu

VARIANT = "float16"
# Both are within what --shapes sizes takes: from half to one and a half times of 64 x 64.
USUAL, SMALL = {"height": 64, "width": 64}, {"height": 32, "width": 48}


@pytest.mark.parametrize("case", [*PROVIDERS, *TENSORRT], ids=str)
def test_two_shapes_in_turn_give_what_each_gives_alone(
    case: EngineCase, find_bundle: FindBundle, build: Build
) -> None:
    options, path = case.make_options(), find_bundle("shipped")
    if case in TENSORRT:
        build(path, case, VARIANT, "--shapes", "sizes")
    feeds = {name: make_feeds(path, **size)["unet"] for name, size in named_sizes().items()}
    with open_component(path, "unet", options, VARIANT, feeds["small"]) as engine:
        for name in ("usual", "small", "usual", "usual"):
            expected = run_on_cpu(path, "unet", VARIANT, **named_sizes()[name])
            assert measure_psnr(expected, engine.run(feeds[name])) >= MINIMUM_PSNR_DB[VARIANT]


@pytest.mark.parametrize("case", [*PROVIDERS, *TENSORRT], ids=str)
def test_results_go_into_arrays_that_are_given(
    case: EngineCase, find_bundle: FindBundle, build: Build
) -> None:
    options, path = case.make_options(), find_bundle("shipped")
    if case in TENSORRT:
        build(path, case, VARIANT)
    feeds = make_feeds(path)["unet"]
    with open_component(path, "unet", options, VARIANT, feeds) as engine:
        first = copy(engine.run(feeds))
        outputs = {name: np.full_like(array, np.nan) for name, array in first.items()}
        other = {name: -array for name, array in feeds.items()}
        for given, expected in ((feeds, first), (other, None), (feeds, first)):
            found = engine.run(given, outputs)
            assert all(found[name] is outputs[name] for name in outputs)
            if expected is None:
                assert measure_psnr(first, found) < MINIMUM_PSNR_DB[VARIANT]
            else:
                assert measure_psnr(expected, found) >= MINIMUM_PSNR_DB[VARIANT]


@pytest.mark.parametrize("case", [*PROVIDERS[:2], *TENSORRT], ids=str)
def test_an_engine_says_what_it_holds_on_the_gpu(
    case: EngineCase, find_bundle: FindBundle, build: Build
) -> None:
    options, path = case.make_options(), find_bundle("shipped")
    if case in TENSORRT:
        build(path, case, VARIANT)
    feeds = make_feeds(path)["unet"]
    with open_component(path, "unet", options, VARIANT, feeds) as engine:
        outputs = engine.run(feeds)
        sizes = engine.memory_bytes
        moved = sum(array.nbytes for array in (*feeds.values(), *outputs.values()))
        assert sizes["buffers"] >= moved
        if case.engine in TENSORRT_MODULES:
            assert sizes["weights"] > 0
            assert sizes["activations"] > 0
        assert_device(engine, case)


def named_sizes() -> dict[str, dict[str, int]]:
    return {"usual": USUAL, "small": SMALL}


def copy(outputs: Tensors) -> Tensors:
    return {name: array.copy() for name, array in outputs.items()}


def assert_device(engine: Engine, case: EngineCase) -> None:
    """The engine is not on the CPU, and says so."""
    assert engine.device != "cpu"
    assert engine.properties["engine"] == case.engine
