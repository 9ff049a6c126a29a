"""Read the frames of a clip from any file that `Video.save` writes, and from other videos."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mutoscope.runtime.errors import ParameterError

U8: TypeAlias = NDArray[np.uint8]

_PILLOW_ENDINGS = (".gif", ".webp", ".apng", ".png")
_FRAME_ENDINGS = (".png", ".jpg", ".jpeg")
_RULE = "uint8 [F, H, W, 3]"
_WAY_OUT = "give a .mp4, .webm, .gif, .webp, .apng, .npy, or a folder of .png"
# What Pillow and numpy raise on a damaged file depends on its format and on where the damage is.
_DAMAGE = (SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError)


def load_clip(path: str | os.PathLike[str]) -> U8:
    """Return the frames of a clip, uint8 [F, H, W, 3] RGB.

    Args:
        path: A video that FFmpeg reads, an animated image, a `.npy` of frames, or a folder of
            `.png` or `.jpg` that are taken in the order of their names.

    Raises:
        ParameterError: It cannot be read, is no clip, or its frames are of several sizes.
    """
    source = Path(path)
    try:
        frames = _read(source)
    except Image.DecompressionBombError as err:
        raise ParameterError(f"{path} has more pixels than Pillow reads: make it smaller") from err
    except (av.FFmpegError, OSError) as err:
        raise ParameterError(f"{path} cannot be read ({err.strerror or err}): {_WAY_OUT}") from err
    except _DAMAGE as err:
        raise ParameterError(f"{path} is damaged or not a clip: {_WAY_OUT}") from err
    return frames


def _read(path: Path) -> U8:
    ending = path.suffix.lower()
    if path.is_dir():
        return _stack(path, _read_folder(path))
    if ending == ".npy":
        return _read_array(path)
    return _stack(path, _read_images(path) if ending in _PILLOW_ENDINGS else _read_video(path))


def _read_video(path: Path) -> Iterator[U8]:
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ParameterError(f"{path} has no video in it: {_WAY_OUT}")
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def _read_images(path: Path) -> Iterator[U8]:
    with Image.open(path) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            yield np.asarray(image.convert("RGB"))


def _read_folder(path: Path) -> Iterator[U8]:
    for name in sorted(path.iterdir()):
        if name.suffix.lower() in _FRAME_ENDINGS and not name.name.startswith("."):
            with Image.open(name) as image:
                yield np.asarray(image.convert("RGB"))


def _read_array(path: Path) -> U8:
    with path.open("rb") as file:
        frames = np.lib.format.read_array(file, allow_pickle=False)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise ParameterError(
            f"{path} holds {frames.dtype}{list(frames.shape)}; a clip is {_RULE}: save frames, not "
            "latents"
        )
    return frames


def _stack(path: Path, frames: Iterator[U8]) -> U8:
    listed: Sequence[U8] = list(frames)
    if not listed:
        raise ParameterError(f"{path} has no frames in it: {_WAY_OUT}")
    first = listed[0].shape
    for number, frame in enumerate(listed, start=1):
        if frame.shape != first:
            raise ParameterError(
                f"{path} has frames of several sizes: frame 1 is {first[0]} x {first[1]}, frame "
                f"{number} is {frame.shape[0]} x {frame.shape[1]}: give frames of one size"
            )
    return np.stack(listed)
