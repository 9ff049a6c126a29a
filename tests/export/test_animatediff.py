"""The wrapped modules and the graphs compute what diffusers.AnimateDiffPipeline computes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from mutoscope.export.checkpoint import open_checkpoint
from mutoscope.export.components.motion_unet import make_unet, open_motion_unet
from mutoscope.export.components.text import make_text_encoder
from mutoscope.export.components.vae import make_vae_decoder
from mutoscope.export.families.contract import Arrays, ComponentExport
from mutoscope.export.library_noise import quiet_libraries
from mutoscope.export.parity import run_module as run_module_outputs
from mutoscope.runtime.manifest import Manifest

# The same sums in another order, on values of about 1.
TOLERANCE = 2e-5
TIMESTEPS = (0, 1, 7, 481, 999)
SIZES = ((1, 1, 1, 1, 1), (3, 2, 4, 1, 16), (1, 12, 1, 5, 3))
PROMPTS = ["a red circle moves left on a gray background", "", "Blue STAR, 3 times!"]


@pytest.fixture(scope="module", params=["tiny", "other"])
def case(request: pytest.FixtureRequest) -> tuple[Any, Path, Path]:
    """The diffusers pipeline, its checkpoint and its bundle."""
    from diffusers import AnimateDiffPipeline

    checkpoint: Path = request.getfixturevalue(f"{request.param}_checkpoint")
    with quiet_libraries():
        pipeline = AnimateDiffPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, checkpoint, request.getfixturevalue(f"{request.param}_bundle")


@functools.cache
def open_graph(bundle: Path, component: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(bundle / component / "model.onnx"), options)


def run_module(component: ComponentExport, inputs: Arrays) -> NDArray[Any]:
    (output,) = run_module_outputs(component, inputs).values()
    return output


def run_graph(bundle: Path, component: str, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    output, *_ = open_graph(bundle, component).run(None, inputs)
    return np.asarray(output)


def test_prompt_embeds_are_those_of_encode_prompt(case: tuple[Any, Path, Path]) -> None:
    pipeline, checkpoint, bundle = case
    with torch.no_grad():
        expected, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    tokenizer = Manifest.load(bundle / "manifest.json").tokenizers["input_ids"]
    assert tokenizer.max_length == pipeline.tokenizer.model_max_length
    assert tokenizer.pad_token_id == pipeline.tokenizer.pad_token_id
    ids = pipeline.tokenizer(PROMPTS, padding="max_length", return_tensors="np").input_ids
    inputs = {"input_ids": ids.astype(np.int64)}
    component = make_text_encoder(open_checkpoint(checkpoint))
    for result in (run_module(component, inputs), run_graph(bundle, "text_encoder", inputs)):
        np.testing.assert_allclose(result, expected.numpy(), atol=TOLERANCE)


def test_model_output_is_that_of_the_unet_with_text_for_each_frame(
    case: tuple[Any, Path, Path],
) -> None:
    pipeline, checkpoint, bundle = case
    component = make_unet(open_motion_unet(open_checkpoint(checkpoint)))
    for timestep in TIMESTEPS:
        inputs = component.make_inputs(component.parity_sizes[-1], seed=timestep)
        inputs["timestep"][:] = timestep
        sample = torch.from_numpy(inputs["sample"])
        text = torch.from_numpy(inputs["encoder_hidden_states"])
        with torch.no_grad():
            expected = pipeline.unet(
                sample,
                torch.tensor(timestep),  # an integer without axes, as scheduler.timesteps gives
                encoder_hidden_states=text.repeat_interleave(sample.shape[2], dim=0),
            ).sample.numpy()
        assert float(np.std(expected)) > 0.1  # a dead model would agree with anything
        for result in (run_module(component, inputs), run_graph(bundle, "unet", inputs)):
            np.testing.assert_allclose(result, expected, atol=TOLERANCE)


def test_frames_are_those_of_the_pipeline(case: tuple[Any, Path, Path]) -> None:
    pipeline, checkpoint, bundle = case
    component = make_vae_decoder(checkpoint / "vae")
    inputs = component.make_inputs(component.parity_sizes[-1], seed=3)
    inputs["latents"] *= np.float32(0.3)
    with torch.no_grad():
        video = pipeline.decode_latents(torch.from_numpy(inputs["latents"]))
    floats = pipeline.video_processor.postprocess_video(video, output_type="np")
    expected = (floats * 255).round().astype(np.uint8)
    assert 20 < float(np.std(expected)) < 120  # neither one colour nor all clipped
    for result in (run_module(component, inputs), run_graph(bundle, "vae_decoder", inputs)):
        assert result.dtype == np.uint8
        assert int(np.abs(result.astype(int) - expected.astype(int)).max()) <= 1


def test_graphs_take_any_size_within_the_limits(case: tuple[Any, Path, Path]) -> None:
    _, checkpoint, bundle = case
    opened = open_checkpoint(checkpoint)
    for component in (make_unet(open_motion_unet(opened)), make_vae_decoder(checkpoint / "vae")):
        multiple = component.multiples.get("latent_height", 1)
        for batch, num_frames, height, width, sequence in SIZES:
            sizes = {
                "batch": batch,
                "num_frames": num_frames,
                "latent_height": height * multiple,
                "latent_width": width * multiple,
                "sequence": sequence,
            }
            inputs = component.make_inputs(sizes, seed=5)
            expected = run_module(component, inputs).astype(np.float32)
            result = run_graph(bundle, component.name, inputs).astype(np.float32)
            tolerance = 1 if component.name == "vae_decoder" else TOLERANCE
            np.testing.assert_allclose(result, expected, atol=tolerance)
