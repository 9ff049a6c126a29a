"""Calibration and tuning of bundles that have baked prompts and no text encoder."""

import shutil

import numpy as np
import pytest

from mutoscope.calibration.collection import make_state_key
from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.samples import load_default_prompts, make_samples
from mutoscope.calibration.tuning import tune_bundle
from mutoscope.runtime.baked_prompts import load_baked_prompts
from mutoscope.runtime.bundle import Bundle
from tests.calibration.reusing_bundle import make_reusing_bundle
from tests.calibration.small_calibration import make_up_times
from tests.calibration.tuned_bundle import make_options, make_up_passes
from tests.runtime.baked_bundles import TEXTS, bake, drop_text_encoder

PROMPTS = list(TEXTS[:2])
NOT_BAKED = r"its 3 baked prompts do not have 'a square': use one of 'a red circle', "


@pytest.fixture(scope="module")
def baked_bundle(tmp_path_factory):
    """Not to be changed."""
    path = make_reusing_bundle(tmp_path_factory.mktemp("baked") / "bundle")
    bake(path)
    drop_text_encoder(path)
    return path


@pytest.fixture
def path(baked_bundle, tmp_path, cache):
    """A copy that the test may change, in a folder of its own."""
    return shutil.copytree(baked_bundle, tmp_path / "bundles" / "bundle")


@pytest.fixture
def bundle(baked_bundle):
    return Bundle.open(baked_bundle)


def read_embeds(bundle):
    baked = load_baked_prompts(bundle)
    return np.concatenate([baked.read(text)["prompt_embeds"] for text in TEXTS])


def test_baked_texts_are_the_prompts_but_for_the_negative_one(bundle, tmp_path):
    assert load_default_prompts(bundle) == PROMPTS
    alone = shutil.copytree(bundle.path, tmp_path / "alone")
    bake(alone, {"prompt_embeds": read_embeds(bundle)[2:]}, texts=TEXTS[2:])
    assert load_default_prompts(Bundle.open(alone)) == [""]


def test_a_bundle_that_can_encode_is_not_sampled_with_what_is_baked(tmp_path):
    path = make_reusing_bundle(tmp_path / "bundle")
    bake(path)
    samples = make_samples(Bundle.open(path), ["a square"], [], 1, 0)
    assert samples[0].prompt == "a square"


def test_a_bundle_without_text_encoder_is_calibrated(calibrate, path, monkeypatch):
    make_up_times(monkeypatch)
    report = calibrate(components=(), prompts=None)
    assert list(report.components) == ["unet", "vae_decoder"]
    assert "int8" in Bundle.open(path).find_component("unet").variants


def test_a_bundle_without_text_encoder_is_tuned(path, monkeypatch):
    make_up_passes(monkeypatch)
    report = tune_bundle(Bundle.open(path), make_options(None))
    assert report.median_psnr_db >= report.min_psnr_db
    assert report.reused_rows or report.unguided_rows


def test_a_prompt_that_is_not_baked_is_refused_with_its_line(calibrate, path, prompts):
    prompts.write_text("a red circle\na square\n")
    message = rf"prompts.txt: line 2: this bundle has no text encoder, and {NOT_BAKED}"
    with pytest.raises(CalibrationError, match=message):
        calibrate()
    with pytest.raises(CalibrationError, match=message):
        tune_bundle(Bundle.open(path), make_options(prompts))


def test_samples_are_of_baked_prompts(bundle):
    assert make_samples(bundle, PROMPTS, [], 1, 0)[0].prompt in PROMPTS
    with pytest.raises(CalibrationError, match=rf"prompts\[0\]: this bundle .* {NOT_BAKED}"):
        make_samples(bundle, ["a square"], [], 1, 0)
    with pytest.raises(CalibrationError, match="there are no prompts; this bundle makes videos"):
        make_samples(bundle, [], [], 1, 0)


def test_clips_of_other_encodings_are_other_clips(bundle, tmp_path):
    path = shutil.copytree(bundle.path, tmp_path / "bundle")
    bake(path, {"prompt_embeds": 2 * read_embeds(bundle)})
    assert make_state_key(Bundle.open(path)) != make_state_key(bundle)
