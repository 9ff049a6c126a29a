"""Read an image, and prepare it for a graph as the manifest says; numpy and Pillow only.

Source: diffusers.utils.load_image, VideoProcessor.preprocess, and the functions of
StableVideoDiffusionPipeline and I2VGenXLPipeline (tests/runtime/test_images.py).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mutoscope.runtime.errors import BundleError, ParameterError
from mutoscope.runtime.image_records import ImageOperation, ImageRecord

F32: TypeAlias = NDArray[np.float32]
ImageInput: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[Any]"

# What Pillow raises on a damaged file depends on its format and on where the damage is.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    IndexError,
    KeyError,
    TypeError,
)
_WAY_OUT = "give a picture such as a .png or .jpg"
_UPGRADE = "pip install --upgrade mutoscope"
_FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# The steepness of bicubic interpolation in torch and OpenCV.
_CUBIC_A = -0.75
# 400 MB as 8-bit RGB. A photo that covers a clip of 4096 x 4096 from 3:1 has a third of it.
_MAXIMUM_COVER_PIXELS = 2**27
# Rows of a result that are made at once: few enough that the input rows they need fit in a cache.
_BLOCK = 16


def load_image(image: ImageInput) -> Image.Image:
    """Return an image as 8-bit RGB, turned upright as its EXIF orientation says: a new one.

    Transparency is dropped, palettes and other colour spaces are converted as Pillow does it; of an
    animation it is the first frame.

    Args:
        image: A file, a PIL image, or uint8 [H, W, 3] RGB.

    Raises:
        ParameterError: It is not an image, is damaged, or has no pixels.
    """
    if isinstance(image, Image.Image):
        return _convert(image, f"a PIL image of mode {image.mode}")
    if isinstance(image, np.ndarray):
        return _convert(_open_array(image), "an array")
    if not isinstance(image, str | os.PathLike):
        raise ParameterError(
            f"image is a {type(image).__name__}; it must be a path, a PIL image or a numpy uint8 "
            "[H, W, 3]"
        )
    path = Path(image)
    try:
        with Image.open(path) as opened:
            return _convert(opened, str(path))
    except FileNotFoundError as err:
        raise ParameterError(f"image is {path}, which does not exist: {_WAY_OUT}") from err
    except (IsADirectoryError, PermissionError) as err:
        raise ParameterError(
            f"image is {path}, which cannot be read ({err.strerror}): {_WAY_OUT}"
        ) from err
    except UnidentifiedImageError as err:
        raise ParameterError(
            f"image is {path}, which is not an image that Pillow knows: {_WAY_OUT}"
        ) from err
    except Image.DecompressionBombError as err:
        raise ParameterError(
            f"image is {path}, which has more pixels than Pillow reads (2 * "
            f"{Image.MAX_IMAGE_PIXELS}): make it smaller"
        ) from err
    except _DAMAGE as err:
        raise ParameterError(f"image is {path}, which cannot be opened: {_WAY_OUT}") from err


def prepare_image(image: Image.Image, record: ImageRecord, *, height: int, width: int) -> F32:
    """Return what a graph takes for an image: float32 [1, 3, H, W], a new array.

    Args:
        image: 8-bit RGB, as `load_image` returns it.
        record: The operations, in their order.
        height: Of the clip, in pixels, which operations may name.
        width: The same.

    Raises:
        BundleError: An operation is unknown, or lacks what it needs.
        ParameterError: The image is too small for an operation.
    """
    pixels: Image.Image | F32 = image
    for operation in record.operations:
        if operation.kind not in _OPERATIONS:
            raise BundleError(
                f"manifest.json: images: operation {operation.kind!r} is unknown (known: "
                f"{', '.join(_OPERATIONS)}): {_UPGRADE}"
            )
        pixels = _OPERATIONS[operation.kind](pixels, _Arguments(operation, height, width))
    return np.ascontiguousarray(_make_floats(pixels).transpose(2, 0, 1)[None])


@dataclass(frozen=True)
class _Arguments:
    """The fields of an operation, checked when they are read."""

    operation: ImageOperation
    clip_height: int
    clip_width: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._read_size(self.operation.height), self._read_size(self.operation.width)

    @property
    def resample(self) -> Image.Resampling:
        """The filter."""
        name = self.operation.filter
        if name not in _FILTERS:
            raise self._make_error(f"filter {name!r} is unknown (known: {', '.join(_FILTERS)})")
        return _FILTERS[name]

    def read_channels(self, name: str) -> F32:
        """Return mean or std, float32 [3]."""
        values = getattr(self.operation, name)
        if values is None or len(values) != 3:
            raise self._make_error(f"{name} must be three numbers")
        return np.array(values, dtype=np.float32)

    def read_image(self, pixels: Image.Image | F32) -> Image.Image:
        """Return the pixels, which must be 8-bit still."""
        if not isinstance(pixels, Image.Image):
            raise self._make_error("it takes 8-bit pixels, and an operation before it made floats")
        return pixels

    def _read_size(self, size: int | str | None) -> int:
        clip = {"height": self.clip_height, "width": self.clip_width}
        pixels = clip.get(size) if isinstance(size, str) else size
        if pixels is None or pixels < 1:
            raise self._make_error(f"size {size!r} must be a number of pixels, height or width")
        return pixels

    def _make_error(self, problem: str) -> BundleError:
        return BundleError(f"manifest.json: images: {self.operation.kind}: {problem}: {_UPGRADE}")


def _resize(pixels: Image.Image | F32, arguments: _Arguments) -> Image.Image:
    height, width = arguments.size
    return arguments.read_image(pixels).resize((width, height), resample=arguments.resample)


def _resize_and_crop(pixels: Image.Image | F32, arguments: _Arguments) -> Image.Image:
    """Cover the size and cut its middle out, rounded as I2VGen-XL rounds.

    The floor of a quotient of floats can come out one below the size; Pillow then fills the edge
    with black, and so does diffusers.
    """
    image = arguments.read_image(pixels)
    height, width = arguments.size
    scale = min(image.width / width, image.height / height)
    size = (max(1, round(image.width // scale)), max(1, round(image.height // scale)))
    if size[0] * size[1] > _MAXIMUM_COVER_PIXELS:
        raise ParameterError(
            f"image is {image.width} x {image.height} pixels and would be {size[0]} x {size[1]} to "
            f"cover {width} x {height}: use one that is less narrow"
        )
    covering = image.resize(size, resample=arguments.resample)
    left, top = (covering.width - width) // 2, (covering.height - height) // 2
    return covering.crop((left, top, left + width, top + height))


def _blur_and_resize(pixels: Image.Image | F32, arguments: _Arguments) -> F32:
    """Blur, then interpolate; both are linear and separable, so each axis takes one product."""
    image = arguments.read_image(pixels)
    if min(image.size) < 2:
        raise ParameterError(
            f"image is {image.width} x {image.height} pixels; this bundle needs at least 2 x 2: "
            "use a larger one"
        )
    height, width = arguments.size
    rows = _multiply(_make_blur_weights(image.height, height), np.asarray(image))  # [h, W, 3]
    columns = _multiply(_make_blur_weights(image.width, width), rows.transpose(1, 0, 2))
    return columns.transpose(1, 0, 2) / np.float32(255)  # [h, w, 3]


def _normalize(pixels: Image.Image | F32, arguments: _Arguments) -> F32:
    mean, std = arguments.read_channels("mean"), arguments.read_channels("std")
    return np.asarray((_make_floats(pixels) - mean) / std, dtype=np.float32)


_OPERATIONS: dict[str, Callable[[Image.Image | F32, _Arguments], Image.Image | F32]] = {
    "resize": _resize,
    "resize_and_crop": _resize_and_crop,
    "blur_and_resize": _blur_and_resize,
    "normalize": _normalize,
}


def _make_floats(pixels: Image.Image | F32) -> F32:
    """Return float32 [H, W, 3]; 8-bit pixels become 0 to 1."""
    if isinstance(pixels, Image.Image):
        return np.asarray(pixels).astype(np.float32) / np.float32(255)
    return pixels


def _multiply(weights: F32, pixels: NDArray[Any]) -> F32:
    """Return weights [n, N] times pixels [N, M, 3], float32 [n, M, 3].

    A row of weights is zero but for a few neighbours, so a block of rows takes a strip of pixels.
    """
    flat = pixels.reshape(len(pixels), -1)
    product = np.empty((len(weights), flat.shape[1]), dtype=np.float32)
    for start in range(0, len(weights), _BLOCK):
        rows = weights[start : start + _BLOCK]
        used = np.flatnonzero(rows.any(axis=0))
        strip = slice(used[0], used[-1] + 1)
        np.matmul(
            rows[:, strip],
            flat[strip].astype(np.float32, copy=False),
            out=product[start : start + _BLOCK],
        )
    return product.reshape(len(weights), *pixels.shape[1:])


def _make_blur_weights(old: int, new: int) -> F32:
    """Return float32 [new, old]: what each old pixel of a line is worth in each new one.

    Positions are computed in float32, as torch does: on a long line their rounding shows.
    """
    kernel = _make_gaussian(max((old / new - 1.0) / 2.0, 0.001))
    radius = len(kernel) // 2
    scale = np.float32(old - 1) / np.float32(new - 1) if new > 1 else np.float32(0)
    positions = scale * np.arange(new, dtype=np.float32)
    first = np.floor(positions)
    taps = first.astype(int)[:, None] + np.arange(-1, 3)  # [new, 4]
    cubic = _make_cubic(positions - first)
    # Interpolation repeats the pixels at the edge, the blur before it mirrors them.
    sources = taps.clip(0, old - 1)[..., None] + np.arange(-radius, radius + 1)  # [new, 4, K]
    sources = np.abs(sources)
    sources = np.where(sources > old - 1, 2 * (old - 1) - sources, sources)
    weights = np.zeros((new, old))
    lines = np.broadcast_to(np.arange(new)[:, None, None], sources.shape)
    np.add.at(weights, (lines, sources), cubic[..., None] * kernel)
    return weights.astype(np.float32)


def _make_gaussian(sigma: float) -> NDArray[np.float64]:
    """Return the kernel, of odd length 4 sigma but at least 3, sum 1."""
    length = int(max(4.0 * sigma, 3))
    length += 1 - length % 2
    x = np.arange(length) - length // 2
    kernel = np.exp(-(x**2) / (2 * sigma**2))
    return np.asarray(kernel / kernel.sum())


def _make_cubic(fraction: F32) -> NDArray[np.float64]:
    """Return the weights [N, 4] of the pixels around a position, by Keys' cubic convolution."""
    t = fraction.astype(np.float64)[:, None]
    near = np.concatenate([t, 1 - t], axis=1)
    far = near + 1
    inner = ((_CUBIC_A + 2) * near - (_CUBIC_A + 3)) * near**2 + 1
    outer = ((_CUBIC_A * far - 5 * _CUBIC_A) * far + 8 * _CUBIC_A) * far - 4 * _CUBIC_A
    return np.stack([outer[:, 0], inner[:, 0], inner[:, 1], outer[:, 1]], axis=1)


def _open_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ParameterError(
            f"image is {array.dtype}{list(array.shape)}; an array must be uint8 [H, W, 3]"
        )
    return Image.fromarray(array)


def _convert(image: Image.Image, name: str) -> Image.Image:
    """Return a new upright RGB image."""
    if not all(image.size):
        raise ParameterError(f"image is {name} of {image.width} x {image.height}: {_WAY_OUT}")
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except _DAMAGE as err:
        raise ParameterError(
            f"image is {name}, which cannot be read to its end (damaged?): {_WAY_OUT}"
        ) from err
