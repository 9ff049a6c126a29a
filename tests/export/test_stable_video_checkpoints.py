"""How Stable Video Diffusion checkpoints are read, what is refused, and graphs in float16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mutoscope.export import CheckpointError
from mutoscope.export.checkpoint import open_checkpoint
from mutoscope.export.families import open_family
from mutoscope.export.families.contract import ComponentExport
from mutoscope.export.float16 import convert_to_float16, refuse_float16_overflow
from mutoscope.export.graph import make_graph, save_graph
from mutoscope.export.parity import (
    check_parity,
    make_references,
    measure_parity,
    run_module,
)
from mutoscope.export.presets import find_preset
from tests.export.component_parity import TOLERANCE
from tests.svd_checkpoints import (
    DEEPER_STABLE_VIDEO,
    make_stable_video,
    open_stable_video,
    run_reference_unet,
    save_stable_video,
)

# Floats of about 1 after all layers in float16, norms and softmax in float32; 2e-3 was seen.
FLOAT16_TOLERANCE = 1e-2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_stable_video(tmp_path_factory.mktemp("stable-video") / "tiny")


def open_component(checkpoint: Path, name: str) -> ComponentExport:
    return open_family(open_checkpoint(checkpoint)).component_makers[name]()


def test_a_deeper_model_computes_what_diffusers_computes(tmp_path: Path) -> None:
    checkpoint = save_stable_video(tmp_path / "deeper", DEEPER_STABLE_VIDEO)
    family = open_family(open_checkpoint(checkpoint))
    assert (family.defaults.height, family.defaults.width) == (24, 40)
    assert (family.limits.width.multiple, family.defaults.num_frames) == (16, 14)
    component = family.component_makers["unet"]()
    inputs = component.make_inputs(component.parity_sizes[-1], seed=1)
    assert inputs["timestep"][0] >= 2  # a whole number up to 999, not a logarithm
    expected = run_reference_unet(open_stable_video(checkpoint).unet, inputs)
    result = run_module(component, inputs)["out_sample"]
    np.testing.assert_allclose(result, expected, atol=TOLERANCE)


def test_the_size_of_the_published_models_is_that_of_the_pipeline(
    checkpoint: Path, edit_checkpoint: Callable[..., Path]
) -> None:
    for sample_size in (96, None):
        edited = edit_checkpoint(checkpoint, "unet/config.json", {"sample_size": sample_size})
        defaults = open_family(open_checkpoint(edited)).defaults
        assert (defaults.height, defaults.width) == (576, 1024)


def test_what_a_configuration_leaves_out_is_what_diffusers_takes(
    checkpoint: Path, edit_checkpoint: Callable[..., Path]
) -> None:
    edited = edit_checkpoint(checkpoint, "unet/config.json", {"num_frames": None})
    edited = edit_checkpoint(edited, "vae/config.json", {"latent_channels": None})
    family = open_family(open_checkpoint(edited))
    assert (family.defaults.num_frames, family.latents.channels) == (25, 4)


@pytest.mark.parametrize(
    ("file_name", "values", "message"),
    [
        ("unet/config.json", {"in_channels": 4}, r"its unet takes 4 channels and returns 4; with"),
        ("unet/config.json", {"cross_attention_dim": 8}, r"returns 12 features and its unet tak"),
        ("unet/config.json", {"addition_time_embed_dim": 6}, r"its unet embeds 4 numbers beside"),
        ("image_encoder/config.json", {"image_size": 336}, r"its image encoder takes 336 pixels"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, r"has a vae of class Autoe"),
        ("model_index.json", {"image_encoder": None}, r"has no image_encoder: it must be"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    file_name: str,
    values: dict[str, Any],
    message: str,
    checkpoint: Path,
    edit_checkpoint: Callable[..., Path],
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_family(open_checkpoint(edit_checkpoint(checkpoint, file_name, values)))


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ({"motion_adapter": Path("adapter")}, r"has motion of its own: leave out .* adapter$"),
        ({"preset": find_preset("lcm")}, r"is not an AnimateDiff model, .* lcm .*: leave it out$"),
        ({"loras": ("any",)}, r"is of the family .*, which takes no LoRAs: leave them out$"),
    ],
)
def test_what_belongs_to_animatediff_is_refused(
    addition: dict[str, Any], message: str, checkpoint: Path
) -> None:
    opened = replace(open_checkpoint(checkpoint), **addition)
    with pytest.raises(CheckpointError, match=r"^tiny " + message):
        open_family(opened)


@pytest.mark.parametrize("name", ["image_encoder", "vae_encoder", "vae_decoder"])
def test_graphs_in_float16_are_within_the_limits(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    component = open_component(checkpoint, name)
    with refuse_float16_overflow(component):
        references = make_references(component)
    convert_to_float16(component.module)
    path = tmp_path / "model.onnx"
    save_graph(make_graph(component, "float16"), path)
    records = measure_parity(component, path, references)
    check_parity(component, records, "float16")
    assert min(record.psnr_db for record in records) < 120  # it is not the float32 graph


def test_the_unet_computes_in_float16(checkpoint: Path) -> None:
    component = open_component(checkpoint, "unet")
    inputs = component.make_inputs(component.parity_sizes[-1], seed=1)
    expected = run_module(component, inputs)["out_sample"]
    convert_to_float16(component.module)
    found = run_module(component, inputs)["out_sample"]
    assert found.dtype == np.float32
    difference = np.abs(found - expected).max()
    assert 0 < difference < FLOAT16_TOLERANCE


def test_random_pipelines_are_made_the_same_each_time() -> None:
    one, other = (make_stable_video().unet.state_dict() for _ in range(2))
    mixed = [name for name in one if name.endswith("mix_factor")]
    assert len(mixed) > 10
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(float(one[name]) not in (0.0, 0.5) for name in mixed)
