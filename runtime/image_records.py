"""How a bundle says that an image is prepared for its graphs.

The operations, by `kind`. Those on 8-bit pixels come first; a size is in pixels, or the text
"height" or "width", which stands for that of the clip.

    resize            8-bit: to height x width, whatever its shape, with `filter`
    resize_and_crop   8-bit: with `filter` to the smallest size that covers height x width, then its
                      middle is cut out
    blur_and_resize   8-bit to floats from 0 to 1: a Gaussian blur that takes out what the smaller
                      size cannot hold, then bicubic with aligned corners to height x width
    normalize         to floats: (pixel - mean) / std for each channel, pixels from 0 to 1

`filter` is one of "box", "bilinear", "bicubic" and "lanczos", as Pillow has them. What comes out of
the last operation is float32 [1, 3, height, width]; 8-bit pixels become floats from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_OPERATIONS = ("resize", "resize_and_crop", "blur_and_resize", "normalize")
IMAGE_FILTERS = ("box", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class ImageOperation:
    """One operation on an image; it has the fields that its `kind` needs."""

    kind: str
    height: int | str | None = None
    width: int | str | None = None
    filter: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ImageRecord:
    """The operations that make a graph input out of an image, in their order."""

    operations: tuple[ImageOperation, ...]
