from pathlib import Path
from typing import Any

import pytest

from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.settings import make_settings


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


def test_what_is_not_given_comes_from_the_bundle(bundle: Bundle) -> None:
    settings = make_settings(bundle)
    assert settings.scheduler == "ddim"
    assert (settings.num_inference_steps, settings.guidance_scale) == (4, 3.0)
    assert (settings.num_frames, settings.height, settings.width) == (6, 32, 48)
    assert settings.frame_rate == 8.0
    assert settings.latents_shape == (1, 4, 6, 4, 6)
    assert settings.uses_guidance


def test_a_seed_that_is_not_given_is_drawn(bundle: Bundle) -> None:
    seeds = {make_settings(bundle).seed for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_latents_set_the_size(bundle: Bundle) -> None:
    settings = make_settings(bundle, latents_shape=(1, 4, 3, 8, 10))
    assert (settings.num_frames, settings.height, settings.width) == (3, 64, 80)
    assert settings.latents_shape == (1, 4, 3, 8, 10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": 40}, "height is 40; this bundle needs 16k: use 32 or 48"),
        ({"width": 4000}, "width is 4000; this bundle allows at most 256: use 256"),
        ({"num_frames": 0}, "num_frames is 0; this bundle needs at least 1: use 1"),
        ({"num_frames": 2.5}, "num_frames is 2.5; it must be a whole number: use 6"),
        ({"num_frames": True}, "num_frames is True; it must be a whole number"),
        ({"height": "32"}, "height is '32'; it must be a whole number"),
        ({"num_inference_steps": 5}, "num_inference_steps is 5; .* 1-4, 8 steps: use 4"),
        ({"scheduler": "euler"}, "scheduler 'euler' is not in this bundle: use ddim, euler-anc"),
        ({"seed": -1}, "seed is -1; it must be from 0 to 18446744073709551615: use 0"),
        ({"seed": 2**64}, "seed is 18446744073709551616; it must be from 0 to"),
        ({"seed": 1.0}, "seed is 1.0; it must be a whole number"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5; it must be at least 1: use 1 for no"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan; it must be finite"),
        ({"guidance_scale": "much"}, "guidance_scale is 'much'; it must be a number"),
        ({"frame_rate": 0}, "frame_rate is 0; it must be above 0"),
        ({"frame_rate": float("inf")}, "frame_rate is inf; it must be finite"),
        (
            {"latents_shape": (1, 4, 6, 4)},
            r"latents has shape \[1, 4, 6, 4\]; it must be \[1, 4, F",
        ),
        ({"latents_shape": (2, 4, 6, 4, 6)}, r"it must be \[1, 4, F, H, W\]"),
        ({"latents_shape": (1, 3, 6, 4, 6)}, r"it must be \[1, 4, F, H, W\]"),
        ({"latents_shape": (1, 4, 6, 3, 6)}, "height is 24; this bundle needs 16k"),
        (
            {"latents_shape": (1, 4, 6, 4, 6), "height": 64},
            r"height is 64; latents of shape \[1, 4, 6, 4, 6\] make 32: leave height out",
        ),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_one_that_is(
    bundle: Bundle, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        make_settings(bundle, **values)


def test_a_bundle_without_guidance_refuses_a_guidance_scale(bundle: Bundle) -> None:
    import dataclasses

    bundle = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, guidance=False)
    )
    assert not make_settings(bundle).uses_guidance
    with pytest.raises(
        ParameterError, match="guidance_scale is 2; this bundle's denoiser works wi"
    ):
        make_settings(bundle, guidance_scale=2)


def test_frames_of_a_vae_that_packs_time_follow_its_rule(bundle: Bundle) -> None:
    import dataclasses

    latents = dataclasses.replace(bundle.manifest.latents, vae_scale_factor_temporal=4)
    bundle = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, latents=latents)
    )
    assert make_settings(bundle, num_frames=13).latents_shape[2] == 4
    assert make_settings(bundle, num_frames=1).latents_shape[2] == 1
    assert make_settings(bundle, latents_shape=(1, 4, 4, 4, 6)).num_frames == 13
