"""Write pictures and what the Python runtime makes of them, for images_test.cpp.

    python tests/runtime/native/make_image_corpus.py image_corpus.bin

The file has one case after the other: a line of JSON, then the pixels of the picture if the case
has a new one (uint8 [H, W, 3]), then the expected array (float32). A case without an expected shape
has the message of the error instead.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from mutoscope.runtime.errors import BundleError, ParameterError
from mutoscope.runtime.image_records import IMAGE_FILTERS, ImageOperation, ImageRecord
from mutoscope.runtime.images import prepare_image
from mutoscope.runtime.json_records import write_record

# The two passes of resizing were in another order before.
MIN_PILLOW = 13
# Height and width: the smallest, odd ones, portrait, landscape, extreme.
IMAGE_SIZES = (
    (1, 1),
    (2, 3),
    (3, 2),
    (7, 5),
    (1, 40),
    (64, 64),
    (61, 480),
    (97, 800),
    (333, 150),
    (641, 479),
    (1080, 61),
)
# Those with 41 and 57 leave a cover a pixel short, so that an edge is black.
TARGET_SIZES = ((1, 1), (2, 3), (7, 5), (41, 57), (57, 41), (8, 184), (64, 64), (224, 224))
# Both sum in another order than torch does; sums are up to 1.3, and their rounding 2e-7 of that.
BLUR_TOLERANCE = 1e-6
# Normalising divides that by 0.26.
NORMALIZE_TOLERANCE = 4e-6
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP_NORMALIZE = ImageOperation("normalize", mean=CLIP_MEAN, std=CLIP_STD)
UPGRADES = ("pip install --upgrade mutoscope", "use a newer libmutoscope")


def draw(height: int, width: int) -> Image.Image:
    """Return a smooth picture with noise and hard edges on it."""
    random = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 5)], axis=-1)
    noise = random.integers(-60, 61, (height, width, 3))
    noise[random.random((height, width)) < 0.05] = 255
    noise[random.random((height, width)) < 0.05] = -255
    return Image.fromarray((127 + 80 * waves + noise).clip(0, 255).astype(np.uint8))


def list_records() -> Iterator[tuple[tuple[ImageOperation, ...], float]]:
    """Every operation with every filter, alone and in the order of the families; the tolerance."""
    for name in IMAGE_FILTERS:
        yield (ImageOperation("resize", "height", "width", name),), 0
        yield (ImageOperation("resize_and_crop", "height", "width", name),), 0
    blur = ImageOperation("blur_and_resize", "height", "width")
    square = ImageOperation("resize_and_crop", "width", "width", "box")
    shrink = ImageOperation("resize", 32, 24, "bilinear")
    yield (blur,), BLUR_TOLERANCE
    yield (blur, CLIP_NORMALIZE), NORMALIZE_TOLERANCE
    yield (square, shrink, CLIP_NORMALIZE), 0


def list_refused() -> Iterator[tuple[tuple[int, int], ImageOperation]]:
    """Operations that cannot be followed, and sizes of pictures that are too small for them."""
    yield (9, 9), ImageOperation("swirl")
    yield (9, 9), ImageOperation("resize", 8, 8, "cubist")
    yield (9, 9), ImageOperation("resize", 8, 8)
    yield (9, 9), ImageOperation("resize_and_crop", 8, 8)
    yield (9, 9), ImageOperation("resize", None, 8, "box")
    yield (9, 9), ImageOperation("resize", "depth", 8, "box")
    yield (9, 9), ImageOperation("resize", 8, 0, "box")
    yield (9, 9), ImageOperation("blur_and_resize", 8, -3)
    yield (9, 9), ImageOperation("normalize", mean=(0.5,))
    yield (9, 9), ImageOperation("normalize", mean=CLIP_MEAN)
    yield (1, 9), ImageOperation("blur_and_resize", 8, 8)
    yield (9, 1), ImageOperation("blur_and_resize", 8, 8)
    yield (3000, 1), ImageOperation("resize_and_crop", 320, 512, "box")


def write_corpus(path: Path) -> int:
    """Write all cases, and return how many there are."""
    count = 0
    with path.open("wb") as file:
        for size in IMAGE_SIZES:
            image = draw(*size)
            _write_case(file, image, (), 0, (8, 8), is_new=True)
            _write_case(file, image, (CLIP_NORMALIZE,), 0, (8, 8))
            count += 2
            for operations, tolerance in list_records():
                for target in TARGET_SIZES:
                    _write_case(file, image, operations, tolerance, target)
                    count += 1
        for size, operation in list_refused():
            _write_case(file, draw(*size), (operation,), 0, (8, 8), is_new=True)
            count += 1
        blur = ImageOperation("blur_and_resize", 8, 8)
        shrink = ImageOperation("resize", 8, 8, "box")
        _write_case(file, draw(9, 9), (blur, shrink), 0, (8, 8), is_new=True)
    return count + 1


def _write_case(
    file: BinaryIO,
    image: Image.Image,
    operations: tuple[ImageOperation, ...],
    tolerance: float,
    target: tuple[int, int],
    *,
    is_new: bool = False,
) -> None:
    """Write one case; without a new image it is about the last one."""
    record = ImageRecord(operations)
    height, width = target
    expected: NDArray[np.float32] | None = None
    case: dict[str, Any] = {"record": write_record(record), "height": height, "width": width}
    case["tolerance"] = tolerance
    try:
        expected = prepare_image(image, record, height=height, width=width)
        case["shape"] = expected.shape
    except (BundleError, ParameterError) as err:
        case["error"] = str(err).replace(*UPGRADES)
    if is_new:
        case["image"] = [image.height, image.width]
    file.write(json.dumps(case).encode() + b"\n")
    if is_new:
        file.write(image.tobytes())
    if expected is not None:
        file.write(expected.tobytes())


if __name__ == "__main__":
    if int(PIL.__version__.partition(".")[0]) < MIN_PILLOW:
        sys.exit(f"Pillow is {PIL.__version__}; the library resizes as from {MIN_PILLOW} on")
    print(f"{write_corpus(Path(sys.argv[1]))} cases")
