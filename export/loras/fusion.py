"""Check LoRAs against the weights of a model, and add them to the weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mutoscope.export.errors import CheckpointError
from mutoscope.export.loras.files import LoraFile, read_lora_file
from mutoscope.export.loras.layouts import LoraPart, Parts, name_some, read_parts


@dataclass(frozen=True)
class Lora:
    """A LoRA that was read.

    Attributes:
        file: Where it came from, and how strongly it is to be fused.
        sha256: The digest of the file, in hexadecimal.
        parts: For each component ("unet", "text_encoder", "text_encoder_2") that it changes, what
            it adds to each module.
    """

    file: LoraFile
    sha256: str
    parts: Parts

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"the LoRA {self.file.path.name}"


def read_loras(files: Sequence[LoraFile], *, layers_per_block: int = 2) -> list[Lora]:
    """Return the LoRAs in the files, in their order.

    Args:
        files: The files, from `parse_lora`.
        layers_per_block: The setting of the UNet; LoRAs with the block names of the original
            Stable Diffusion code number the blocks by it.

    Raises:
        CheckpointError: A file is damaged, is no LoRA, or is one of a kind that cannot be fused.
    """
    loras = []
    for file in files:
        content = read_lora_file(file.path)
        parts = read_parts(
            content.tensors,
            content.peft_config,
            label=f"the LoRA {file.path.name}",
            layers_per_block=layers_per_block,
        )
        loras.append(Lora(file, content.sha256, parts))
    return loras


def check_lora_components(loras: Sequence[Lora], components: Collection[str]) -> None:
    """Raise `CheckpointError` if a LoRA changes a component that the model does not have."""
    for lora in loras:
        for component, parts in lora.parts.items():
            if component not in components:
                raise CheckpointError(
                    f"{lora.label} changes {len(parts)} weights of a {component}, which this model "
                    "does not have: it is a LoRA of another model"
                )


def check_loras(
    loras: Sequence[Lora], component: str, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise `CheckpointError` unless every part of a LoRA for a component fits a weight of it.

    Args:
        loras: The LoRAs.
        component: "unet", "text_encoder" or "text_encoder_2".
        shapes: The shape of every weight of the component by its name, as `read_weight_shapes`
            returns it; of an image model and its motion adapter, both together.
    """
    for lora in loras:
        _match(lora, component, shapes)


def fuse_loras(module: torch.nn.Module, loras: Sequence[Lora], component: str) -> list[int]:
    """Add the LoRAs to the weights of a model in place; return how many each of them changed.

    Each weight becomes W + scale * (alpha / rank) * up @ down, computed in float32.

    Raises:
        CheckpointError: A part does not fit (then nothing was changed), or gives values that are
            not finite.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, section 4.1;
    diffusers' load_lora_weights and fuse_lora (tests/export/test_lora.py).
    """
    weights = dict(module.named_parameters())
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    matched = [_match(lora, component, shapes) for lora in loras]
    with torch.no_grad():
        for lora, parts in zip(loras, matched, strict=True):
            for name, part in parts.items():
                weight = weights[name]
                delta = lora.file.scale * part.make_delta().reshape(weight.shape)
                if not torch.isfinite(delta).all():
                    raise CheckpointError(
                        f"{lora.label} gives values that are not finite at {part.key}: the file is "
                        "damaged, or its training failed"
                    )
                weight.copy_(weight.float() + delta.to(weight.device))
    return [len(parts) for parts in matched]


def describe_loras(loras: Sequence[Lora]) -> list[dict[str, Any]]:
    """Return what a manifest says of the LoRAs: name without path, scale, sha256, weights fused."""
    return [
        {
            "file": lora.file.path.name,
            "scale": lora.file.scale,
            "sha256": lora.sha256,
            "fused_weights": {name: len(parts) for name, parts in sorted(lora.parts.items())},
        }
        for lora in loras
    ]


def _match(
    lora: Lora, component: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, LoraPart]:
    """Return the parts of a LoRA by the names of the weights that they change."""
    parts = lora.parts.get(component, {})
    weights = _index_modules(shapes)
    found: dict[str, LoraPart] = {}
    unmatched = []
    for name, part in parts.items():
        # kohya writes _ for every dot; no two modules of a model differ in that alone.
        weight = weights.get(name.replace(".", "_"))
        if weight is None:
            unmatched.append(part.key)
        elif weight in found:
            raise CheckpointError(
                f"{lora.label} changes {weight} twice, by {found[weight].key} and by {part.key}: "
                "it holds several LoRAs; save each in a file of its own"
            )
        else:
            found[weight] = part
    if unmatched:
        raise CheckpointError(
            f"{lora.label} has {len(unmatched)} of {len(parts)} weights for the {component} that "
            f"this model does not have{name_some(unmatched)}: it is a LoRA of another model"
        )
    for weight, part in found.items():
        if _squeeze(part.shape) != _squeeze(shapes[weight]):
            raise CheckpointError(
                f"{lora.label} does not fit the {component}: {part.key} makes "
                f"{list(part.shape)}, and {weight} is {list(shapes[weight])}: it is a LoRA of "
                "another model"
            )
    return found


def _index_modules(weights: Iterable[str]) -> dict[str, str]:
    """Return the name of each module's weight by the module's name with _ for every dot.

    "text_model." in front is left out, as newer transformers do and older ones did not.
    """
    suffix = ".weight"
    return {
        name.removesuffix(suffix).removeprefix("text_model.").replace(".", "_"): name
        for name in weights
        if name.endswith(suffix)
    }


def _squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a 1x1 convolution as that of the linear layer that it is."""
    return shape[:2] if all(size == 1 for size in shape[2:]) else shape
