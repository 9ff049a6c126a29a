"""Fixtures of libmutoscope's tests: the library, built when it is first needed, and its bundles."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH
from mutoscope.runtime.native import Library, NativePipeline
from mutoscope.runtime.pipeline import VideoPipeline
from tests.conftest import MakeOnce
from tests.runtime.native.build import build_library
from tests.runtime.native.native_bundles import (
    make_image_bundle,
    make_rows_bundle,
    make_text_bundle,
)


@pytest.fixture(scope="session")
def library() -> Library:
    """libmutoscope, built from the sources as they are now."""
    return Library(build_library())


@pytest.fixture(scope="session")
def text_bundle(make_once: MakeOnce) -> Path:
    """A bundle of texts that is made by hand; not to be changed."""
    return make_once("native-text", lambda folder: make_text_bundle(folder / "bundle"))


@pytest.fixture(scope="session")
def rows_bundle(make_once: MakeOnce) -> Path:
    """A hand-made bundle whose schedules run several denoisers; not to be changed."""
    return make_once("native-rows", lambda folder: make_rows_bundle(folder / "bundle"))


@pytest.fixture(scope="session")
def image_bundle(make_once: MakeOnce) -> Path:
    """A bundle of images that is made by hand; not to be changed."""
    return make_once("native-image", lambda folder: make_image_bundle(folder / "bundle"))


@pytest.fixture
def own_bundle(text_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle of texts that the test may damage."""
    return Path(shutil.copytree(text_bundle, tmp_path / "own-bundle"))


@pytest.fixture
def native(library: Library, text_bundle: Path) -> Iterator[NativePipeline]:
    """The bundle of texts, as the library runs it."""
    with NativePipeline.open(text_bundle, library=library, num_threads=1) as pipeline:
        yield pipeline


@pytest.fixture
def python(text_bundle: Path) -> Iterator[VideoPipeline]:
    """The bundle of texts, as Python runs it."""
    with VideoPipeline.open(text_bundle, num_threads=1) as pipeline:
        yield pipeline


def calibrate_quickly(path: Path, **sampling: Any) -> None:
    """Give a bundle the int8 variants of its components, as little calibrated as is possible.

    The sampling is that of the clip it is calibrated with: see SamplingOptions.
    """
    from mutoscope.calibration.calibrate import CalibrationOptions, calibrate_bundle
    from mutoscope.calibration.samples import SamplingOptions
    from mutoscope.engines.options import EngineOptions
    from mutoscope.runtime.bundle import Bundle
    from tests.calibration.small_calibration import ANY_DB, COMPONENTS, PROMPTS, make_up_times

    prompts = path.parent / "prompts.txt"
    prompts.write_text(PROMPTS)
    options = CalibrationOptions(
        components=COMPONENTS,
        preset="fast",
        min_psnr_db=ANY_DB,
        num_samples=1,
        prompts=prompts,
        sampling=SamplingOptions(**sampling),
        engine=EngineOptions(num_threads=1),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path.parent / "cache"))
        make_up_times(patch)
        calibrate_bundle(Bundle.open(path), options)


@pytest.fixture(scope="session")
def int8_bundle(make_once: MakeOnce) -> Path:
    """A bundle whose three components are float32 and int8."""

    def fill(folder: Path) -> Path:
        from tests.calibration.layered_bundle import make_deep_bundle

        path = make_deep_bundle(folder / "bundle")
        calibrate_quickly(path)
        return path

    return make_once("native-int8", fill)


@pytest.fixture(scope="session")
def shipped_int8_bundle(make_once: MakeOnce) -> Path:
    """The shipped bundle with int8 variants of its three components."""

    def fill(folder: Path) -> Path:
        path = Path(shutil.copytree(DEFAULT_BUNDLE_PATH, folder / "bundle"))
        sampling = {"scheduler": "ddim", "num_inference_steps": 2, "num_frames": 4}
        calibrate_quickly(path, **sampling, height=32, width=32)
        return path

    return make_once("native-shipped-int8", fill)
