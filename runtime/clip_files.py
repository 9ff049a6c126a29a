"""Read the frames of a clip from any file that `Video.save` writes, and from other videos."""

from __future__ import annotations

import math
import os
import struct
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

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
_IMAGE_WAY_OUT = "write it again, or take it out of the folder"
# What Pillow and numpy raise on a damaged file depends on its format and on where the damage is.
_DAMAGE = (
    *(SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError),
    *(OverflowError, RecursionError, tokenize.TokenError),
)


def load_clip(path: str | os.PathLike[str]) -> U8:
    """Return the frames of a clip, uint8 [F, H, W, 3] RGB.

    Args:
        path: A video that FFmpeg reads, an animated image, a `.npy` of frames, or a folder of
            `.png` or `.jpg` that are taken in the order of their names.

    Raises:
        ParameterError: It cannot be read, is no clip, or its frames are of several sizes.
    """
    with _naming(path, "a clip", _WAY_OUT):
        return _read(Path(path))


@contextmanager
def _naming(path: str | os.PathLike[str], kind: str, way_out: str) -> Iterator[None]:
    """Raise `ParameterError` with the name of what is read, in place of what readers raise."""
    try:
        yield
    except Image.DecompressionBombError as err:
        raise ParameterError(f"{path} has more pixels than Pillow reads: make it smaller") from err
    except (av.FFmpegError, OSError) as err:
        raise ParameterError(f"{path} cannot be read ({err.strerror or err}): {way_out}") from err
    except _DAMAGE as err:
        raise ParameterError(f"{path} is damaged or not {kind}: {way_out}") from err
    except MemoryError as err:
        raise ParameterError(
            f"{path} takes more memory than there is: give a shorter or smaller clip"
        ) from err


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
            with _naming(name, "an image", _IMAGE_WAY_OUT), Image.open(name) as image:
                frame = np.asarray(image.convert("RGB"))
            yield frame


def _read_array(path: Path) -> U8:
    with path.open("rb") as file:
        shape, dtype = _read_header(file)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
            raise ParameterError(
                f"{path} holds {dtype}{list(shape)}; a clip is {_RULE}: save frames, not latents"
            )
        # Before numpy asks for as much memory as the header says.
        held = path.stat().st_size - file.tell()
        if held < math.prod(shape):
            raise ParameterError(
                f"{path} holds {held} bytes of frames; its header says {math.prod(shape)}, "
                f"{dtype}{list(shape)}: {_WAY_OUT}"
            )
        file.seek(0)
        frames: U8 = np.lib.format.read_array(file, allow_pickle=False)
    return frames


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the type that a `.npy` says it has."""
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


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
