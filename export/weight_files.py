"""The weight files of a component: which to read, whether they are whole, and their tensors.

Names are those of diffusers and transformers: one file or shards with an index, each plain or with
a variant (`fp16`, `non_ema`, ...) in its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutoscope.export.errors import CheckpointError
from mutoscope.export.hub import name_component

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
SAFETENSORS = ".safetensors"
# An open file is a mapping whose read pages stay in memory until it is closed. Of a half-precision
# file, whose tensors are copied to float32, that would be half a model more.
TENSORS_PER_MAPPING = 64
_LFS_POINTER = b"version https://git-lfs"
_STEM = r"(?:diffusion_pytorch_model|model)"
_SINGLE = re.compile(rf"{_STEM}(?:\.(?P<variant>\w+))?\.safetensors")
_SHARD = re.compile(
    rf"{_STEM}(?:\.(?P<variant>\w+))?-\d+-of-\d+(?:\.(?P<old_variant>\w+))?\.safetensors"
)
# The variant stands before "index" in files of older versions of diffusers.
_INDEX = re.compile(
    rf"{_STEM}\.safetensors(?:\.(?P<old_variant>\w+))?\.index(?:\.(?P<variant>\w+))?\.json"
)


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a component's weights.

    Attributes:
        variant: As `from_pretrained` takes it; None for plain names.
        paths: The safetensors files, each there and not cut off.
    """

    variant: str | None
    paths: tuple[Path, ...]


def find_weight_files(folder: Path) -> WeightFiles:
    """Return the weights of a component: the plain ones, else fp16, else another variant.

    Raises:
        CheckpointError: There are no weights, or only in a pickle file, which is never opened; or
            a file is missing or damaged.
    """
    where = name_component(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    found: dict[str | None, tuple[str, re.Match[str]]] = {}
    for pattern in (_SHARD, _SINGLE, _INDEX):  # the last one holds: an index names its shards
        for name in names:
            match = pattern.fullmatch(name)
            if match:
                groups = match.groupdict()
                found[groups["variant"] or groups.get("old_variant")] = (name, match)
    if not found:
        raise CheckpointError(_explain_no_weights(where, names))
    variant = min(found, key=lambda key: (key is not None, key != "fp16", key or ""))
    name, match = found[variant]
    if match.re is _SHARD:
        raise CheckpointError(
            f"{where} has {name} but no {SAFETENSORS}.index.json that names the shards: copy or "
            "download the folder again"
        )
    paths = _list_shards(folder / name) if match.re is _INDEX else (folder / name,)
    for path in paths:
        check_safetensors(path, f"{where}/{path.name}")
    return WeightFiles(variant, paths)


def check_safetensors(path: Path, where: str | None = None) -> None:
    """Raise `CheckpointError` for a pickle or a file that is absent, damaged or cut off.

    Args:
        path: The file; only its header is read.
        where: What messages call it; its name if None.
    """
    where = where or path.name
    if path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(explain_pickle(where))
    with _open_safetensors(path, where):
        pass


def explain_pickle(where: str) -> str:
    """Return the one line that refuses a pickle file."""
    return (
        f"{where} is a pickle file, which can run code when it is opened; only safetensors are "
        "read: convert it, where you trust it, with pipeline.save_pretrained(FOLDER, "
        "safe_serialization=True)"
    )


def read_shapes(paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor; only the headers of the files are read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with _open_safetensors(path, path.name) as file:
            shapes.update({key: tuple(file.get_slice(key).get_shape()) for key in file.keys()})  # noqa: SIM118
    return shapes


def read_tensors(paths: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Yield the name and the float32 tensor of each weight; integers stay what they are.

    A float32 tensor is a view into the mapped file, so that it takes no memory of its own.
    """
    for path in paths:
        with _open_safetensors(path, path.name) as file:
            keys = list(file.keys())
        for start in range(0, len(keys), TENSORS_PER_MAPPING):
            with _open_safetensors(path, path.name) as file:
                for key in keys[start : start + TENSORS_PER_MAPPING]:
                    tensor = file.get_tensor(key)
                    yield key, tensor.float() if tensor.is_floating_point() else tensor


def _open_safetensors(path: Path, where: str) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as err:
        if _is_lfs_pointer(path):
            raise CheckpointError(
                f"{where} is only a pointer of git-lfs, without the weights: run git lfs pull in "
                "the folder, or download it again"
            ) from err
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise CheckpointError(
            f"{where} is not a whole safetensors file ({reason}): copy or download it again"
        ) from err


def _is_lfs_pointer(path: Path) -> bool:
    """Return whether a clone without git-lfs left a text in the place of the file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def _list_shards(index: Path) -> tuple[Path, ...]:
    """Return the files that an index names, each of which must be there."""
    where = name_component(index.parent)
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise CheckpointError(
            f"{where}/{index.name} names no shards (damaged?): copy or download it again"
        ) from err
    paths = tuple(index.parent / name for name in sorted(names))
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{where} lacks {missing[0]} ({len(missing)} of its {len(paths)} shards): copy or "
            "download the folder again"
        )
    return paths


def _explain_no_weights(where: str, names: list[str]) -> str:
    """Return the one line for a folder without weights of a known name."""
    others = [name for name in names if name.endswith(SAFETENSORS)]
    if others:
        return (
            f"{where}/{others[0]} has no name that diffusers finds: rename it to "
            f"diffusion_pytorch_model{SAFETENSORS} (of a text or image encoder: model{SAFETENSORS})"
        )
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        return explain_pickle(f"{where}/{pickles[0]}")
    return f"{where} has no weights (*{SAFETENSORS}): save the pipeline again"
