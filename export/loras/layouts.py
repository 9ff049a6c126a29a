"""Bring the key layouts of LoRA files to one: for each component, module name -> matrices.

diffusers (new and old), peft and kohya name the same matrices differently, and kohya names the
blocks of a UNet either as diffusers or as the original Stable Diffusion code does.

Source: diffusers.loaders.lora_conversion_utils and diffusers.utils.state_dict_utils, whose
functions are called here; tests/export/test_lora.py fuses every layout both here and by diffusers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_unet_lora_key,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers
from diffusers.utils.state_dict_utils import (
    StateDictType,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)

from mutoscope.export.errors import CheckpointError

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
KOHYA_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
# Kinds of adapters that are no plain LoRA, by what only their keys have.
OTHER_KINDS = {
    "a DoRA": r"dora_scale|lora_magnitude_vector",
    "a LoHa": r"\.hada_",
    "a LoKr": r"\.lokr_",
    "an OFT": r"\.oft_",
    "a LoRA with biases": r"\.(lora_B|lora_up|up)\.([^.]+\.)?bias$|\.diff_b$",
    "a full weight difference": r"\.diff$|\.set_weight$",
    "a LoRA of embeddings": r"\.lora_embedding_[AB]",
    "a textual inversion": r"(^|\.)(emb_params$|string_to_param)",
}
# How the original Stable Diffusion code names what diffusers calls down_blocks, conv_out, ...
LDM_NAME = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)_\d")
LDM_BLOCK_NAME = re.compile(r"(input_blocks|middle_block|output_blocks)_")
DIFFUSERS_BLOCK_NAME = re.compile(r"(down_blocks|mid_block|up_blocks)_")
# Where a block has no attention, the upsampler stands where diffusers' converter expects one.
MISTAKEN_UPSAMPLER = re.compile(r"(up_blocks\.\d+)\.attentions\.\d+\.conv")
NAME = re.compile(
    r"(?P<module>.+)\.(?:(?P<down>(?:lora_A|lora_down)(?:\.[^.]+)?\.weight)"
    r"|(?P<up>(?:lora_B|lora_up)(?:\.[^.]+)?\.weight)|(?P<mid>lora_mid\.weight)|(?P<alpha>alpha))"
)
NAMED_KEYS = 3


@dataclass(frozen=True)
class LoraPart:
    """What a LoRA adds to one weight: `scaling` times the product of its matrices.

    Attributes:
        key: What its file calls `down`, for people.
        down: [rank, in, *kernel], or [rank, in, 1, 1] if there is a `mid`.
        up: [out, rank] or [out, rank, 1, 1].
        mid: [rank, rank, *kernel] of a LoCon in Tucker form, else None.
        scaling: alpha / rank, or as the file's peft configuration has it.
    """

    key: str
    down: torch.Tensor
    up: torch.Tensor
    mid: torch.Tensor | None
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is added: (out, in, *kernel)."""
        kernel = (self.down if self.mid is None else self.mid).shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    def make_delta(self) -> torch.Tensor:
        """Return what is added to the weight, float32 of `shape`; a new tensor."""
        core = self.down.float().flatten(1)  # [rank, in * kernel]
        if self.mid is not None:
            core = torch.einsum("pqk,qi->pik", self.mid.float().flatten(2), core).flatten(1)
        return (self.scaling * (self.up.float().flatten(1) @ core)).reshape(self.shape)


Parts = dict[str, dict[str, LoraPart]]


def read_parts(
    tensors: Mapping[str, torch.Tensor],
    peft_config: Mapping[str, Any],
    *,
    label: str,
    layers_per_block: int,
) -> Parts:
    """Return the parts of a LoRA by component and module.

    A module is named as the model names it, with dots or, as kohya does, with underscores instead;
    a "text_model." before it is left out.

    Args:
        tensors: The content of the file.
        peft_config: Its peft configuration, keys "COMPONENT.SETTING"; empty if it has none.
        label: What to call the file in messages.
        layers_per_block: The setting of the UNet, by which the original names number its blocks.

    Raises:
        CheckpointError: It is no LoRA, or one of a kind or with keys that are not understood.
    """
    _check_kind(tensors, peft_config, label)
    _check_one_naming(tensors, label)
    found: dict[str, dict[str, dict[str, str]]] = {}  # component, module, role -> key
    unknown = []
    for key in sorted(tensors):
        component, name = _normalise_key(key, layers_per_block)
        match = NAME.fullmatch(name)
        if match is None:
            unknown.append(key)
            continue
        role = next(role for role in ("down", "up", "mid", "alpha") if match[role])
        keys = found.setdefault(component, {}).setdefault(match["module"], {})
        if keys.setdefault(role, key) != key:
            raise CheckpointError(
                f"{label} has the same matrix twice, as {keys[role]} and as {key}: it holds "
                "several LoRAs; save each in a file of its own"
            )
    if unknown or not found:
        raise CheckpointError(
            f"{label} has {len(unknown)} keys of no known LoRA layout{name_some(unknown)}: use a "
            "LoRA in diffusers, peft or kohya layout"
        )
    return {
        component: {
            module: _make_part(module, keys, tensors, _select(peft_config, component), label)
            for module, keys in modules.items()
        }
        for component, modules in found.items()
    }


def name_some(keys: Collection[str]) -> str:
    """Return the first few keys in brackets, with a space before; nothing if there are none."""
    more = ", ..." if len(keys) > NAMED_KEYS else ""
    return f" ({', '.join(sorted(keys)[:NAMED_KEYS])}{more})" if keys else ""


def _check_kind(keys: Iterable[str], peft_config: Mapping[str, Any], label: str) -> None:
    """Refuse adapters of other kinds by their name."""
    kinds = [
        kind
        for kind, pattern in OTHER_KINDS.items()
        if any(re.search(pattern, key) for key in keys)
    ]
    if any(peft_config.get(f"{component}.use_dora") for component in COMPONENTS):
        kinds.append("a DoRA")
    if kinds:
        raise CheckpointError(
            f"{label} is {kinds[0]}, and only plain LoRA and LoCon can be fused: merge it into the "
            "checkpoint with the tool that made it, and export that checkpoint"
        )


def _check_one_naming(keys: Iterable[str], label: str) -> None:
    """Refuse a merge of two LoRAs that name blocks differently; diffusers would drop one."""
    modules = {key.removeprefix("lora_unet_"): key for key in keys if key.startswith("lora_unet_")}
    original = [key for name, key in modules.items() if LDM_BLOCK_NAME.match(name)]
    ours = [key for name, key in modules.items() if DIFFUSERS_BLOCK_NAME.match(name)]
    if original and ours:
        raise CheckpointError(
            f"{label} names the blocks of the unet in two ways ({original[0]} and {ours[0]}), so "
            "it holds two LoRAs: save each in a file of its own, and fuse both"
        )


def _normalise_key(key: str, layers_per_block: int) -> tuple[str, str]:
    """Return the component and the name within it; an unknown key comes back as it is."""
    for prefix, component in KOHYA_PREFIXES.items():
        if key.startswith(prefix):
            module, _, rest = key.removeprefix(prefix).partition(".")
            if component != "unet":
                module = module.removeprefix("text_model_")
            elif LDM_NAME.match(module):
                module = _convert_ldm_name(module, layers_per_block)
            return component, f"{module}.{rest}"
    component, _, name = key.partition(".")
    if component in COMPONENTS[1:]:
        for layout in (StateDictType.DIFFUSERS_OLD, StateDictType.DIFFUSERS):
            (name,) = convert_state_dict_to_peft({name: None}, original_type=layout)
        return component, name.removeprefix("text_model.")
    if component != "unet":  # diffusers' save_attn_procs and AnimateDiff's own code name none
        name = key
    if ".temporal_transformer." in name and "pos_encoder" not in name:
        (name,) = convert_animatediff_checkpoint_to_diffusers({name: None})
    (name,) = convert_unet_state_dict_to_peft({name: None})
    return "unet", name


def _convert_ldm_name(module: str, layers_per_block: int) -> str:
    """Return the diffusers name of a module of the original UNet; itself if there is none.

    One key at a time: given all, diffusers' converter takes input_blocks_10 for input_blocks_1.
    """
    config = SimpleNamespace(layers_per_block=layers_per_block)
    try:
        (key,) = _maybe_map_sgm_blocks_to_diffusers(
            {f"lora_unet_{module}.lora_down.weight": None}, config
        )
    except (ValueError, IndexError):  # no such block: reported as not of this model
        return module
    (name,) = convert_unet_state_dict_to_peft({_convert_unet_lora_key(key): None})
    name = name.removesuffix(".lora_A.weight")
    return MISTAKEN_UPSAMPLER.sub(r"\1.upsamplers.0.conv", name)


def _make_part(
    module: str,
    keys: Mapping[str, str],
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    label: str,
) -> LoraPart:
    """Return the part of one module, or raise if its matrices do not make one."""
    some = next(iter(keys.values()))
    for role in ("down", "up"):
        if role not in keys:
            raise CheckpointError(
                f"{label} has {some} without the {role} matrix to it: the file is not whole"
            )
    down, up = tensors[keys["down"]], tensors[keys["up"]]
    mid = tensors[keys["mid"]] if "mid" in keys else None
    rank = down.shape[0] if down.ndim else 0
    fits = down.ndim >= 2 and up.ndim >= 2 and up.shape[1] == rank > 0 and _is_1x1(up)
    if mid is not None:
        fits = fits and mid.ndim > 2 and mid.shape[:2] == (rank, rank) and _is_1x1(down)
    if not fits or ("alpha" in keys and tensors[keys["alpha"]].numel() != 1):
        shapes = ", ".join(f"{role} {list(tensors[key].shape)}" for role, key in keys.items())
        raise CheckpointError(
            f"{label} has matrices that do not make a LoRA at {some} ({shapes}): the file is "
            "damaged, or is no plain LoRA"
        )
    try:
        alpha = tensors[keys["alpha"]] if "alpha" in keys else _read_alpha(config, module, rank)
        scaling = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (AttributeError, TypeError, ValueError, re.error) as err:
        raise CheckpointError(
            f"{label} has a peft configuration that gives no alpha for {module} ({err}): save the "
            "LoRA again"
        ) from err
    return LoraPart(keys["down"], down, up, mid, scaling)


def _is_1x1(matrix: torch.Tensor) -> bool:
    """Return whether a matrix is that of a linear layer or of a 1x1 convolution."""
    return math.prod(matrix.shape[2:]) == 1


def _read_alpha(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return the alpha of a module by a peft configuration: as the rank, if it has none.

    Source: peft.utils.other.get_pattern_key, which peft calls for each module.
    """
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(alpha)
    return float(config.get("lora_alpha", rank))


def _select(peft_config: Mapping[str, Any], component: str) -> dict[str, Any]:
    """Return the settings of one component."""
    prefix = f"{component}."
    return {
        key.removeprefix(prefix): value
        for key, value in peft_config.items()
        if key.startswith(prefix)
    }
