"""Tiny decoders as components: against diffusers, as ONNX graphs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import AnimateDiffPipeline, AutoencoderTiny
from diffusers.video_processor import VideoProcessor
from numpy.typing import NDArray
from onnx import TensorProto

from mutoscope.export.components.tiny_vae import make_tiny_vae_decoder
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import ComponentExport
from mutoscope.export.float16 import convert_to_float16, refuse_float16_overflow
from mutoscope.export.graph import make_graph, save_graph
from mutoscope.export.parity import check_parity, make_references, measure_parity
from mutoscope.runtime.manifest import LatentsRecord
from tests.checkpoints import randomise

# Both compute in float32, in another order: a value in the middle between two levels may go to
# either, and no other may.
MAXIMUM_FRAME_ERROR = 1
MAXIMUM_SHARE_OF_ERRORS = 1e-3
# [B, C, F, h, w] beside the sizes that are traced and those of the parity gate.
LATENTS_SHAPES = ((1, 4, 1, 3, 3), (2, 4, 5, 4, 7), (1, 4, 16, 8, 8))

TINY: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (2, 1),
}
CONFIGS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": (TINY, 2),
    "scaled": ({**TINY, "scaling_factor": 0.5}, 2),
    "bilinear": ({**TINY, "upsample_fn": "bilinear"}, 2),
    "four-times": ({**TINY, "upsampling_scaling_factor": 4}, 4),
    "as-taesd": (
        {
            "encoder_block_out_channels": (8,) * 4,
            "decoder_block_out_channels": (8,) * 4,
            "num_encoder_blocks": (1, 1, 1, 1),
            "num_decoder_blocks": (3, 2, 1, 1),
            "act_fn": "gelu",
        },
        8,
    ),
}


def make_tiny_vae(config: dict[str, Any]) -> Any:
    torch.manual_seed(5)
    vae = AutoencoderTiny(**config)
    randomise(vae)
    # So that its frames use most levels, and few are clipped.
    with torch.no_grad():
        last = vae.decoder.layers[-1]
        last.weight.mul_(0.5 / vae.decode(2 * torch.randn(1, 4, 16, 16)).sample.std())
        last.bias.fill_(0.5)
    return vae


def save_tiny_vae(name: str, folder: Path) -> tuple[Any, Path, LatentsRecord]:
    """A tiny decoder in diffusers, its folder, and the latents that it fits."""
    config, factor = CONFIGS[name]
    vae = make_tiny_vae(config)
    vae.save_pretrained(folder / name)
    return vae, folder / name, LatentsRecord(4, factor)


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return save_tiny_vae(request.param, tmp_path_factory.mktemp("tiny-vae"))


@pytest.fixture(scope="module")
def component(saved: Any) -> ComponentExport:
    _, folder, latents = saved
    return make_tiny_vae_decoder(folder, name="vae_decoder", latents=latents)


def decode_with_diffusers(vae: Any, latents: torch.Tensor) -> NDArray[np.uint8]:
    """The frames of an AnimateDiffPipeline whose `vae` is this one."""
    with torch.no_grad():
        video = AnimateDiffPipeline.decode_latents(SimpleNamespace(vae=vae), latents)
    images = VideoProcessor().postprocess_video(video, output_type="np")
    frames: NDArray[np.uint8] = (images * 255).round().astype(np.uint8)  # as numpy_to_pil
    return frames


def make_latents(shape: tuple[int, ...]) -> NDArray[np.float32]:
    # Wider than normal, so that the soft clamp at 3 has a part in it.
    return 2 * np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def check_frames(found: NDArray[Any], expected: NDArray[np.uint8]) -> None:
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= MAXIMUM_FRAME_ERROR
    assert (difference > 0).mean() <= MAXIMUM_SHARE_OF_ERRORS
    assert expected.std() > 10  # or there would be nothing to compare


@pytest.mark.parametrize("shape", LATENTS_SHAPES)
def test_the_module_makes_the_frames_of_diffusers(
    saved: Any, component: ComponentExport, shape: tuple[int, ...]
) -> None:
    latents = torch.from_numpy(make_latents(shape))
    expected = decode_with_diffusers(saved[0], latents)
    check_frames(component.module(latents).numpy(), expected)


@pytest.mark.parametrize("name", ["bilinear", "as-taesd"])
def test_the_graph_makes_the_frames_of_diffusers_at_every_size(name: str, tmp_path: Path) -> None:
    vae, folder, fitting = save_tiny_vae(name, tmp_path)
    component = make_tiny_vae_decoder(folder, name="vae_decoder", latents=fitting)
    save_graph(make_graph(component), tmp_path / "model.onnx")
    check_parity(
        component,
        measure_parity(component, tmp_path / "model.onnx", make_references(component)),
    )
    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    for shape in LATENTS_SHAPES:
        latents = make_latents(shape)
        (found,) = session.run(["frames"], {"latents": latents})
        check_frames(found, decode_with_diffusers(vae, torch.from_numpy(latents)))


def test_a_float16_graph_is_within_the_limits_of_its_type(tmp_path: Path) -> None:
    _, folder, latents = save_tiny_vae("as-taesd", tmp_path)
    component = make_tiny_vae_decoder(folder, name="preview_decoder", latents=latents)
    with refuse_float16_overflow(component):
        references = make_references(component)
    convert_to_float16(component.module)
    path = tmp_path / "model.onnx"
    save_graph(make_graph(component, "float16"), path)
    check_parity(component, measure_parity(component, path, references), "float16")
    model = onnx.load(str(path))
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [types[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]
    assert set(weights) == {TensorProto.FLOAT16}


def test_the_component_has_the_name_that_was_asked_for(saved: Any) -> None:
    _, folder, latents = saved
    found = make_tiny_vae_decoder(folder, name="preview_decoder", latents=latents)
    assert found.name == "preview_decoder"
    assert not any("encoder" in name for name in dict(found.module.named_parameters()))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    make_tiny_vae(TINY).save_pretrained(tmp_path / "taesd")
    return tmp_path / "taesd"


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (LatentsRecord(8, 2), "taesd decodes latents of 4 channels and those .* have 8: use a"),
        (LatentsRecord(4, 8), "taesd enlarges latents 2 times and the checkpoint's VAE 8 times"),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused(
    plain: Path, latents: LatentsRecord, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        make_tiny_vae_decoder(plain, name="vae_decoder", latents=latents)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("_class_name", "AutoencoderKL", "taesd is a AutoencoderKL, not an AutoencoderTiny: save"),
        ("out_channels", 1, r"taesd decodes to 1 channels; frames have 3 \(RGB\)"),
    ],
)
def test_a_folder_of_something_else_is_refused(
    plain: Path, setting: str, value: Any, message: str
) -> None:
    path = plain / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), setting: value}))
    with pytest.raises(CheckpointError, match=message):
        make_tiny_vae_decoder(plain, name="vae_decoder", latents=LatentsRecord(4, 2))


def test_settings_that_the_folder_leaves_out_are_those_of_diffusers(plain: Path) -> None:
    path = plain / "config.json"
    config = json.loads(path.read_text())
    del config["latent_channels"], config["upsampling_scaling_factor"]
    path.write_text(json.dumps(config))
    assert make_tiny_vae_decoder(plain, name="vae_decoder", latents=LatentsRecord(4, 2))


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        make_tiny_vae_decoder(tmp_path, name="vae_decoder", latents=LatentsRecord(4, 2))
