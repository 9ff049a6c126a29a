"""AnimateDiff SDXL: what it exports generates what diffusers.AnimateDiffSDXLPipeline generates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mutoscope.export.checkpoint import open_checkpoint
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families import open_family
from mutoscope.export.library_noise import quiet_libraries
from mutoscope.export.parity import run_module
from mutoscope.runtime import ParameterError, VideoPipeline

# diffusers turns torch tensors into arrays in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

PROMPT = "a red circle moves left"
SEED = 11
# Float32 in another order of additions moves a few values across the middle between two levels.
MAX_DIFFERENCE = 2
TOLERANCE = 2e-5
SIZES = ({"height": 16, "width": 24, "num_frames": 3}, {"height": 24, "width": 16, "num_frames": 6})


@pytest.fixture(scope="module")
def pipeline(sdxl_checkpoint: Path) -> Any:
    from diffusers import AnimateDiffSDXLPipeline

    with quiet_libraries():
        found = AnimateDiffSDXLPipeline.from_pretrained(sdxl_checkpoint)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def ours(sdxl_bundle: Path) -> Iterator[VideoPipeline]:
    with VideoPipeline.open(sdxl_bundle, num_threads=1) as opened:
        yield opened


def run_diffusers(pipeline: Any, **options: Any) -> NDArray[np.int64]:
    generator = torch.Generator("cpu").manual_seed(SEED)
    with quiet_libraries():
        output = pipeline(PROMPT, generator=generator, output_type="np", **options)
    return np.round(output.frames[0] * 255).astype(np.int64)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_frames_are_those_of_diffusers(
    pipeline: Any, ours: VideoPipeline, size: dict[str, int], guidance_scale: float
) -> None:
    options = {"num_inference_steps": 4, "guidance_scale": guidance_scale, **size}
    expected = run_diffusers(pipeline, **options)
    found = ours.generate(PROMPT, seed=SEED, **options).frames.astype(np.int64)
    assert float(np.std(expected)) > 10
    assert int(np.abs(found - expected).max()) <= MAX_DIFFERENCE


def test_a_negative_prompt_is_encoded_and_none_is_zeros(pipeline: Any, ours: VideoPipeline) -> None:
    options = {"num_inference_steps": 2, "guidance_scale": 6.0, **SIZES[0]}
    videos = []
    for negative in (None, "", "blue star"):
        expected = run_diffusers(pipeline, negative_prompt=negative, **options)
        video = ours.generate(PROMPT, negative_prompt=negative, seed=SEED, **options)
        found = video.frames.astype(np.int64)
        assert int(np.abs(found - expected).max()) <= MAX_DIFFERENCE
        videos.append(found)
    assert not np.array_equal(videos[0], videos[1])
    assert not np.array_equal(videos[1], videos[2])


def test_a_video_of_one_frame_is_an_image(pipeline: Any, ours: VideoPipeline) -> None:
    options = {"num_inference_steps": 2, "height": 16, "width": 16, "num_frames": 1}
    expected = run_diffusers(pipeline, **options)
    found = ours.generate(PROMPT, seed=SEED, **options).frames.astype(np.int64)
    assert int(np.abs(found - expected).max()) <= MAX_DIFFERENCE


def test_the_denoiser_is_told_the_size_of_the_clip(sdxl_checkpoint: Path) -> None:
    component = open_family(open_checkpoint(sdxl_checkpoint)).component_makers["unet"]()
    inputs = component.make_inputs(component.parity_sizes[-1], seed=1)
    before = run_module(component, inputs)["out_sample"]
    inputs["height"] = inputs["height"] + np.float32(512)
    assert float(np.abs(run_module(component, inputs)["out_sample"] - before).max()) > 1e-3


def test_embeddings_are_given_as_a_mapping(ours: VideoPipeline) -> None:
    options: dict[str, Any] = {"num_inference_steps": 1, "seed": 1, "guidance_scale": 1, **SIZES[0]}
    embeds = np.zeros((1, 16, 40), dtype=np.float32)
    both = {"prompt_embeds": embeds, "pooled_prompt_embeds": np.zeros((1, 20), np.float32)}
    assert ours.generate(prompt_embeds=both, **options).frames.shape == (3, 16, 24, 3)
    with pytest.raises(ParameterError, match="takes prompt_embeds, pooled_prompt_embeds: give a"):
        ours.generate(prompt_embeds=embeds, **options)


def test_the_manifest_has_both_tokenizers(sdxl_bundle: Path) -> None:
    manifest = json.loads((sdxl_bundle / "manifest.json").read_text())
    assert {name: record["file"] for name, record in manifest["tokenizers"].items()} == {
        "input_ids": "tokenizer/tokenizer.json",
        "input_ids_2": "tokenizer_2/tokenizer.json",
    }
    pads = [record["pad_token_id"] for record in manifest["tokenizers"].values()]
    assert pads[0] != pads[1]
    assert manifest["force_zeros_for_empty_prompt"] is True


def test_a_unet_that_is_not_told_the_size_is_refused(
    sdxl_checkpoint: Path, edit_checkpoint: Callable[..., Path]
) -> None:
    edited = edit_checkpoint(sdxl_checkpoint, "unet/config.json", {"addition_embed_type": None})
    with pytest.raises(CheckpointError, match=r"is not told the size \(not an SDXL model\?\)"):
        open_family(open_checkpoint(edited))
