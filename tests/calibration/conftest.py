"""Fixtures of the calibration's tests: bundles with layers, and the smallest calibration."""

import dataclasses
import shutil

import pytest

from mutoscope.calibration.calibrate import CalibrationOptions, calibrate_bundle
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from tests.calibration.layered_bundle import make_deep_bundle
from tests.calibration.reusing_bundle import make_reusing_bundle
from tests.calibration.small_calibration import ANY_DB, PROMPTS, UNET


@pytest.fixture(scope="module")
def deep_bundle(tmp_path_factory):
    """Not to be changed."""
    return make_deep_bundle(tmp_path_factory.mktemp("deep") / "bundle")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def path(deep_bundle, tmp_path, cache):
    """A copy that the test may change, in a folder of its own."""
    return shutil.copytree(deep_bundle, tmp_path / "bundles" / "bundle")


@pytest.fixture(scope="module")
def reusing_bundle(tmp_path_factory):
    """Not to be changed."""
    return make_reusing_bundle(tmp_path_factory.mktemp("reusing") / "bundle")


@pytest.fixture
def reusing_path(reusing_bundle, tmp_path, cache):
    """A copy of it that the test may change, as `path` is of the other one."""
    return shutil.copytree(reusing_bundle, tmp_path / "bundles" / "bundle")


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(PROMPTS)
    return file


@pytest.fixture
def calibrate(path, prompts):
    """A function that calibrates the denoiser, as little as is possible; or as it is told."""

    def run(on_progress=None, **changes):
        options = CalibrationOptions(
            components=UNET,
            preset="fast",
            min_psnr_db=ANY_DB,
            num_samples=1,
            prompts=prompts,
            engine=EngineOptions(num_threads=1),
        )
        options = dataclasses.replace(options, **changes)
        return calibrate_bundle(Bundle.open(path), options, on_progress)

    return run
