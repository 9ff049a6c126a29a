"""Motion adapters in every form that people have them, and the UNet they are joined to."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from safetensors.torch import save_file

from mutoscope.export import CheckpointError
from mutoscope.export.motion_adapter import (
    check_adapter_fits,
    join_motion_unet,
    make_joined_shapes,
    read_motion_adapter,
)
from tests.checkpoints import randomise
from tests.conftest import Layouts

State = dict[str, torch.Tensor]
# The published adapters differ in these alone, at channels of (320, 640, 1280, 1280).
LAYOUTS: dict[str, dict[str, Any]] = {
    "v1": {"use_motion_mid_block": False, "motion_max_seq_length": 24},
    "v2": {"use_motion_mid_block": True, "motion_max_seq_length": 32},
    "v3": {"use_motion_mid_block": False, "motion_max_seq_length": 32},
    "sdxl": {"block_out_channels": (32, 64, 64), "use_motion_mid_block": False},
    "deep": {"motion_transformer_layers_per_block": [1, 2], "motion_layers_per_block": [2, 1]},
}
# The names of diffusers, and those of AnimateDiff's own files.
ORIGINAL_NAMES = {
    ".norm1.": ".norms.0.", ".norm2.": ".norms.1.", ".norm3.": ".ff_norm.",
    ".attn1.": ".attention_blocks.0.", ".attn2.": ".attention_blocks.1.",
}  # fmt: skip
# The weights are equal to the bit, but in a mapped file they are aligned otherwise, and torch takes
# another path through its matrix products: outputs near 1 differ in their last bits.
ALIGNMENT_TOLERANCE = 1e-5
SDXL_UNET = {
    "block_out_channels": (32, 64, 64), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 24, "attention_head_dim": (2, 4, 8), "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 3), "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 72, "sample_size": 8,
}  # fmt: skip
LISTS_UNET = {
    "block_out_channels": (32, 64), "layers_per_block": (2, 1),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": (24, 24), "attention_head_dim": (4, 8), "sample_size": 8,
}  # fmt: skip


def make_adapter(layout: str) -> MotionAdapter:
    torch.manual_seed(5)
    settings = {"block_out_channels": (32, 64), **LAYOUTS[layout]}
    adapter = MotionAdapter(**settings)
    randomise(adapter)
    return adapter


def to_original(weights: State) -> State:
    """Rename weights of diffusers to those of AnimateDiff's own files."""
    original: State = {}
    for key, tensor in weights.items():
        key = re.sub(r"(motion_modules\.\d+\.)", r"\1temporal_transformer.", key)
        for name, old_name in ORIGINAL_NAMES.items():
            key = key.replace(name, old_name)
        if "pos_embed.pe" in key:
            for block in (0, 1):
                name = f"attention_blocks.{block}.pos_encoder.pe"
                original[key.replace("pos_embed.pe", name)] = tensor.clone()
        else:
            original[key] = tensor.clone()
    return original


def save_unet(config: dict[str, Any], folder: Path) -> tuple[UNet2DConditionModel, Path]:
    torch.manual_seed(6)
    unet = UNet2DConditionModel(**config)
    randomise(unet)
    unet.save_pretrained(folder / "model" / "unet")
    return unet, folder / "model" / "unet"


def make_plain(config: Any) -> dict[str, Any]:
    """Return the settings of a model, as JSON would hold them."""
    settings = {key: value for key, value in config.items() if key[0] != "_"}
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["folder", "fp16 folder", "diffusers", "original", "module."])
def test_an_adapter_is_read_from_every_form(layout: str, form: str, tmp_path: Path) -> None:
    adapter = make_adapter(layout)
    weights, path = adapter.state_dict(), tmp_path / "adapter"
    if form.endswith("folder"):
        adapter.save_pretrained(path, variant="fp16" if "fp16" in form else None)
    else:
        path = tmp_path / "adapter.safetensors"
        named = weights if form == "diffusers" else to_original(weights)
        prefix = form if form == "module." else ""
        save_file({prefix + key: tensor for key, tensor in named.items()}, path)
    read = read_motion_adapter(path)
    found, expected = MotionAdapter.from_config(read.config).config, adapter.config
    assert make_plain(found) == make_plain(expected)
    found_weights = dict(read.read_weights())
    if form in ("original", "module."):  # the positions are computed
        weights = {key: tensor for key, tensor in weights.items() if "pos_embed" not in key}
    assert_same(found_weights, weights)


@pytest.mark.parametrize("layout", ["v1", "v2", "v3", "sdxl"])
def test_an_original_file_is_read_as_diffusers_reads_it(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "mm.safetensors"
    adapter = make_adapter(layout)
    save_file(to_original(adapter.half().state_dict()), path)
    adapter.float().save_config(tmp_path / "config")
    expected = MotionAdapter.from_single_file(str(path), config=str(tmp_path / "config"))
    read = read_motion_adapter(path)
    found = MotionAdapter.from_config(read.config)
    found.load_state_dict(dict(read.read_weights()), strict=False)
    assert_same(found.state_dict(), expected.state_dict())


UNETS = pytest.mark.parametrize(
    ("config", "layout"),
    [(SDXL_UNET, "sdxl"), (LISTS_UNET, "deep")],
    ids=["sdxl", "lists"],
)


@UNETS
@pytest.mark.parametrize("form", ["folder", "original"])
def test_a_joined_unet_equals_that_of_diffusers(
    config: dict[str, Any], layout: str, form: str, tmp_path: Path
) -> None:
    image_unet, folder = save_unet(config, tmp_path)
    adapter = make_adapter(layout)
    if form == "folder":
        path = tmp_path / "adapter"
        adapter.save_pretrained(path)
    else:
        path = tmp_path / "adapter.safetensors"
        save_file(to_original(adapter.state_dict()), path)
    expected = UNetMotionModel.from_unet2d(image_unet, adapter)
    if hasattr(expected, "add_embedding"):  # from_unet2d leaves it random
        expected.add_embedding.load_state_dict(image_unet.add_embedding.state_dict())
    joined = join_motion_unet(folder, read_motion_adapter(path))
    assert_same(joined.state_dict(), expected.state_dict())
    assert not joined.training
    assert not any(parameter.requires_grad for parameter in joined.parameters())
    assert make_plain(joined.config) == make_plain(expected.config)
    inputs = make_inputs(config)
    with torch.no_grad():
        found, output = joined(**inputs)[0], expected.eval()(**inputs)[0]
    torch.testing.assert_close(found, output, rtol=0, atol=ALIGNMENT_TOLERANCE)


def make_inputs(config: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(7)
    features = config["cross_attention_dim"]
    inputs: dict[str, Any] = {
        "sample": torch.randn(1, 4, 3, 8, 8),
        "timestep": torch.tensor([481.0]),
        "encoder_hidden_states": torch.randn(
            3, 5, features if isinstance(features, int) else features[0]
        ),
        "return_dict": False,
    }
    if config.get("addition_embed_type"):
        # 6 sizes of 8 sinusoids and 24 pooled features make the 72 of the configuration.
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(1, 24),
            "time_ids": torch.tensor([[8.0, 8, 0, 0, 8, 8]]),
        }
    return inputs


def test_the_tiny_checkpoint_joins_as_it_was_saved_joined(other_layouts: Layouts) -> None:
    joined = join_motion_unet(
        other_layouts.stable_diffusion / "unet", read_motion_adapter(other_layouts.motion_adapter)
    )
    expected = UNetMotionModel.from_pretrained(other_layouts.animatediff / "unet")
    assert_same(joined.state_dict(), expected.state_dict())


@pytest.mark.parametrize("form", ["folder", "original"])
def test_the_shapes_of_a_joined_unet_are_known_before_weights_are_read(
    form: str, tmp_path: Path
) -> None:
    _, folder = save_unet(SDXL_UNET, tmp_path)
    adapter = make_adapter("sdxl")
    path = tmp_path / "adapter"
    if form == "folder":
        adapter.save_pretrained(path)
    else:
        path = path.with_suffix(".safetensors")
        save_file(to_original(adapter.state_dict()), path)
    read = read_motion_adapter(path)
    joined = join_motion_unet(folder, read)
    assert make_joined_shapes(folder, read) == {
        name: tuple(weight.shape) for name, weight in joined.named_parameters()
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads the list of mapped files")
def test_float32_weights_stay_in_their_files(other_layouts: Layouts) -> None:
    joined = join_motion_unet(
        other_layouts.stable_diffusion / "unet", read_motion_adapter(other_layouts.motion_adapter)
    )
    mappings = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            start, end = line.split()[0].split("-")
            mappings.append(range(int(start, 16), int(end, 16)))
    for name, tensor in joined.state_dict().items():
        assert any(tensor.data_ptr() in mapping for mapping in mappings), name


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        (
            {"block_out_channels": (32, 32)},
            r"its blocks are \(32, 64\), the unet's are \(32, 32\)\): use one made for this model",
        ),
        (
            {"block_out_channels": (32, 64, 64)},
            r"its blocks are \(32, 64\), the unet's are \(32, 64, 64\)",
        ),
        (
            {"block_out_channels": (32, 64), "layers_per_block": 1},
            r"its blocks have \(2, 2\) layers, the unet's have \(1, 1\)",
        ),
    ],
)
def test_an_adapter_of_another_model_is_refused_before_weights_are_read(
    unet: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make_adapter("v2").save_pretrained(tmp_path / "adapter")
    adapter = read_motion_adapter(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=rf"adapter adapter does .* of base \({message}"):
        check_adapter_fits(adapter, unet, "base")


def test_a_joined_unet_is_whole(tmp_path: Path) -> None:
    _, folder = save_unet(LISTS_UNET, tmp_path)
    weights = to_original(make_adapter("deep").state_dict())
    path = tmp_path / "adapter.safetensors"
    lost = "up_blocks.1.motion_modules.2.temporal_transformer.proj_in.weight"
    save_file({key: tensor for key, tensor in weights.items() if key != lost}, path)
    adapter = read_motion_adapter(path)
    with pytest.raises(
        CheckpointError, match=r"^adapter\.safetensors lacks 1 weights of UNetMotion"
    ):
        join_motion_unet(folder, adapter)
    save_file({**weights, lost: torch.ones(3, 3)}, path)
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors does not fit .*size mismatch"):
        join_motion_unet(folder, adapter)
    extra = lost.replace("up_blocks.1", "up_blocks.7")
    save_file({**weights, extra: torch.ones(3, 3)}, path)
    with pytest.raises(
        CheckpointError, match=r"^adapter\.safetensors has 1 weights that UNetMotio"
    ):
        join_motion_unet(folder, adapter)


def test_an_image_unet_with_blocks_that_have_no_place_is_refused(tmp_path: Path) -> None:
    # from_unet2d would leave the attention of these blocks out without a word.
    types = {"down_block_types": ("AttnDownBlock2D", "CrossAttnDownBlock2D")}
    _, folder = save_unet(LISTS_UNET | types, tmp_path)
    make_adapter("deep").save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        CheckpointError, match=r"^model/unet has \d+ weights that UNetMotionModel h"
    ):
        join_motion_unet(folder, read_motion_adapter(tmp_path / "adapter"))


def test_an_adapter_with_positions_of_its_own_is_refused(tmp_path: Path) -> None:
    weights = to_original(make_adapter("v2").state_dict())
    for key in weights:
        if key.endswith("pos_encoder.pe"):
            weights[key] = weights[key] * 1.1
    save_file(weights, tmp_path / "mm.safetensors")
    adapter = read_motion_adapter(tmp_path / "mm.safetensors")
    with pytest.raises(CheckpointError, match=r"^mm\.safetensors has positions of its own in"):
        dict(adapter.read_weights())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["down_blocks.0.attentions.0.proj_in.weight"], r"is not a motion adapter \(it has down_"),
        (["controlnet_cond_embedding.conv_in.weight"], r"is not a motion adapter \(it has contro"),
        (
            ["down_blocks.0.motion_modules.0.x.processor.to_q_lora.down.weight"],
            r"is a LoRA, not a mot",
        ),
        (["lora_unet_down_blocks_0.lora_up.weight"], r"is a LoRA, not a motion adapter: give it w"),
        ([], r"is not a motion adapter: use a file of"),
    ],
)
def test_a_file_of_another_kind_is_named(keys: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({key: torch.ones(2) for key in keys}, path)
    with pytest.raises(CheckpointError, match=rf"^file\.safetensors {message}"):
        read_motion_adapter(path)


def test_a_pickle_adapter_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "mm_sd_v15_v2.ckpt"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=r"mm_sd_v15_v2\.ckpt is a pickle file, which can"):
        read_motion_adapter(path)


def test_a_folder_of_another_kind_is_named(other_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^vae is a AutoencoderKL, not a MotionAdapter: sav"):
        read_motion_adapter(other_checkpoint / "vae")
