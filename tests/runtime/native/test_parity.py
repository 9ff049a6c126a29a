"""The same bundle, prompt, seed and settings give the same video in C as in Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH, Bundle
from mutoscope.runtime.decoder import make_decode_plan
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.native import Library, NativePipeline
from mutoscope.runtime.noise import NoiseGenerator
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.settings import make_settings
from tests.runtime.hand_made_bundle import EMBEDDING as SMALL_EMBEDDING
from tests.runtime.native.native_bundles import EMBEDDING, PAD_TOKEN_ID, make_image
from tests.runtime.native.parity import LATENTS_TOLERANCE, check_parity, generate_with_both

PROMPT = "a red circle moves left on a gray background"
SMALL = {
    "prompt": PROMPT,
    "seed": 7,
    "height": 32,
    "width": 32,
    "num_frames": 4,
    "scheduler": "ddim",
}
SCHEDULERS = ("ddim", "euler-ancestral", "dpm++2m", "unipc", "lcm")
MIB = 2**20


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="guidance"),
        pytest.param({"guidance_scale": 1.0}, id="no-guidance"),
        pytest.param({"guidance_passes": "batched"}, id="batched"),
        pytest.param({"min_guidance_scale": 1.0}, id="rising-guidance"),
        pytest.param({"negative_prompt": "a blue square"}, id="negative-prompt"),
        pytest.param({"prompt": ""}, id="empty-prompt"),
        pytest.param({"prompt": "réd  CIRCLE\t🟠, 3 times!"}, id="odd-prompt"),
        pytest.param({"height": 16, "width": 48, "num_frames": 5}, id="odd-size"),
        pytest.param({"num_frames": 1}, id="image"),
        pytest.param({"seed": 2**64 - 2}, id="large-seed"),
        pytest.param({"frame_rate": 12.5}, id="frame-rate"),
    ],
)
def test_the_shipped_bundle_gives_the_same_video(library: Library, changes: dict[str, Any]) -> None:
    arguments = SMALL | {"num_inference_steps": 2} | changes
    check_parity(generate_with_both(library, DEFAULT_BUNDLE_PATH, **arguments))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_gives_the_same_video(library: Library, scheduler: str) -> None:
    arguments: dict[str, Any] = SMALL | {"scheduler": scheduler, "num_inference_steps": 6}
    if scheduler == "lcm":
        arguments["guidance_scale"] = 1.0
    check_parity(generate_with_both(library, DEFAULT_BUNDLE_PATH, **arguments))


@pytest.mark.parametrize(
    ("scheduler", "num_inference_steps"),
    [("few-step", 4), ("few-step-reuse", 4), ("ddim-reuse", 25)],
)
def test_few_steps_and_reused_features_give_the_same_video(
    library: Library, scheduler: str, num_inference_steps: int
) -> None:
    arguments = SMALL | {"scheduler": scheduler, "num_inference_steps": num_inference_steps}
    check_parity(generate_with_both(library, DEFAULT_BUNDLE_PATH, **arguments))


def test_the_schedulers_are_those_of_the_shipped_bundle() -> None:
    shipped = set(Bundle.default().manifest.schedules)
    assert shipped == {*SCHEDULERS, "few-step", "few-step-reuse", "ddim-reuse"}


@pytest.mark.parametrize(
    "options",
    [{"memory": "low"}, {"memory_limit_bytes": 130 * MIB}, {"variant": "float32"}],
    ids=["low-memory", "limit", "variant"],
)
def test_how_the_shipped_bundle_is_run_makes_no_difference(
    library: Library, options: dict[str, Any]
) -> None:
    arguments = SMALL | {"num_inference_steps": 1}
    check_parity(generate_with_both(library, DEFAULT_BUNDLE_PATH, options=options, **arguments))


def test_a_frame_in_tiles_gives_the_same_video(library: Library) -> None:
    arguments: dict[str, Any] = SMALL | {"height": 64, "width": 64, "num_inference_steps": 1}
    bundle = Bundle.default()
    size = {name: arguments[name] for name in ("height", "width", "num_frames")}
    with pytest.raises(ParameterError, match="needs at least") as caught:
        make_decode_plan(bundle, make_settings(bundle, **size).latents_shape, 1)
    limit = int(re.findall(r"at least (\d+) MiB", str(caught.value))[0]) * MIB
    pair = generate_with_both(
        library, DEFAULT_BUNDLE_PATH, options={"memory_limit_bytes": limit}, **arguments
    )
    check_parity(pair, in_tiles=True)
    # Each frame takes many graphs.
    assert pair.native_runs > 4 * arguments["num_frames"]


@pytest.mark.parametrize("bundle", ["tiny_bundle", "other_bundle", "modelscope_bundle"])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_bundles_of_texts_give_the_same_video(
    library: Library, request: pytest.FixtureRequest, bundle: str, guidance_scale: float
) -> None:
    path: Path = request.getfixturevalue(bundle)
    manifest = Bundle.open(path).manifest
    steps = 4 if "4" in manifest.schedules[manifest.defaults.scheduler] else 3
    pair = generate_with_both(
        library,
        path,
        prompt="a red circle",
        seed=11,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
    )
    check_parity(pair)


def test_two_text_encoders_give_the_same_video(library: Library, sdxl_bundle: Path) -> None:
    arguments: dict[str, Any] = {"prompt": "a red circle", "seed": 2, "num_inference_steps": 2}
    check_parity(generate_with_both(library, sdxl_bundle, **arguments))
    # Without a negative prompt the encoding is left out; an empty one is encoded.
    check_parity(generate_with_both(library, sdxl_bundle, negative_prompt="", **arguments))


def test_an_image_gives_the_same_video(library: Library, svd_bundle: Path) -> None:
    arguments: dict[str, Any] = {"image": make_image(70, 50), "seed": 3, "num_inference_steps": 4}
    check_parity(generate_with_both(library, svd_bundle, **arguments), has_picture=True)
    conditions = {"motion_bucket_id": 30.0, "noise_aug_strength": 0.3}
    check_parity(
        generate_with_both(library, svd_bundle, conditions=conditions, **arguments),
        has_picture=True,
    )


@pytest.mark.parametrize("scheduler", ["ddim", "euler-ancestral"])
def test_an_image_and_a_text_give_the_same_video(
    library: Library, i2vgen_bundle: Path, scheduler: str
) -> None:
    pair = generate_with_both(
        library,
        i2vgen_bundle,
        prompt="a red circle",
        image=make_image(90, 130),
        seed=4,
        height=32,
        width=48,
        num_frames=4,
        num_inference_steps=3,
        scheduler=scheduler,
    )
    check_parity(pair, has_picture=True)


def test_float16_gives_the_same_video(library: Library, float16_bundle: Path) -> None:
    arguments: dict[str, Any] = {"prompt": "a red circle", "seed": 5, "num_inference_steps": 4}
    check_parity(generate_with_both(library, float16_bundle, **arguments))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_int8_gives_the_same_video(
    library: Library, int8_bundle: Path, guidance_scale: float
) -> None:
    embeds = SMALL_EMBEDDING[[0, 3, 4, 6, 1, 1, 1, 1]][None]
    arguments: dict[str, Any] = {
        "prompt_embeds": embeds,
        "seed": 6,
        "guidance_scale": guidance_scale,
    }
    if guidance_scale > 1:
        arguments["negative_prompt_embeds"] = embeds[:, ::-1].copy() * 0.5
    pair = generate_with_both(library, int8_bundle, options={"variant": "int8"}, **arguments)
    check_parity(pair)


def test_each_component_runs_the_variant_that_python_runs(
    library: Library, int8_bundle: Path
) -> None:
    for variant in (None, "float32", "int8"):
        with (
            NativePipeline.open(int8_bundle, library=library, variant=variant) as native,
            VideoPipeline.open(int8_bundle, variant=variant) as python,
        ):
            found = {name: native.find_variant(name) for name in native.list_names("components")}
            assert found == python.variants


def test_the_shipped_bundle_in_int8_gives_the_same_video(
    library: Library, shipped_int8_bundle: Path
) -> None:
    # Where the noise differed in a last bit, these frames differed by tens of levels.
    arguments = SMALL | {"num_inference_steps": 4, "guidance_scale": 4.0}
    options = {"variant": "int8"}
    check_parity(generate_with_both(library, shipped_int8_bundle, options=options, **arguments))


def test_embeddings_stand_in_for_prompts(library: Library, text_bundle: Path) -> None:
    with NativePipeline.open(text_bundle, library=library) as pipeline:
        ids = pipeline.tokenize("a red circle")
    padded = np.array(ids + [PAD_TOKEN_ID] * (16 - len(ids)))
    embeds = EMBEDDING[padded][None]
    empty = EMBEDDING[[PAD_TOKEN_ID - 1] + [PAD_TOKEN_ID] * 15][None]
    pair = generate_with_both(
        library, text_bundle, prompt_embeds=embeds, negative_prompt_embeds=empty, seed=1
    )
    check_parity(pair)
    with NativePipeline.open(text_bundle, library=library) as pipeline:
        by_text = pipeline.generate("a red circle", seed=1)
    np.testing.assert_array_equal(by_text.frames, pair.native.frames)


@pytest.mark.parametrize("padded", [False, True])
def test_token_ids_stand_in_for_prompts(library: Library, text_bundle: Path, padded: bool) -> None:
    with NativePipeline.open(text_bundle, library=library) as pipeline:

        def make_ids(text: str) -> np.ndarray[Any, np.dtype[np.int64]]:
            ids = pipeline.tokenize(text)
            room = 16 - len(ids) if padded else 0
            return np.array([ids + [PAD_TOKEN_ID] * room], dtype=np.int64)

        by_text = pipeline.generate("a red circle", negative_prompt="a star", seed=1)
        by_ids = pipeline.generate(
            prompt_ids={"input_ids": make_ids("a red circle")},
            negative_prompt_ids=make_ids("a star"),
            seed=1,
        )
    np.testing.assert_array_equal(by_text.frames, by_ids.frames)


def test_latents_stand_in_for_the_seeds_noise(library: Library, text_bundle: Path) -> None:
    latents = NoiseGenerator(99).normal((1, 4, 3, 4, 8))
    kept = latents.copy()
    pair = generate_with_both(
        library,
        text_bundle,
        prompt="a red circle",
        latents=latents,
        seed=3,
        scheduler="euler-ancestral",
    )
    check_parity(pair)
    assert pair.native.frames.shape == (3, 32, 64, 3)
    np.testing.assert_array_equal(latents, kept)


def test_conditions_reach_the_denoiser(library: Library, text_bundle: Path) -> None:
    pairs = [
        generate_with_both(library, text_bundle, prompt="a", seed=1, conditions={"strength": value})
        for value in (0.0, 9.5)
    ]
    for pair in pairs:
        check_parity(pair)
    assert (pairs[0].native.frames != pairs[1].native.frames).any()


def test_the_image_bundle_gives_the_same_video(library: Library, image_bundle: Path) -> None:
    for scheduler in ("ddim", "euler-ancestral"):
        pair = generate_with_both(
            library,
            image_bundle,
            image=make_image(),
            seed=1,
            scheduler=scheduler,
            num_inference_steps=2,
            frame_rate=25,
        )
        check_parity(pair, has_picture=True)


def test_a_seed_that_is_drawn_is_said_and_gives_the_video_again(
    library: Library, text_bundle: Path
) -> None:
    with NativePipeline.open(text_bundle, library=library) as pipeline:
        first, second = (pipeline.generate("a") for _ in range(2))
        assert first.seed != second.seed
        again = pipeline.generate("a", seed=first.seed)
    np.testing.assert_array_equal(first.frames, again.frames)


def test_the_greatest_seed_gives_the_noise_of_its_low_half(
    library: Library, text_bundle: Path
) -> None:
    pair = generate_with_both(
        library,
        text_bundle,
        prompt="a",
        seed=2**64 - 1,
    )
    assert (pair.native.seed, pair.python.seed) == (2**32 - 1, 2**64 - 1)
    assert pair.latents_difference <= LATENTS_TOLERANCE
