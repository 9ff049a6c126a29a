"""Name LoRA files on the command line, open them, and read the shapes of a model's weights."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mutoscope.export.errors import CheckpointError
from mutoscope.export.hub import HUB_FILE, fetch_file
from mutoscope.export.weight_files import (
    PICKLE_SUFFIXES,
    SAFETENSORS,
    find_weight_files,
    read_shapes,
)

# Under this key a file's header has the peft configuration that diffusers saves beside a LoRA.
PEFT_METADATA_KEY = "lora_adapter_metadata"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file that is there, and how strongly it is to be fused (1 = as trained)."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class LoraContent:
    """What a LoRA file holds.

    Attributes:
        tensors: Its tensors by name, as they are stored.
        peft_config: The peft configuration in its header, keys "COMPONENT.SETTING"; empty if none.
        sha256: The digest of the file, in hexadecimal.
    """

    tensors: dict[str, torch.Tensor]
    peft_config: dict[str, Any]
    sha256: str


def parse_lora(text: str) -> LoraFile:
    """Return the file and the scale that `FILE[:SCALE]` names.

    FILE may itself contain colons: what follows the last one is the scale only if it is a number
    and what precedes it is a file, or ends in .safetensors. A file on the hub is given as
    owner/name/FILE.safetensors, and fetched.

    Raises:
        CheckpointError: There is no such file, it is no safetensors file, or the scale is no finite
            number.
    """
    name, scale = _split_scale(text)
    if not math.isfinite(scale):
        raise CheckpointError(
            f"the scale of the LoRA {name} is {scale}: use a finite number, such as 0.8"
        )
    path = Path(name)
    if not path.exists() and HUB_FILE.fullmatch(name):
        path = fetch_file(name)
    _check_lora_file(path)
    return LoraFile(path, scale)


def _split_scale(text: str) -> tuple[str, float]:
    """Return FILE and SCALE of `FILE[:SCALE]`."""
    before, _, after = text.rpartition(":")
    named = Path(before).is_file() or before.endswith(SAFETENSORS)
    if not before or not named or Path(text).is_file():
        return text, 1.0
    try:
        return before, float(after)
    except ValueError as err:
        raise CheckpointError(
            f"the scale of the LoRA {before} is {after!r}, which is no number: write it as "
            f"{Path(before).name}:0.8, or leave it out for 1"
        ) from err


def read_lora_file(path: Path) -> LoraContent:
    """Return the content of a LoRA file; raises `CheckpointError` if it is damaged."""
    from safetensors import SafetensorError, safe_open

    _check_lora_file(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            peft_config = json.loads((file.metadata() or {}).get(PEFT_METADATA_KEY) or "{}")
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except (OSError, SafetensorError, ValueError) as err:
        reason = str(err).strip().splitlines()
        raise CheckpointError(
            f"{path.name} cannot be read as safetensors ({reason[0] if reason else 'damaged'}): "
            "fetch the file again"
        ) from err
    if not isinstance(peft_config, dict):
        raise CheckpointError(
            f"{path.name} has a {PEFT_METADATA_KEY} that is no object: save it again"
        )
    return LoraContent(tensors, peft_config, digest.hexdigest())


def read_weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a model by its name, from the headers of its files alone.

    Raises:
        CheckpointError: The folder has no safetensors, or a damaged one.
    """
    return read_shapes(find_weight_files(folder).paths)


def _check_lora_file(path: Path) -> None:
    """Refuse what is no safetensors file, and say what to do."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"the LoRA {path} is a pickle file, which can run code when it is opened; only "
            "safetensors are read: take the .safetensors of it, or convert it with "
            f'safetensors.torch.save_file(torch.load("{path.name}", weights_only=True), '
            f'"{path.stem}{SAFETENSORS}")'
        )
    if path.is_dir():
        found = sorted(path.glob(f"*{SAFETENSORS}"))
        raise CheckpointError(
            f"the LoRA {path} is a folder: give the {SAFETENSORS} file in it"
            + (f", such as {found[0]}" if found else "")
        )
    if not path.is_file():
        raise CheckpointError(
            f"the LoRA {path} does not exist: give a {SAFETENSORS} file, with :SCALE after it if "
            "the scale is not 1"
        )
    if path.suffix.lower() != SAFETENSORS:
        raise CheckpointError(
            f"the LoRA {path} does not end in {SAFETENSORS}: only such files are read; convert it, "
            "or rename it if it is one"
        )
