"""mutoscope-c turns pictures upright as Pillow does, whatever is in their files."""

from __future__ import annotations

import ctypes
import io
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

SOURCE = Path(__file__).resolve().parents[3] / "runtime/native/mutoscope-c/orientation.c"
COMPILER = shutil.which("cc")
ORIENTATIONS = range(1, 9)
HEIGHT, WIDTH = 5, 7
NUM_DAMAGED = 3000

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


@pytest.fixture(scope="module")
def orientation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The two functions of orientation.h."""
    path = tmp_path_factory.mktemp("orientation") / "orientation.so"
    subprocess.run(
        [str(COMPILER), "-std=c99", "-O1", "-shared", "-fPIC", "-o", path, SOURCE], check=True
    )
    library = ctypes.CDLL(str(path))
    size = ctypes.c_size_t
    library.find_orientation.argtypes = [ctypes.c_char_p, size]
    library.make_upright.argtypes = [ctypes.c_char_p, ctypes.c_char_p, size, size, ctypes.c_int]
    return library


def _write_image(number: int, file_format: str, **options: bytes) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "a tag before it"
    exif[ExifTags.Base.Orientation] = number
    exif[ExifTags.Base.Software] = "a tag behind it"
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **({"exif": exif.tobytes()} | options))
    return file.getvalue()


def _make_big_endian(number: int) -> bytes:
    tag = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00" + bytes([number, 0, 0])
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + tag + b"\0\0\0\0"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("number", ORIENTATIONS)
@pytest.mark.parametrize("make_exif", [None, _make_big_endian])
def test_pictures_are_turned_as_by_pillow(
    orientation: ctypes.CDLL,
    number: int,
    file_format: str,
    make_exif: Callable[[int], bytes] | None,
) -> None:
    options = {} if make_exif is None else {"exif": make_exif(number)}
    file = _write_image(number, file_format, **options)
    with Image.open(io.BytesIO(file)) as image:
        pixels = np.asarray(image)
        expected = np.asarray(ImageOps.exif_transpose(image))
    found = orientation.find_orientation(file, len(file))
    upright = ctypes.create_string_buffer(pixels.nbytes)
    orientation.make_upright(upright, pixels.tobytes(), HEIGHT, WIDTH, found)
    assert found == number
    assert upright.raw[: pixels.nbytes] == expected.tobytes()


@pytest.mark.parametrize("number", [0, 9, 65535])
def test_orientations_that_do_not_exist_are_upright(orientation: ctypes.CDLL, number: int) -> None:
    file = _write_image(number, "JPEG")
    assert orientation.find_orientation(file, len(file)) == 1


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_damaged_files_have_an_orientation_from_1_to_8(
    orientation: ctypes.CDLL, file_format: str
) -> None:
    file = _write_image(6, file_format)
    draw = random.Random(0)
    for _ in range(NUM_DAMAGED):
        damaged = bytearray(file[: draw.randrange(len(file) + 1)])
        for _ in range(draw.randrange(4) if damaged else 0):
            damaged[draw.randrange(min(len(damaged), 120))] = draw.choice((0, 1, 8, 127, 255))
        assert 1 <= orientation.find_orientation(bytes(damaged), len(damaged)) <= 8
