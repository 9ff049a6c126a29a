"""A clip in context windows is the same in C as in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.native import Library, NativePipeline
from mutoscope.runtime.noise import NoiseGenerator
from mutoscope.runtime.pipeline import VideoPipeline
from tests.runtime.hand_made_bundle import write_manifest
from tests.runtime.native.native_bundles import read_manifest
from tests.runtime.native.parity import check_parity, generate_with_both
from tests.runtime.native.same_errors import check_same

PROMPT = "a red circle"
# The hand-made bundles take 32 frames at once.
LONG = 40


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="default"),
        pytest.param({"guidance_scale": 1.0}, id="no-guidance"),
        pytest.param({"min_guidance_scale": 1.0}, id="rising-guidance"),
        pytest.param({"guidance_passes": "batched"}, id="batched"),
        pytest.param({"context_length": 16}, id="length"),
        pytest.param({"context_length": 16, "context_stride": 5}, id="stride"),
        pytest.param({"context_length": 7, "context_stride": 7}, id="apart"),
        pytest.param({"context_length": 1}, id="one-frame"),
        pytest.param({"num_frames": 12, "context_length": 5}, id="short-clip"),
        pytest.param({"num_frames": 12, "context_length": 12}, id="one-window"),
        pytest.param({"context_stride": 3}, id="stride-alone"),
        pytest.param({"scheduler": "euler-ancestral"}, id="noise"),
    ],
)
def test_windows_give_the_same_video(
    library: Library, text_bundle: Path, changes: dict[str, Any]
) -> None:
    arguments: dict[str, Any] = {"num_frames": LONG, **changes}
    pair = generate_with_both(library, text_bundle, prompt=PROMPT, seed=3, **arguments)
    check_parity(pair)
    assert len(pair.native.frames) == arguments["num_frames"]


@pytest.mark.parametrize("scheduler", ["ddim", "euler-ancestral"])
def test_windows_of_a_clip_of_an_image_give_the_same_video(
    library: Library, image_bundle: Path, scheduler: str
) -> None:
    image = np.zeros((32, 48, 3), dtype=np.uint8)
    arguments: dict[str, Any] = {"image": image, "seed": 3, "num_inference_steps": 2}
    pair = generate_with_both(
        library, image_bundle, num_frames=LONG, scheduler=scheduler, **arguments
    )
    check_parity(pair, has_picture=True)


def test_start_noise_that_the_caller_gives_is_taken_as_it_is(
    library: Library, text_bundle: Path
) -> None:
    latents = NoiseGenerator(9).normal((1, 4, LONG, 4, 6))
    check_parity(generate_with_both(library, text_bundle, prompt=PROMPT, seed=3, latents=latents))


def test_resolve_says_which_windows_there_are(library: Library, text_bundle: Path) -> None:
    with NativePipeline.open(text_bundle, library=library) as pipeline:

        def resolve(**arguments: Any) -> tuple[int, int, int]:
            found = pipeline.resolve(PROMPT, **arguments)
            names = ("context_length", "context_stride", "num_context_windows")
            return found[names[0]], found[names[1]], found[names[2]]

        assert resolve() == (0, 0, 1)
        assert resolve(num_frames=32) == (0, 0, 1)
        assert resolve(num_frames=33) == (32, 16, 2)
        assert resolve(num_frames=48) == (32, 16, 2)
        assert resolve(num_frames=LONG, context_length=16) == (16, 8, 4)
        assert resolve(num_frames=LONG, context_length=1) == (1, 1, LONG)
        assert resolve(num_frames=12, context_length=12) == (12, 6, 1)


@pytest.mark.parametrize(
    "arguments",
    [{"num_frames": 33}, {"context_length": 4}, {"context_stride": 2}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_a_denoiser_that_takes_something_of_all_frames_has_no_windows(
    library: Library, own_bundle: Path, arguments: dict[str, Any]
) -> None:
    manifest = read_manifest(own_bundle)
    manifest["components"]["unet"]["inputs"]["encoder_hidden_states"]["shape"][0] = "num_frames"
    write_manifest(own_bundle, manifest)
    with (
        NativePipeline.open(own_bundle, library=library) as native,
        VideoPipeline.open(own_bundle) as python,
    ):
        check_same(
            lambda: native.generate(PROMPT, **arguments),
            lambda: python.generate(PROMPT, **arguments),
            ParameterError,
        )
