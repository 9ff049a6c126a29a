"""Files of clean latents, to be decoded later or elsewhere.

`.npz` holds the array `latents` and, as JSON text, `info`: how they were made. `.npy` is the array
alone, for other programs.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mutoscope.runtime.errors import OutputError, ParameterError
from mutoscope.runtime.outputs import check_replaceable, check_writable, new_file
from mutoscope.runtime.sampler import F32

ENDINGS = (".npz", ".npy")
_LATENTS, _INFO = "latents", "info"
_RULE = "float32 [1, C, F, h, w]"


@dataclass(frozen=True)
class SavedLatents:
    """What a file of latents holds.

    Attributes:
        latents: Clean latents, float32 [1, C, F, h, w].
        info: How they were made ("prompt", "seed", "frame_rate", "bundle"), as far as it is known.
    """

    latents: F32
    info: dict[str, Any] = field(default_factory=dict)


def check_latents_output(path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Return `path` if latents can be written there; for use before the work.

    Raises:
        OutputError: The ending is unknown, the path exists, or its folder is absent or not
            writable.
    """
    target = Path(path)
    if target.suffix.lower() not in ENDINGS:
        raise OutputError(f"{path} has an unknown ending for latents: use {' or '.join(ENDINGS)}")
    check_writable(target)
    if target.is_dir():
        raise OutputError(f"{path} is a folder: use another name")
    check_replaceable(target, force=force, is_ours=lambda name: False)
    return target


def save_latents(
    path: str | os.PathLike[str],
    latents: F32,
    info: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
) -> Path:
    """Write clean latents to a file, whole or not at all, and return its path.

    Args:
        path: `.npz`, or `.npy` for the array alone.
        latents: float32 [1, C, F, h, w].
        info: What JSON can hold; see `SavedLatents`.
        force: Replace what is there.

    Raises:
        OutputError: As `check_latents_output`, or the disk is full.
        ParameterError: These are not latents.
    """
    target = check_latents_output(path, force=force)
    _check_latents("latents", latents)
    latents = np.ascontiguousarray(latents)
    with new_file(target) as temporary, temporary.open("wb") as file:
        if target.suffix.lower() == ".npy":
            # np.save would write with the C library, and tell of a full disk without an errno.
            header = np.lib.format.header_data_from_array_1_0(latents)
            np.lib.format.write_array_header_1_0(file, header)
            file.write(latents.data)
        else:
            text = np.array(json.dumps(dict(info or {})))
            np.savez(file, latents=latents, info=text)
    return target


def load_latents(path: str | os.PathLike[str], *, num_channels: int | None = None) -> SavedLatents:
    """Return the latents in a file.

    Args:
        path: As `save_latents` wrote it, or any `.npy` of such an array.
        num_channels: How many channels the latents of the bundle have; None takes any.

    Raises:
        ParameterError: The file cannot be read, or holds no latents of this kind.
    """
    try:
        latents, info = _read(Path(path))
    except OSError as err:
        raise ParameterError(f"{path} cannot be read: {err.strerror or err}") from err
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as err:
        raise ParameterError(
            f"{path} is not a file of latents: make one with mutoscope generate --save-latents"
        ) from err
    _check_latents(str(path), latents)
    if num_channels is not None and latents.shape[1] != num_channels:
        raise ParameterError(
            f"{path} has latents of {latents.shape[1]} channels; this bundle's have "
            f"{num_channels}: use the bundle that made them"
        )
    return SavedLatents(latents, info)


def _read(path: Path) -> tuple[F32, dict[str, Any]]:
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, {}
        with loaded:
            latents = loaded[_LATENTS]
            info = json.loads(str(loaded[_INFO])) if _INFO in loaded else {}
    if not isinstance(info, dict):
        raise ValueError("info is not an object")
    return latents, info


def _check_latents(name: str, latents: F32) -> None:
    if not isinstance(latents, np.ndarray):
        raise ParameterError(f"{name} is a {type(latents).__name__}; it must be a numpy {_RULE}")
    shape = latents.shape
    if latents.dtype != np.float32 or len(shape) != 5 or shape[0] != 1 or not min(shape):
        raise ParameterError(f"{name} holds {latents.dtype}{list(shape)}; it must be {_RULE}")
    if not np.isfinite(latents).all():
        raise ParameterError(
            f"{name} has values that are not finite: generate it again, with a bundle that "
            "mutoscope verify passes"
        )
