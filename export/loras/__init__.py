"""LoRAs: read from safetensors in every layout that people have, fused into weights at export."""

from mutoscope.export.loras.files import LoraFile, parse_lora, read_weight_shapes
from mutoscope.export.loras.fusion import (
    Lora,
    check_lora_components,
    check_loras,
    describe_loras,
    fuse_loras,
    read_loras,
)
from mutoscope.export.loras.layouts import LoraPart

__all__ = [
    "Lora",
    "LoraFile",
    "LoraPart",
    "check_lora_components",
    "check_loras",
    "describe_loras",
    "fuse_loras",
    "parse_lora",
    "read_loras",
    "read_weight_shapes",
]
