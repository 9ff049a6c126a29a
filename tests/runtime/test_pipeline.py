import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mutoscope.runtime.errors import (
    BundleError,
    CancelledError,
    EngineError,
    ExecutionProviderError,
    ParameterError,
)
from mutoscope.runtime.noise import NoiseGenerator
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.sampler import StepInfo
from tests.runtime.hand_made_bundle import (
    COLOURS,
    EMBEDDING,
    MAX_LENGTH,
    SAMPLE_WEIGHT,
    SCALE,
    TEXT_WEIGHT,
    TIMESTEP_WEIGHT,
    make_table,
    make_unet,
    save_graph,
    write_manifest,
)

F32 = NDArray[np.float32]
SHAPE = (1, 4, 6, 4, 6)
RED_IDS = [0, 3, 4, 6, 1, 1, 1, 1]  # "a red circle"
EMPTY_IDS = [0] + [1] * (MAX_LENGTH - 1)


def expect_frames(
    seed: int,
    num_inference_steps: int,
    guidance_scale: float,
    *,
    noise_scale: float = 0.0,
    latents: F32 | None = None,
    negative_ids: list[int] = EMPTY_IDS,
) -> NDArray[np.uint8]:
    """The hand-made bundle, written again in numpy: frames uint8 [F, H, W, 3]."""
    generator = NoiseGenerator(seed)
    x = 2.0 * (generator.normal(SHAPE) if latents is None else latents)
    for row in make_table("", num_inference_steps, noise_scale).rows:
        texts = [EMBEDDING[RED_IDS].mean(), EMBEDDING[negative_ids].mean()]
        cond, uncond = (
            SAMPLE_WEIGHT * 0.5 * x + TEXT_WEIGHT * text + TIMESTEP_WEIGHT * row.timestep
            for text in texts
        )
        output = uncond + guidance_scale * (cond - uncond)
        x = 0.9 * x - 0.4 * output
        if noise_scale:
            x = x + noise_scale * generator.normal(SHAPE)
    pixels = np.clip(x[0].transpose(1, 2, 3, 0) @ COLOURS, -1, 1) * 127.5 + 127.5
    return np.round(pixels).astype(np.uint8).repeat(SCALE, axis=1).repeat(SCALE, axis=2)


def check_close(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    # Float32 in another order can move a value across the middle between two levels.
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("num_inference_steps", [1, 4])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_generate_is_noise_through_schedule_denoiser_and_decoder(
    pipeline: VideoPipeline, num_inference_steps: int, guidance_scale: float
) -> None:
    video = pipeline.generate(
        "a red circle",
        seed=7,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
    )
    check_close(video.frames, expect_frames(7, num_inference_steps, guidance_scale))
    assert video.frame_rate == 8.0
    assert (video.seed, video.prompt) == (7, "a red circle")


def test_step_noise_continues_the_stream_of_the_start_noise(pipeline: VideoPipeline) -> None:
    video = pipeline.generate(
        "a red circle", seed=3, num_inference_steps=3, scheduler="euler-ancestral"
    )
    check_close(video.frames, expect_frames(3, 3, 3.0, noise_scale=0.1))


def test_with_latents_step_noise_is_the_first_of_its_stream(pipeline: VideoPipeline) -> None:
    latents = NoiseGenerator(99).normal(SHAPE)
    kept = latents.copy()
    video = pipeline.generate(
        "a red circle", seed=3, latents=latents, num_inference_steps=2, scheduler="euler-ancestral"
    )
    check_close(video.frames, expect_frames(3, 2, 3.0, noise_scale=0.1, latents=latents))
    np.testing.assert_array_equal(latents, kept)


def test_latents_stand_in_for_the_seeds_noise(pipeline: VideoPipeline) -> None:
    by_seed = pipeline.generate("a red circle", seed=5)
    by_latents = pipeline.generate("a red circle", latents=NoiseGenerator(5).normal(SHAPE))
    np.testing.assert_array_equal(by_seed.frames, by_latents.frames)


def test_a_negative_prompt_takes_the_place_of_the_empty_one(pipeline: VideoPipeline) -> None:
    video = pipeline.generate("a red circle", seed=1, negative_prompt="blue square")
    ids = [0, 5, 7, 1, 1, 1, 1, 1]
    check_close(video.frames, expect_frames(1, 4, 3.0, negative_ids=ids))
    assert video.negative_prompt == "blue square"


def test_embeddings_stand_in_for_prompts(pipeline: VideoPipeline) -> None:
    video = pipeline.generate(
        prompt_embeds=EMBEDDING[RED_IDS][None],
        negative_prompt_embeds=EMBEDDING[EMPTY_IDS][None],
        seed=7,
    )
    check_close(video.frames, expect_frames(7, 4, 3.0))
    assert video.prompt is None
    assert "text_encoder" not in pipeline._components.loaded


def test_the_same_seed_gives_the_same_video_and_another_one_another(
    pipeline: VideoPipeline,
) -> None:
    first, again, other = (pipeline.generate("a red circle", seed=s).frames for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_without_a_seed_the_result_says_which_was_drawn(pipeline: VideoPipeline) -> None:
    video = pipeline.generate("a red circle")
    assert video.seed is not None
    again = pipeline.generate("a red circle", seed=video.seed)
    np.testing.assert_array_equal(video.frames, again.frames)


@pytest.mark.parametrize("prompt", ["", "réd 🟠 круг", "a\nred\tcircle"])
def test_any_prompt_that_fits_is_taken(pipeline: VideoPipeline, prompt: str) -> None:
    assert pipeline.generate(prompt, seed=1).frames.shape == (6, 32, 48, 3)


def test_one_frame_and_other_sizes_work(pipeline: VideoPipeline) -> None:
    video = pipeline.generate("a red circle", seed=1, num_frames=1, height=64, width=16)
    assert video.frames.shape == (1, 64, 16, 3)


def test_a_frame_rate_changes_the_video_and_not_the_frames(pipeline: VideoPipeline) -> None:
    slow, fast = (pipeline.generate("a red circle", seed=1, frame_rate=r) for r in (4, 24))
    assert (slow.frame_rate, fast.frame_rate) == (4, 24)
    np.testing.assert_array_equal(slow.frames, fast.frames)


def test_on_step_sees_every_step(pipeline: VideoPipeline) -> None:
    seen: list[StepInfo] = []
    pipeline.generate("a red circle", seed=1, num_inference_steps=3, on_step=seen.append)
    assert [(info.step_index, info.num_steps) for info in seen] == [(0, 3), (1, 3), (2, 3)]
    assert seen[0].latents.shape == SHAPE


def test_on_step_cancels(pipeline: VideoPipeline) -> None:
    with pytest.raises(CancelledError, match="cancelled after step 2 of 4"):
        pipeline.generate("a red circle", on_step=lambda info: info.step_index < 1)
    assert pipeline.generate("a red circle", seed=1).frames.shape == (6, 32, 48, 3)


def test_timings_cover_the_whole(pipeline: VideoPipeline) -> None:
    timings = pipeline.generate("a red circle", seed=1).timings
    parts = [
        timings.seconds_load,
        timings.seconds_text_encoder,
        timings.seconds_denoiser,
        timings.seconds_sampler,
        timings.seconds_vae_decoder,
    ]
    assert min(parts) > 0
    assert sum(parts) < timings.seconds_total


def test_components_are_loaded_when_needed_and_can_be_freed(bundle_path: Path) -> None:
    with VideoPipeline.open(bundle_path) as pipeline:
        assert pipeline._components.loaded == ()
        pipeline.generate("a red circle", seed=1)
        assert pipeline._components.loaded == ("text_encoder", "unet", "vae_decoder")
        pipeline.unload("unet")
        assert pipeline._components.loaded == ("text_encoder", "vae_decoder")
        with pytest.raises(ParameterError, match="has no motor; it has text_encoder"):
            pipeline.unload("motor")
        pipeline.generate("a red circle", seed=1)
    assert pipeline._components.loaded == ()


def test_low_memory_gives_the_same_frames_and_keeps_nothing(
    bundle_path: Path, pipeline: VideoPipeline
) -> None:
    with VideoPipeline.open(bundle_path, memory="low", num_threads=1) as small:
        video = small.generate("a red circle", seed=1)
        assert small._components.loaded == ()
    np.testing.assert_array_equal(video.frames, pipeline.generate("a red circle", seed=1).frames)


EMBEDS = EMBEDDING[RED_IDS][None]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": None}, "prompt is missing: give prompt or prompt_embeds"),
        ({"prompt_embeds": EMBEDS}, "prompt and prompt_embeds are both given: leave one out"),
        ({"prompt": 3}, "prompt is a int; it must be a string"),
        ({"prompt": ["a"]}, "prompt is a list; it must be a string"),
        (
            {"prompt": None, "prompt_embeds": EMBEDS[0]},
            r"prompt_embeds is float32\[8, 6\]; it must be float32 \[1, S, 6\]",
        ),
        (
            {"prompt": None, "prompt_embeds": EMBEDS[..., :3]},
            r"prompt_embeds is float32\[1, 8, 3\]; it must be float32 \[1, S, 6\]",
        ),
        (
            {"prompt": None, "prompt_embeds": EMBEDS.astype(np.float64)},
            r"prompt_embeds is float64\[1, 8, 6\]; it must be float32",
        ),
        (
            {"prompt": None, "prompt_embeds": EMBEDS * np.nan},
            "prompt_embeds has values that are not finite",
        ),
        (
            {"negative_prompt": "a", "negative_prompt_embeds": EMBEDS},
            "negative_prompt and negative_prompt_embeds are both given",
        ),
        (
            {"negative_prompt": "a", "guidance_scale": 1},
            "negative_prompt has no effect at guidance_scale 1: leave it out, or use a guidance_sc",
        ),
        ({"latents": [1, 2]}, r"latents is a list; it must be a numpy float32 \[1, C, F, H, W\]"),
        ({"latents": np.zeros(SHAPE)}, r"latents is float64\[1, 4, 6, 4, 6\]; it must be float32"),
        ({"prompt": "a " * 9}, "prompt has 11 tokens"),
        ({"negative_prompt": "a " * 9}, "negative_prompt has 11 tokens"),
        ({"height": 40}, "height is 40; this bundle needs 16k: use 32 or 48"),
        ({"num_inference_steps": 60}, "num_inference_steps is 60; .*: use 8"),
        ({"scheduler": "unipc"}, "scheduler 'unipc' is not in this bundle"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_work(
    pipeline: VideoPipeline, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        pipeline.generate(**({"prompt": "a red circle"} | values))
    assert pipeline._components.loaded == ()


def test_open_refuses_an_execution_provider_or_threads_that_cannot_be(bundle_path: Path) -> None:
    with pytest.raises(ExecutionProviderError, match="'gpu' is unknown"):
        VideoPipeline.open(bundle_path, execution_provider="gpu")
    with pytest.raises(EngineError, match="num_threads is 0; it must be at least 1"):
        VideoPipeline.open(bundle_path, num_threads=0)


def test_a_damaged_graph_is_found_before_it_is_run(own_bundle: Path) -> None:
    path = own_bundle / "unet" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    message = r"unet/model.onnx does not match its sha256"
    with VideoPipeline.open(own_bundle) as pipeline, pytest.raises(BundleError, match=message):
        pipeline.generate("a red circle")


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(own_bundle: Path) -> None:
    manifest = json.loads((own_bundle / "manifest.json").read_text())
    manifest["components"]["unet"]["inputs"]["timestep"]["dtype"] = "float32"
    write_manifest(own_bundle, manifest)
    message = r"lists input timestep as float32\[\]; the graph has int64\[\]: export again"
    with VideoPipeline.open(own_bundle) as pipeline, pytest.raises(EngineError, match=message):
        pipeline.generate("a red circle")


def test_inputs_may_have_any_name(own_bundle: Path, pipeline: VideoPipeline) -> None:
    graph = make_unet()
    for tensor in graph.graph.input:
        tensor.name = f"my_{tensor.name}"
    for node in graph.graph.node:
        names = ("sample", "timestep", "encoder_hidden_states")
        node.input[:] = [f"my_{name}" if name in names else name for name in node.input]
    save_graph(graph, own_bundle / "unet" / "model.onnx")
    manifest = json.loads((own_bundle / "manifest.json").read_text())
    unet = manifest["components"]["unet"]
    unet["inputs"] = {f"my_{name}": record for name, record in unet["inputs"].items()}
    write_manifest(own_bundle, manifest)
    with VideoPipeline.open(own_bundle) as renamed:
        frames = renamed.generate("a red circle", seed=1).frames
    np.testing.assert_array_equal(frames, pipeline.generate("a red circle", seed=1).frames)


def test_a_bundle_without_a_text_encoder_takes_embeddings(own_bundle: Path) -> None:
    manifest = json.loads((own_bundle / "manifest.json").read_text())
    del manifest["components"]["text_encoder"]
    write_manifest(own_bundle, manifest)
    with VideoPipeline.open(own_bundle) as pipeline:
        pipeline.generate(prompt_embeds=EMBEDS, guidance_scale=1)
        with pytest.raises(ParameterError, match="has no text encoder: give prompt_embeds"):
            pipeline.generate("a red circle")


def test_decoding_can_be_watched_and_cancelled(bundle_path: Path) -> None:
    # 6 frames of 32 x 48 at 200 bytes a pixel do not fit into what is left of the limit at once.
    with VideoPipeline.open(bundle_path, memory_limit_bytes=101 * 2**20) as pipeline:
        seen: list[tuple[int, int]] = []
        pipeline.generate(
            "a red circle",
            num_inference_steps=1,
            on_decode=lambda progress: seen.append((progress.num_runs_done, progress.num_runs)),
        )
        assert len(seen) > 1
        assert seen == [(number + 1, len(seen)) for number in range(len(seen))]
        with pytest.raises(CancelledError):
            pipeline.generate("a red circle", num_inference_steps=1, on_decode=lambda _: False)
