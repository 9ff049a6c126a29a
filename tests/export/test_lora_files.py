"""What a LoRA file may hold, and what is computed from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn.functional import conv2d

from mutoscope.export.errors import CheckpointError
from mutoscope.export.loras import (
    Lora,
    LoraFile,
    check_loras,
    describe_loras,
    fuse_loras,
    parse_lora,
    read_loras,
    read_weight_shapes,
)
from tests.conftest import Layouts
from tests.lora_layouts import (
    LoraMatrices,
    Matrices,
    SmallModel,
    Tensors,
    make_matrices,
    name_kohya,
    name_kohya_original,
    name_peft,
    shapes_of,
    write_lora,
)

# A float32 product and a sum of values up to about 10, each way in an order of its own.
TOLERANCE = 5e-6
SD15: dict[str, Any] = {"cross_attention_dim": 768}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.fixture
def model() -> SmallModel:
    torch.manual_seed(3)
    return SmallModel()


@pytest.fixture
def matrices(model: SmallModel) -> LoraMatrices:
    return make_matrices({"unet": model})


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Lora]]:
    """A function that writes tensors to a LoRA file and reads it."""

    def write_and_read(
        tensors: Tensors, peft_config: dict[str, Any] | None = None, scale: float = 1.0
    ) -> list[Lora]:
        path = write_lora(tmp_path / "style.safetensors", tensors, peft_config)
        return read_loras([LoraFile(path, scale)])

    return write_and_read


def test_each_module_has_its_own_rank_and_alpha(
    model: SmallModel, matrices: LoraMatrices, read: Callable[..., list[Lora]]
) -> None:
    """As kohya computes it; diffusers 0.42.1 loses the alphas of attention if they are mixed."""
    linear = Matrices(torch.randn(5, 6), torch.randn(8, 5), alpha=7.0)
    matrices["unet"]["to_q"] = linear
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    loras = read(name_kohya(matrices), scale=-0.5)
    assert fuse_loras(model, loras, "unet") == [3]
    expected = before["to_q.weight"] - 0.5 * 7 / 5 * linear.up @ linear.down
    torch.testing.assert_close(model.to_q.weight.data, expected, rtol=0, atol=TOLERANCE)
    conv = matrices["unet"]["conv1"]
    product = torch.einsum("or,rihw->oihw", conv.up[:, :, 0, 0], conv.down)
    expected = before["conv1.weight"] - 0.5 * 2 / 3 * product
    torch.testing.assert_close(model.conv1.weight.data, expected, rtol=0, atol=TOLERANCE)
    assert torch.equal(model.conv1.bias, before["conv1.bias"])


def test_without_an_alpha_the_product_is_added_as_it_is(
    model: SmallModel, matrices: LoraMatrices, read: Callable[..., list[Lora]]
) -> None:
    tensors = {key: value for key, value in name_kohya(matrices).items() if "alpha" not in key}
    part = matrices["unet"]["to_q"]
    expected = model.to_q.weight.data + part.up @ part.down
    fuse_loras(model, read(tensors), "unet")
    torch.testing.assert_close(model.to_q.weight.data, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("settings", "alphas", "root"),
    [
        ({"lora_alpha": 6}, {"to_q": 6, "conv1": 6}, 1.0),
        ({"lora_alpha": 6, "alpha_pattern": {"to_q": 1.5}}, {"to_q": 1.5, "conv1": 6}, 1.0),
        ({"lora_alpha": 6, "alpha_pattern": {"^conv.": 1}}, {"to_q": 6, "conv1": 1}, 1.0),
        ({"lora_alpha": 6, "use_rslora": True}, {"to_q": 6, "conv1": 6}, 0.5),
        ({}, {"to_q": 3, "conv1": 3}, 1.0),
    ],
)
def test_a_peft_configuration_sets_the_alpha(
    settings: dict[str, Any],
    alphas: dict[str, float],
    root: float,
    matrices: LoraMatrices,
    read: Callable[..., list[Lora]],
) -> None:
    config = {"unet.r": 3, **{f"unet.{name}": value for name, value in settings.items()}}
    (lora,) = read(name_peft(matrices, fold=False), config)
    for module, alpha in alphas.items():
        assert lora.parts["unet"][module].scaling == pytest.approx(alpha / 3**root)


def test_an_adapter_name_in_the_keys_is_left_out(
    matrices: LoraMatrices, read: Callable[..., list[Lora]]
) -> None:
    tensors = name_peft(matrices)
    named = {key.replace(".weight", ".default.weight"): value for key, value in tensors.items()}
    assert read(named)[0].parts["unet"].keys() == read(tensors)[0].parts["unet"].keys()


def test_a_locon_in_tucker_form_is_its_three_convolutions(
    model: SmallModel, read: Callable[..., list[Lora]]
) -> None:
    down, mid, up = torch.randn(3, 4, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(8, 3, 1, 1)
    tensors = {
        "lora_unet_conv1.lora_down.weight": down,
        "lora_unet_conv1.lora_mid.weight": mid,
        "lora_unet_conv1.lora_up.weight": up,
        "lora_unet_conv1.alpha": torch.tensor(1.5),
    }
    image = torch.randn(1, 4, 7, 5)
    with torch.no_grad():
        added = conv2d(conv2d(conv2d(image, down), mid, padding=1), up)
        expected = model.conv1(image) + 0.8 * 1.5 / 3 * added
        fuse_loras(model, read(tensors, scale=0.8), "unet")
        # Nine times as many products as above, of values of about 10.
        torch.testing.assert_close(model.conv1(image), expected, rtol=0, atol=5e-5)


def test_a_linear_lora_fits_a_1x1_convolution(
    model: SmallModel, matrices: LoraMatrices, read: Callable[..., list[Lora]]
) -> None:
    """Models differ in which of the two proj_in is; it computes the same."""
    part = matrices["unet"]["proj_in"]
    flat = Matrices(part.down.flatten(1), part.up.flatten(1), part.alpha)
    other = SmallModel()
    other.load_state_dict(model.state_dict())
    fuse_loras(model, read(name_peft({"unet": {"proj_in": part}})), "unet")
    fuse_loras(other, read(name_peft({"unet": {"proj_in": flat}})), "unet")
    assert torch.equal(model.proj_in.weight, other.proj_in.weight)
    assert model.proj_in.weight.shape == (6, 4, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_matrices_are_multiplied_in_float32(
    dtype: torch.dtype, model: SmallModel, read: Callable[..., list[Lora]]
) -> None:
    down, up = torch.randn(3, 6).to(dtype), torch.randn(8, 3).to(dtype)
    expected = model.to_q.weight.data + up.float() @ down.float()
    tensors = {"unet.to_q.lora_A.weight": down, "unet.to_q.lora_B.weight": up}
    fuse_loras(model, read(tensors), "unet")
    torch.testing.assert_close(model.to_q.weight.data, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("config", [SD15, SDXL], ids=["SD 1.5", "SDXL"])
def test_the_original_names_of_a_whole_unet_are_understood(
    config: dict[str, Any], tmp_path: Path
) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    layers = {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    parts = {}
    for name, layer in layers.items():
        out_size, in_size, *kernel = layer.weight.shape
        half = {"dtype": torch.float16}
        parts[name] = Matrices(
            torch.zeros(1, in_size, *kernel, **half),
            torch.zeros(out_size, 1, *(1 for _ in kernel), **half),
            1.0,
        )
    path = write_lora(
        tmp_path / "original.safetensors",
        name_kohya_original({"unet": parts}, unet.config.layers_per_block),
    )
    loras = read_loras([LoraFile(path)], layers_per_block=unet.config.layers_per_block)
    check_loras(loras, "unet", shapes_of(unet))
    assert loras[0].parts["unet"].keys() == layers.keys()


def test_describing_names_file_scale_digest_and_counts(tmp_path: Path, model: SmallModel) -> None:
    unet = make_matrices({"unet": model})
    text = {"text_encoder": {"encoder.layers.0.mlp.fc1": unet["unet"]["to_q"]}}
    path = write_lora(tmp_path / "folder" / "style.safetensors", name_kohya(unet | text))
    (description,) = describe_loras(read_loras([LoraFile(path, 0.6)]))
    assert description == {
        "file": "style.safetensors",
        "scale": 0.6,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "fused_weights": {"text_encoder": 1, "unet": 3},
    }


def test_weight_shapes_are_read_from_whole_sharded_and_half_files(tmp_path: Path) -> None:
    config = {"block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": 8}
    unet = UNet2DConditionModel(
        **config,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    unet.save_pretrained(tmp_path / "whole")
    unet.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    unet.half().save_pretrained(tmp_path / "half", variant="fp16")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    for folder in ("whole", "sharded", "half"):
        assert read_weight_shapes(tmp_path / folder) == shapes_of(unet)


def test_an_image_model_and_its_adapter_are_checked_as_one(
    other_layouts: Layouts, read: Callable[..., list[Lora]]
) -> None:
    image = read_weight_shapes(other_layouts.stable_diffusion / "unet")
    adapter = read_weight_shapes(other_layouts.motion_adapter)
    motion = next(name for name in adapter if name.endswith("attn1.to_q.weight"))
    size = adapter[motion][0]
    module = motion.removesuffix(".weight")
    part = Matrices(torch.zeros(2, size), torch.zeros(size, 2), 2)
    loras = read(name_peft({"unet": {module: part}}))
    check_loras(loras, "unet", image | adapter)
    with pytest.raises(CheckpointError, match=r"1 of 1 weights for the unet that this model does"):
        check_loras(loras, "unet", image)


@pytest.mark.parametrize(
    ("text", "name", "scale"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:0.8", "style.safetensors", 0.8),
        ("style.safetensors:-1", "style.safetensors", -1.0),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
        ("a:b.safetensors:.5", "a:b.safetensors", 0.5),
        ("2:1.safetensors:1e-1", "2:1.safetensors", 0.1),
    ],
)
def test_a_lora_is_named_with_its_scale(
    text: str, name: str, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    assert parse_lora(text) == LoraFile(Path(name), scale)


def test_a_lora_on_the_hub_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = tmp_path / "zoom.safetensors"
    fetched.touch()
    asked = []

    def download(repo_id: str, file_name: str) -> str:
        asked.append((repo_id, file_name))
        return str(fetched)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert parse_lora("owner/zoom-in/folder/zoom.safetensors:0.7") == LoraFile(fetched, 0.7)
    assert asked == [("owner/zoom-in", "folder/zoom.safetensors")]
