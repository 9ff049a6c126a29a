"""Writers of LoRA files: the same matrices in every key layout that people have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
KOHYA_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
RESNET = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
}


@dataclass(frozen=True)
class Matrices:
    """What a LoRA adds to one module: alpha / rank times up times down."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    def folded_up(self) -> torch.Tensor:
        """`up` times alpha / rank, for the layouts that have no alpha."""
        return self.up * (self.alpha / self.down.shape[0])


LoraMatrices = dict[str, dict[str, Matrices]]  # component, module


class SmallModel(torch.nn.Module):
    """Three layers as a UNet has them: enough to fuse into."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = torch.nn.Linear(6, 8)
        self.conv1 = torch.nn.Conv2d(4, 8, 3, padding=1)
        self.proj_in = torch.nn.Conv2d(4, 6, 1)


def make_matrices(
    models: dict[str, torch.nn.Module],
    choose: Callable[[str], bool] = lambda module: True,
    *,
    rank: int = 3,
    alpha: float = 2.0,
    seed: int = 0,
) -> LoraMatrices:
    """Return random matrices for the chosen linear layers and convolutions of the models."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    matrices: LoraMatrices = {}
    for component, model in models.items():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and choose(name):
                out_size, in_size, *kernel = module.weight.shape
                matrices.setdefault(component, {})[name.removeprefix("text_model.")] = Matrices(
                    draw(rank, in_size, *kernel), draw(out_size, rank, *(1 for _ in kernel)), alpha
                )
    return matrices


def write_lora(path: Path, tensors: Tensors, peft_config: dict[str, Any] | None = None) -> Path:
    """Write a LoRA file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": "pt"}
    if peft_config is not None:
        header["lora_adapter_metadata"] = json.dumps(peft_config)
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata=header)
    return path


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a model by its name."""
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def name_kohya(matrices: LoraMatrices, text_prefix: str = "lora_te_") -> Tensors:
    """The layout of kohya's trainer, with the names that diffusers gives the modules."""
    return _name_kohya(matrices, {**KOHYA_PREFIXES, "text_encoder": text_prefix}, lambda name: name)


def name_kohya_original(matrices: LoraMatrices, layers_per_block: int) -> Tensors:
    """The same with the names of the original Stable Diffusion code for the UNet's modules."""
    attentions = {
        found[0]
        for name in matrices["unet"]
        if (found := re.match(r"up_blocks\.\d+(?=\.attentions)", name))
    }
    return _name_kohya(
        matrices, KOHYA_PREFIXES, lambda name: name_original(name, layers_per_block, attentions)
    )


def _name_kohya(
    matrices: LoraMatrices, prefixes: dict[str, str], rename: Callable[[str], str]
) -> Tensors:
    tensors = {}
    for component, module, part in _parts(matrices):
        name = rename(module) if component == "unet" else _text_name(module)
        name = prefixes[component] + name.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = part.down
        tensors[f"{name}.lora_up.weight"] = part.up
        tensors[f"{name}.alpha"] = torch.tensor(part.alpha)
    return tensors


def _text_name(module: str) -> str:
    """Return what older transformers, and the LoRAs for it, call a module of a text encoder."""
    return module if module == "text_projection" else f"text_model.{module}"


def name_original(module: str, layers_per_block: int, blocks_with_attention: set[str]) -> str:
    """Return what the original Stable Diffusion code calls a module of a diffusers UNet."""
    if module in OUTSIDE_BLOCKS:
        return OUTSIDE_BLOCKS[module]
    kind, *rest = module.split(".")
    if kind == "mid_block":
        place = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}[".".join(rest[:2])]
        inner = [RESNET[rest[2]]] if rest[0] == "resnets" else rest[2:]
        return "_".join(["middle_block", place, *inner])
    block, part, index, *inner = rest
    per_block = layers_per_block + 1
    if part == "downsamplers":
        return f"input_blocks_{(int(block) + 1) * per_block}_0_op"
    if part == "upsamplers":
        after = 2 if f"{kind}.{block}" in blocks_with_attention else 1
        return f"output_blocks_{int(block) * per_block + layers_per_block}_{after}_conv"
    place = int(block) * per_block + int(index) + (kind == "down_blocks")
    stem = "input_blocks" if kind == "down_blocks" else "output_blocks"
    if part == "resnets":
        return f"{stem}_{place}_0_{RESNET[inner[0]]}"
    return "_".join([stem, str(place), "1", *inner])


def name_diffusers(matrices: LoraMatrices) -> Tensors:
    """The layout of diffusers' training scripts until peft."""
    tensors = {}
    for component, module, part in _parts(matrices):
        name, infix = module, "lora"
        if component != "unet" and module != "text_projection":
            name, infix = _text_name(module), "lora_linear_layer"
        tensors[f"{component}.{name}.{infix}.down.weight"] = part.down
        tensors[f"{component}.{name}.{infix}.up.weight"] = part.folded_up()
    return tensors


def name_diffusers_old(matrices: LoraMatrices) -> Tensors:
    """The first layout of diffusers: attention alone, as processors of it."""
    tensors = {}
    for component, module, part in _parts(matrices):
        where, _, which = module.removesuffix(".0").rpartition(".")
        which = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}.get(
            which, which
        )
        name = (
            f"unet.{where}.processor" if component == "unet" else f"{component}.text_model.{where}"
        )
        tensors[f"{name}.{which}_lora.down.weight"] = part.down
        tensors[f"{name}.{which}_lora.up.weight"] = part.folded_up()
    return tensors


def name_peft(matrices: LoraMatrices, *, fold: bool = True) -> Tensors:
    """The layout of peft; without `fold` the alpha must stand in a peft configuration."""
    tensors = {}
    for component, module, part in _parts(matrices):
        name = f"{component}.{module if component == 'unet' else _text_name(module)}"
        tensors[f"{name}.lora_A.weight"] = part.down
        tensors[f"{name}.lora_B.weight"] = part.folded_up() if fold else part.up
    return tensors


def name_animatediff(matrices: LoraMatrices) -> Tensors:
    """The layout in which AnimateDiff's own code saves a motion LoRA."""
    return {
        key.removeprefix("unet.")
        .replace(".transformer_blocks.", ".temporal_transformer.transformer_blocks.")
        .replace(".attn1.", ".attention_blocks.0.")
        .replace(".attn2.", ".attention_blocks.1."): tensor
        for key, tensor in name_diffusers_old(matrices).items()
    }


def _parts(matrices: LoraMatrices) -> Iterable[tuple[str, str, Matrices]]:
    for component, modules in matrices.items():
        for module, part in modules.items():
            yield component, module, part
