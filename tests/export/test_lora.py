"""LoRAs of every layout are fused as diffusers fuses them, or refused in one line."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from mutoscope.export.loras import (
    LoraFile,
    check_lora_components,
    check_loras,
    fuse_loras,
    read_loras,
)
from tests.checkpoints import OTHER, TINY, make_components, randomise
from tests.lora_layouts import (
    LoraMatrices,
    Tensors,
    make_matrices,
    name_animatediff,
    name_diffusers,
    name_diffusers_old,
    name_kohya,
    name_kohya_original,
    name_peft,
    write_lora,
)

# Both sides add the same two float32 products to weights of about 1; the order may differ.
WEIGHT_TOLERANCE = 2.5e-7
# The weights differ by the above, and up to 100 layers of float32 carry it on to values of about 1.
OUTPUT_TOLERANCE = 2e-5
CONFIGS = {"tiny": TINY, "other": OTHER}
LAYERS_PER_BLOCK = 1  # of both
ATTENTION = re.compile(r"\.(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)$")
Parts = dict[str, Any]


@pytest.fixture(scope="module")
def all_parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parts]:
    folder = tmp_path_factory.mktemp("parts")
    return {name: make_components(config, folder) for name, config in CONFIGS.items()}


@pytest.fixture(params=CONFIGS)
def parts(request: pytest.FixtureRequest, all_parts: dict[str, Parts]) -> Parts:
    return all_parts[request.param]


def make_pipeline(parts: Parts, pipeline_class: Any = AnimateDiffPipeline) -> Any:
    # Its settings do not matter here, and some make diffusers warn.
    parts = copy.deepcopy(parts) | {"scheduler": EulerDiscreteScheduler(steps_offset=1)}
    if pipeline_class is StableDiffusionPipeline:
        del parts["motion_adapter"]
        parts |= {"safety_checker": None, "feature_extractor": None}
        return pipeline_class(**parts, requires_safety_checker=False)
    return pipeline_class(**parts)


def models_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    names = ("unet", "text_encoder", "text_encoder_2")
    return {name: getattr(pipeline, name) for name in names if hasattr(pipeline, name)}


def is_spatial(module: str) -> bool:
    return "motion_modules" not in module


def is_spatial_attention(module: str) -> bool:
    return is_spatial(module) and bool(ATTENTION.search(module))


def is_motion_attention(module: str) -> bool:
    return "motion_modules" in module and bool(ATTENTION.search(module))


# layout: which modules it can name, and how it names them
LAYOUTS: dict[str, tuple[Callable[[str], bool], Callable[[LoraMatrices], Tensors]]] = {
    "kohya": (is_spatial, name_kohya),
    "diffusers": (is_spatial, name_diffusers),
    "diffusers old": (is_spatial_attention, name_diffusers_old),
    "peft": (is_spatial, name_peft),
}


def fuse_by_diffusers(pipeline: Any, *loras: tuple[Path, float]) -> Any:
    """Load and fuse LoRAs as a user of diffusers does, and return the pipeline."""
    names = []
    for path, _ in loras:
        names.append(f"adapter{len(names)}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
            pipeline.load_lora_weights(
                str(path.parent), weight_name=path.name, adapter_name=names[-1]
            )
    pipeline.set_adapters(names, [scale for _, scale in loras])
    changed = [
        name for name, model in models_of(pipeline).items() if getattr(model, "peft_config", None)
    ]
    pipeline.fuse_lora(components=changed, adapter_names=names)
    pipeline.unload_lora_weights()
    return pipeline


def fuse_here(pipeline: Any, *loras: tuple[Path, float]) -> Any:
    """Fuse LoRAs into all models of a pipeline with our functions, and return it."""
    read = read_loras(
        [LoraFile(path, scale) for path, scale in loras], layers_per_block=LAYERS_PER_BLOCK
    )
    models = models_of(pipeline)
    check_lora_components(read, models.keys())
    for name, model in models.items():
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        check_loras(read, name, shapes)
        assert fuse_loras(model, read, name) == [len(lora.parts.get(name, ())) for lora in read]
    return pipeline


def weights_of(pipeline: Any) -> Tensors:
    return {
        f"{component}.{name}": tensor
        for component, model in models_of(pipeline).items()
        for name, tensor in model.state_dict().items()
    }


def count_changed(pipeline: Any, original: Any) -> int:
    before = weights_of(original)
    return sum(not torch.equal(value, before[name]) for name, value in weights_of(pipeline).items())


def assert_same_weights(pipeline: Any, expected: Any) -> None:
    found = weights_of(pipeline)
    for name, value in weights_of(expected).items():
        error = float((found[name] - value).abs().max())
        assert error <= WEIGHT_TOLERANCE, (name, error)


@torch.no_grad()
def assert_same_outputs(pipeline: Any, expected: Any) -> None:
    torch.manual_seed(5)
    unet = pipeline.unet
    frames = (2,) if isinstance(unet, UNet2DConditionModel) else (1, 2)
    shape = [*frames[:1], unet.config.in_channels, *frames[1:], 8, 8]
    sample = torch.randn(shape)
    ids = torch.randint(0, 200, (2, 7))
    outputs = []
    for side in (pipeline, expected):
        embeds = side.text_encoder(ids)[0]
        outputs.append((embeds, side.unet(sample, 300, embeds, return_dict=False)[0]))
    for found, value in zip(*outputs, strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=OUTPUT_TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_fused_as_diffusers_does(parts: Parts, layout: str, tmp_path: Path) -> None:
    choose, name = LAYOUTS[layout]
    original = make_pipeline(parts)
    matrices = make_matrices(models_of(original), choose)
    path = write_lora(tmp_path / "lora.safetensors", name(matrices))
    expected = fuse_by_diffusers(make_pipeline(parts), (path, 0.7))
    fused = fuse_here(make_pipeline(parts), (path, 0.7))
    assert count_changed(fused, original) == sum(len(modules) for modules in matrices.values())
    assert_same_weights(fused, expected)
    assert_same_outputs(fused, expected)


def test_a_lora_of_an_image_model_is_fused_as_diffusers_does(
    all_parts: dict[str, Parts], tmp_path: Path
) -> None:
    parts, image = all_parts["other"], StableDiffusionPipeline
    matrices = make_matrices(models_of(make_pipeline(parts, image)))
    path = write_lora(tmp_path / "lora.safetensors", name_kohya(matrices))
    expected = fuse_by_diffusers(make_pipeline(parts, image), (path, 0.7))
    fused = fuse_here(make_pipeline(parts, image), (path, 0.7))
    assert_same_weights(fused, expected)
    assert_same_outputs(fused, expected)


def test_two_loras_are_fused_as_diffusers_does(parts: Parts, tmp_path: Path) -> None:
    models = models_of(make_pipeline(parts))
    first = make_matrices(models, is_spatial, seed=1)
    second = make_matrices(models, is_spatial_attention, rank=5, seed=2)
    loras = (
        (write_lora(tmp_path / "first.safetensors", name_kohya(first)), 0.7),
        (write_lora(tmp_path / "second.safetensors", name_peft(second)), -0.4),
    )
    expected = fuse_by_diffusers(make_pipeline(parts), *loras)
    fused = fuse_here(make_pipeline(parts), *loras)
    assert_same_weights(fused, expected)
    assert_same_outputs(fused, expected)
    alone = fuse_here(make_pipeline(parts), loras[0])
    assert count_changed(fused, alone) == sum(len(modules) for modules in second.values())


def test_all_layouts_of_the_same_matrices_give_the_same_weights(
    parts: Parts, tmp_path: Path
) -> None:
    matrices = make_matrices(models_of(make_pipeline(parts)), is_spatial_attention)
    layouts = {name: write(matrices) for name, (_, write) in LAYOUTS.items()}
    layouts["kohya te1"] = name_kohya(matrices, "lora_te1_")
    layouts["original names"] = name_kohya_original(matrices, LAYERS_PER_BLOCK)
    fused = [
        fuse_here(
            make_pipeline(parts), (write_lora(tmp_path / f"{name}.safetensors", tensors), 0.7)
        )
        for name, tensors in layouts.items()
    ]
    for pipeline in fused[1:]:
        assert_same_weights(pipeline, fused[0])


def test_a_motion_lora_is_fused_as_diffusers_does(parts: Parts, tmp_path: Path) -> None:
    original = make_pipeline(parts)
    matrices = make_matrices({"unet": original.unet}, is_motion_attention)
    path = write_lora(tmp_path / "zoom-in.safetensors", name_diffusers_old(matrices))
    expected = fuse_by_diffusers(make_pipeline(parts), (path, 0.8))
    fused = fuse_here(make_pipeline(parts), (path, 0.8))
    assert count_changed(fused, original) == len(matrices["unet"]) > 30
    assert_same_weights(fused, expected)
    assert_same_outputs(fused, expected)


@pytest.mark.parametrize("name", [name_animatediff, name_kohya, name_peft])
def test_motion_loras_of_other_layouts_are_the_same(
    all_parts: dict[str, Parts], name: Callable[[LoraMatrices], Tensors], tmp_path: Path
) -> None:
    """Layouts that diffusers itself does not read for motion modules, or only in part."""
    parts = all_parts["other"]
    matrices = make_matrices({"unet": make_pipeline(parts).unet}, is_motion_attention)
    usual = write_lora(tmp_path / "usual.safetensors", name_diffusers_old(matrices))
    other = write_lora(tmp_path / "other.safetensors", name(matrices))
    assert_same_weights(
        fuse_here(make_pipeline(parts), (other, 1.0)), fuse_here(make_pipeline(parts), (usual, 1.0))
    )


def test_a_unet_lora_without_its_prefix_is_the_same(
    all_parts: dict[str, Parts], tmp_path: Path
) -> None:
    parts = all_parts["other"]
    matrices = make_matrices({"unet": make_pipeline(parts).unet}, is_spatial_attention)
    tensors = name_diffusers_old(matrices)
    usual = write_lora(tmp_path / "usual.safetensors", tensors)
    bare = {key.removeprefix("unet."): tensor for key, tensor in tensors.items()}
    other = write_lora(tmp_path / "other.safetensors", bare)
    assert_same_weights(
        fuse_here(make_pipeline(parts), (other, 1.0)), fuse_here(make_pipeline(parts), (usual, 1.0))
    )


def make_sdxl(folder: Path) -> Parts:
    """The parts of a tiny SDXL, whose UNet has no attention in its first block."""
    parts = make_components(TINY, folder)
    text = parts["text_encoder"].config.to_dict()
    unet = UNet2DConditionModel(
        **TINY.unet
        | {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
           "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 32,
           "use_linear_projection": True, "addition_embed_type": "text_time",
           "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + 16}
    )  # fmt: skip
    text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**text | {"projection_dim": 16}))
    for model in (unet, text_encoder_2):
        randomise(model)
    return {
        "vae": parts["vae"],
        "unet": unet,
        "text_encoder": parts["text_encoder"],
        "text_encoder_2": text_encoder_2,
        "tokenizer": parts["tokenizer"],
        "tokenizer_2": parts["tokenizer"],
        "add_watermarker": False,
    }


@pytest.mark.parametrize("names", ["original", "diffusers", "peft"])
def test_a_lora_of_sdxl_is_fused_as_diffusers_does(names: str, tmp_path: Path) -> None:
    parts = make_sdxl(tmp_path)
    original = make_pipeline(parts, StableDiffusionXLPipeline)
    matrices = make_matrices(models_of(original), is_spatial)
    assert "text_projection" in matrices["text_encoder_2"]
    write = {
        "original": lambda: name_kohya_original(matrices, LAYERS_PER_BLOCK),
        "diffusers": lambda: name_diffusers(matrices),
        "peft": lambda: name_peft(matrices),
    }
    path = write_lora(tmp_path / "sdxl.safetensors", write[names]())
    expected = fuse_by_diffusers(make_pipeline(parts, StableDiffusionXLPipeline), (path, 0.7))
    fused = fuse_here(make_pipeline(parts, StableDiffusionXLPipeline), (path, 0.7))
    assert count_changed(fused, original) == sum(len(modules) for modules in matrices.values())
    assert_same_weights(fused, expected)
