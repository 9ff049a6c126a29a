"""A single Stable Diffusion 1.5 file becomes the checkpoint that it was made of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from mutoscope.export import CheckpointError
from mutoscope.export.checkpoint import load_model, open_checkpoint
from mutoscope.export.single_file import is_single_file, open_single_file
from tests.checkpoints import OTHER, make_tokenizer, randomise

State = dict[str, torch.Tensor]
UNET = {
    "block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4, "layers_per_block": 2,
    "cross_attention_dim": 24, "attention_head_dim": 2, "sample_size": 8,
}  # fmt: skip
VAE = {
    "block_out_channels": (4, 8, 8, 8), "norm_num_groups": 2, "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
TEXT = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 20,
}  # fmt: skip
# Names inside a block, in the original layout and in diffusers.
UNET_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
VAE_ATTENTION = {
    "norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0",
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline folder with the blocks of Stable Diffusion 1.5, but tiny."""
    folder = tmp_path_factory.mktemp("single")
    torch.manual_seed(8)
    tokenizer = make_tokenizer(folder / "tokenizer", replace(OTHER, seed=8))
    models = {
        "unet": UNet2DConditionModel(**UNET),
        "vae": AutoencoderKL(**VAE),
        "text_encoder": CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **TEXT)),
    }
    for model in models.values():
        randomise(model)
    StableDiffusionPipeline(
        **models, tokenizer=tokenizer, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "source")  # fmt: skip
    return folder / "source"


@pytest.fixture(scope="module")
def weights(source: Path) -> State:
    """The weights of `source` in the original layout."""
    unet = load_file(source / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(source / "vae" / "diffusion_pytorch_model.safetensors")
    text = load_file(source / "text_encoder" / "model.safetensors")
    prefix = "" if any(key.startswith("text_model.") for key in text) else "text_model."
    return {
        **{f"model.diffusion_model.{name_in_ldm_unet(k)}": v.clone() for k, v in unet.items()},
        **{
            f"first_stage_model.{name_in_ldm_vae(k)}": (
                v[:, :, None, None].clone() if is_linear_of_vae(k) else v.clone()
            )
            for k, v in vae.items()
        },
        **{f"cond_stage_model.transformer.{prefix}{k}": v.clone() for k, v in text.items()},
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(20)[None],
        "alphas_cumprod": torch.ones(1000),
    }


def name_in_ldm_unet(key: str) -> str:
    """Return the original name of a weight of a UNet with 4 blocks of 2 layers."""
    top = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    }  # fmt: skip
    stem, kind = key.rsplit(".", 1)
    if stem in top:
        return f"{top[stem]}.{kind}"
    parts = key.split(".")
    if parts[0] == "mid_block":
        part, index, rest = parts[1], int(parts[2]), ".".join(parts[3:])
        number = 1 if part == "attentions" else 2 * index
        return f"middle_block.{number}.{name_in_resnet(part, rest)}"
    block, part, index, rest = int(parts[1]), parts[2], int(parts[3]), ".".join(parts[4:])
    if parts[0] == "down_blocks":
        if part == "downsamplers":
            return f"input_blocks.{3 * block + 3}.0.op.{kind}"
        number = 3 * block + index + 1
        return f"input_blocks.{number}.{int(part == 'attentions')}.{name_in_resnet(part, rest)}"
    if part == "upsamplers":  # after the attention, which the first block has not
        return f"output_blocks.{3 * block + 2}.{1 if block == 0 else 2}.conv.{kind}"
    number = 3 * block + index
    return f"output_blocks.{number}.{int(part == 'attentions')}.{name_in_resnet(part, rest)}"


def name_in_resnet(part: str, rest: str) -> str:
    if part == "attentions":
        return rest
    name, kind = rest.rsplit(".", 1)
    return f"{ {new: old for old, new in UNET_RESNET.items()}[name] }.{kind}"


def name_in_ldm_vae(key: str) -> str:
    """Return the original name of a weight of a VAE with 4 blocks."""
    parts = key.split(".")
    if parts[0] in ("quant_conv", "post_quant_conv"):
        return key
    side, part, kind = parts[0], parts[1], parts[-1]
    if part == "mid_block":
        rest = ".".join(parts[4:-1])
        if parts[2] == "attentions":
            old = {new: old for old, new in VAE_ATTENTION.items()}[rest]
            return f"{side}.mid.attn_1.{old}.{kind}"
        rest = rest.replace("conv_shortcut", "nin_shortcut")
        return f"{side}.mid.block_{int(parts[3]) + 1}.{rest}.{kind}"
    if part in ("down_blocks", "up_blocks"):
        level = int(parts[2]) if part == "down_blocks" else 3 - int(parts[2])
        where = f"{side}.{part.removesuffix('_blocks')}.{level}"
        if parts[3] == "resnets":
            rest = ".".join(parts[5:-1]).replace("conv_shortcut", "nin_shortcut")
            return f"{where}.block.{parts[4]}.{rest}.{kind}"
        return f"{where}.{parts[3].removesuffix('rs')}.conv.{kind}".replace("samplers", "sample")
    return f"{side}.{part.replace('conv_norm_out', 'norm_out')}.{kind}"


def is_linear_of_vae(key: str) -> bool:
    """Return whether the original layout has a convolution of 1x1 in its place."""
    return "attentions" in key and "group_norm" not in key and key.endswith("weight")


def save(weights: State, path: Path) -> Path:
    save_file(weights, path, metadata={"format": "pt"})
    return path


@pytest.fixture
def file(weights: State, tmp_path: Path) -> Path:
    return save(weights, tmp_path / "tiny-v1-5.safetensors")


@pytest.fixture
def configs(source: Path, tmp_path: Path) -> Path:
    """The folder for --single-file-config: everything but weights."""
    unused = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(source, tmp_path / "configs", ignore=unused))


def test_the_names_in_the_test_are_those_that_diffusers_converts(
    weights: State, source: Path
) -> None:
    unet = convert_ldm_unet_checkpoint(dict(weights), {**UNET})
    vae = convert_ldm_vae_checkpoint(dict(weights), VAE)
    for component, converted in (("unet", unet), ("vae", vae)):
        expected = load_file(source / component / "diffusion_pytorch_model.safetensors")
        assert converted.keys() == expected.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_single_file_gives_the_models_it_was_made_of(
    dtype: torch.dtype, weights: State, source: Path, configs: Path, tmp_path: Path
) -> None:
    typed = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in weights.items()
    }
    typed["alphas_cumprod"] = weights["alphas_cumprod"]  # float32 in every file
    file = save(typed, tmp_path / "tiny-v1-5.safetensors")
    folder = open_single_file(file, config=configs, work_folder=tmp_path / "work")
    assert folder.name == "tiny-v1-5"
    checkpoint = open_checkpoint(folder)
    assert checkpoint.pipeline_class == "StableDiffusionPipeline"
    for component, model_class in (
        ("unet", UNet2DConditionModel),
        ("vae", AutoencoderKL),
        ("text_encoder", CLIPTextModel),
    ):
        expected = load_model(model_class, source / component).state_dict()
        found = load_model(model_class, checkpoint.component_folder(component)).state_dict()
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor.to(dtype).float()), name
    stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    tokenizer = StableDiffusionPipeline.from_pretrained(folder).tokenizer
    reference = StableDiffusionPipeline.from_pretrained(source).tokenizer
    assert tokenizer("a red circle").input_ids == reference("a red circle").input_ids
    assert checkpoint.load_config("scheduler", "scheduler_config.json")["steps_offset"] == 1


def test_the_ema_copy_of_a_training_file_is_left_out(
    weights: State, source: Path, configs: Path, tmp_path: Path
) -> None:
    ema = {f"model_ema.{key.replace('.', '')}": torch.ones(1) for key in weights}
    file = save({**weights, **ema}, tmp_path / "trained.safetensors")
    folder = open_single_file(file, config=configs, work_folder=tmp_path)
    found = load_model(UNet2DConditionModel, folder / "unet").state_dict()
    expected = load_model(UNet2DConditionModel, source / "unet").state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def rename_all(weights: State, old: str, new: str) -> State:
    return {key.replace(old, new): value for key, value in weights.items()}


def drop(weights: State, part: str) -> State:
    return {key: value for key, value in weights.items() if not key.startswith(part)}


XL_KEY = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
V2_KEY = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
FIRST_KEY = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda weights: {**weights, XL_KEY: torch.ones(2)},
            r"is Stable Diffusion XL, and only .* StableDiffusionXLPipeline\.from_single_file",
        ),
        (
            lambda weights: {**weights, V2_KEY: torch.ones(2, 1024)},
            r"is Stable Diffusion 2, and only single files of Stable Diffusion 1\.5 are read: conv",
        ),
        (
            lambda weights: {**weights, FIRST_KEY: torch.ones(8, 9, 3, 3)},
            r"is Stable Diffusion for inpainting, and only .*: use a Stable Diffusion 1\.5 model",
        ),
        (
            lambda _: {"lora_unet_mid_block.lora_down.weight": torch.ones(2)},
            r"is a LoRA, not a checkpoint: give the checkpoint .* by --lora",
        ),
        (
            lambda _: {"down_blocks.0.motion_modules.0.norm.weight": torch.ones(2)},
            r"is a motion adapter, not a checkpoint: .* by --motion-adapter",
        ),
        (
            lambda weights: drop(drop(weights, "model."), "cond"),
            r"is a VAE, not a checkpoint: convert it with AutoencoderKL\.from_single_file.* --vae",
        ),
        (
            lambda _: {"conv_in.weight": torch.ones(2)},
            r"is not a Stable Diffusion 1\.5 file in the original layout",
        ),
        (lambda weights: drop(weights, "first_stage"), r"has no vae: use the file that has unet, "),
        (lambda weights: drop(weights, "cond_stage"), r"has no text encoder: use the file that"),
        (
            lambda weights: drop(weights, "model.diffusion_model.middle_block.1.proj_in.weight"),
            r"lacks weights that its configurations ask for: the file is not whole",
        ),
        (
            lambda weights: drop(
                weights, "cond_stage_model.transformer.text_model.final_layer_norm.bias"
            ),
            r"lacks 1 weights of its text_encoder, such as (text_model\.)?final_layer_norm\.bias",
        ),
        (
            lambda weights: {**weights, FIRST_KEY: torch.ones(8, 5, 3, 3)},
            r"cannot be opened with the configurations of configs: .*conv_in\.weight",
        ),
    ],
)
def test_a_single_file_of_another_kind_is_one_line(
    edit: Callable[[State], State], message: str, weights: State, configs: Path, tmp_path: Path
) -> None:
    file = save(edit(dict(weights)), tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=rf"^file\.safetensors {message}"):
        open_single_file(file, config=configs, work_folder=tmp_path)


@pytest.mark.parametrize("name", ["v1-5.ckpt", "v1-5.bin", "v1-5.pt"])
def test_a_pickle_file_is_never_opened(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert is_single_file(path)
    with pytest.raises(CheckpointError, match=rf"^{name} is a pickle .*from_single_file\(FILE\)"):
        open_single_file(path, config=None, work_folder=tmp_path)
    with pytest.raises(CheckpointError, match=rf"^{name} is a pickle file, which can run code"):
        open_checkpoint(path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, file: Path) -> None:
    text = tmp_path / "model.gguf"
    text.write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"^model\.gguf is not a \.safetensors file: give"):
        open_single_file(text, config=None, work_folder=tmp_path)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"tiny-v1-5\.safetensors is not a whole safetensors"):
        open_single_file(file, config=None, work_folder=tmp_path)


def test_the_folder_of_configurations_must_be_whole(
    file: Path, configs: Path, tmp_path: Path
) -> None:
    shutil.copytree(configs / "tokenizer", tmp_path / "tokenizer")
    shutil.rmtree(configs / "tokenizer")
    with pytest.raises(CheckpointError, match=r"configs has no tokenizer: --single-file-config"):
        open_single_file(file, config=configs, work_folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"has no model_index\.json: --single-file-config t"):
        open_single_file(file, config=configs / "unet", work_folder=tmp_path)
    (configs / "tokenizer").mkdir()
    with pytest.raises(CheckpointError, match=r"^configs/tokenizer lacks merges\.txt: a tokenizer"):
        open_single_file(file, config=configs, work_folder=tmp_path)
    shutil.copytree(tmp_path / "tokenizer", configs / "tokenizer", dirs_exist_ok=True)
    (configs / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"^tiny-v1-5\.safetensors cannot be opened with the"):
        open_single_file(file, config=configs, work_folder=tmp_path)


def test_without_configurations_and_network_there_is_a_way_out(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("offline")

    monkeypatch.setattr("diffusers.loaders.single_file.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"cannot be fetched from the hub.*--single-file-con"):
        open_single_file(file, config=None, work_folder=tmp_path)
