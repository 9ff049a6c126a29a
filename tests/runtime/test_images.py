"""Images are read as diffusers reads them, and prepared as its pipelines prepare them."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.deprecated.i2vgen_xl import pipeline_i2vgen_xl as i2vgen
from diffusers.pipelines.stable_video_diffusion import (
    pipeline_stable_video_diffusion as stable_video,
)
from diffusers.utils import load_image as diffusers_load_image
from diffusers.video_processor import VideoProcessor
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPImageProcessorPil

from mutoscope.runtime.errors import BundleError, ParameterError
from mutoscope.runtime.image_records import (
    IMAGE_FILTERS,
    IMAGE_OPERATIONS,
    ImageOperation,
    ImageRecord,
)
from mutoscope.runtime.images import load_image, prepare_image
from mutoscope.runtime.json_records import read_record, write_record

# Height and width: odd, larger and smaller than the targets, portrait, landscape, extreme.
IMAGE_SIZES = (
    (37, 53),
    (53, 37),
    (2, 3),
    (97, 800),
    (641, 301),
    (224, 224),
    (225, 512),
    (1080, 61),
)
MODES = ("L", "LA", "RGBA", "P", "PA", "1", "CMYK", "YCbCr", "I;16", "I", "F")
CLIP_SIZES = ((64, 128), (128, 64), (96, 96), (320, 512))
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Both blur and interpolate in float32, but one filters the whole image and one only what it needs;
# 8e-7 was seen, on values up to 1.3. Normalising divides that by 0.26.
BLUR_TOLERANCE = 2e-6
CLIP_TOLERANCE = 1e-5
# A photo of 12 million pixels has 36 MB, and as floats it would have 144 MB. 75 MB were measured:
# the pixels as an array, and the strip of them that a block of rows needs as floats.
MAXIMUM_PHOTO_BYTES = 100e6

CLIP_NORMALIZE = ImageOperation("normalize", mean=CLIP_MEAN, std=CLIP_STD)
HALF_NORMALIZE = ImageOperation("normalize", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
BLUR = ImageOperation("blur_and_resize", 224, 224)
STRETCH = ImageOperation("resize", "height", "width", "lanczos")
COVER = ImageOperation("resize_and_crop", "height", "width", "box")
COVER_SQUARE = ImageOperation("resize_and_crop", "width", "width", "box")
SHRINK = ImageOperation("resize", 224, 224, "bilinear")


def draw(height: int, width: int) -> Image.Image:
    """Return a smooth picture with noise on it: both what blurs keep and what they take out."""
    random = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 5)], axis=-1)
    noise = random.integers(-60, 61, (height, width, 3))
    return Image.fromarray((127 + 80 * waves + noise).clip(0, 255).astype(np.uint8))


def prepare(image: Image.Image, *operations: ImageOperation, **size: int) -> NDArray[np.float32]:
    size = size or {"height": 64, "width": 128}
    return prepare_image(image, ImageRecord(operations), **size)


def make_preprocessor(**options: Any) -> Callable[..., NDArray[Any]]:
    processor = VideoProcessor(vae_scale_factor=8, **options)
    return lambda *arguments, **size: processor.preprocess(*arguments, **size).numpy()


@pytest.mark.parametrize("size", IMAGE_SIZES)
@pytest.mark.parametrize("clip", CLIP_SIZES)
def test_stretching_is_that_of_the_video_processor(
    size: tuple[int, int], clip: tuple[int, int]
) -> None:
    height, width = clip
    expected = make_preprocessor(do_resize=True)(draw(*size), height=height, width=width)
    found = prepare(draw(*size), STRETCH, HALF_NORMALIZE, height=height, width=width)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [*IMAGE_SIZES, (2000, 3001)])
def test_the_image_prompt_of_stable_video_is_that_of_its_pipeline(size: tuple[int, int]) -> None:
    image = draw(*size)
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 255)
    batch = pixels.permute(2, 0, 1)[None] * 2.0 - 1.0
    resized = stable_video._resize_with_antialiasing(batch, (224, 224))
    blurred = (resized + 1.0) / 2.0
    np.testing.assert_allclose(prepare(image, BLUR), blurred.numpy(), rtol=0, atol=BLUR_TOLERANCE)

    extractor = CLIPImageProcessorPil(image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD))
    expected = extractor(
        images=blurred,
        do_normalize=True,
        do_center_crop=False,
        do_resize=False,
        do_rescale=False,
        return_tensors="np",
    ).pixel_values
    found = prepare(image, BLUR, CLIP_NORMALIZE)
    assert found.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLIP_TOLERANCE)


@pytest.mark.parametrize("size", IMAGE_SIZES)
@pytest.mark.parametrize("clip", CLIP_SIZES)
def test_both_images_of_i2vgen_are_those_of_its_pipeline(
    size: tuple[int, int], clip: tuple[int, int]
) -> None:
    image, (height, width) = draw(*size), clip
    cropped = i2vgen._center_crop_wide(image, (width, height))
    expected = make_preprocessor(do_resize=False)(cropped)
    found = prepare(image, COVER, HALF_NORMALIZE, height=height, width=width)
    np.testing.assert_array_equal(found, expected)

    square = i2vgen._center_crop_wide(image, (width, width))
    square = np.asarray(i2vgen._resize_bilinear(square, (224, 224)))
    floats = square.astype(np.float32) / np.float32(255)
    prompt = (floats - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    found = prepare(image, COVER_SQUARE, SHRINK, CLIP_NORMALIZE, height=height, width=width)
    np.testing.assert_array_equal(found[0], prompt.transpose(2, 0, 1))


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_a_crop_takes_the_size_that_rounding_leaves(size: tuple[int, int]) -> None:
    # 49 / (49 / 41) is 40.99999999999999 in floats: the cover is a pixel short, its edge black.
    for height, width in ((41, 57), (57, 41), (8, 184)):
        expected = np.asarray(i2vgen._center_crop_wide(draw(*size), (width, height)))
        found = prepare(draw(*size), COVER, height=height, width=width)
        pixels = np.round(found[0].transpose(1, 2, 0) * 255).astype(np.uint8)
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("operations", [(STRETCH,), (BLUR,), (COVER,), (COVER_SQUARE, SHRINK)])
def test_black_and_white_keep_their_values(operations: tuple[ImageOperation, ...]) -> None:
    for level in (0, 255):
        image = Image.new("RGB", (301, 127), (level, level, level))
        found = prepare(image, *operations, HALF_NORMALIZE)
        np.testing.assert_allclose(found, level / 127.5 - 1, rtol=0, atol=BLUR_TOLERANCE)


def test_an_image_without_operations_is_its_pixels_from_0_to_1() -> None:
    image = draw(5, 7)
    found = prepare(image)
    assert found.shape == (1, 3, 5, 7)
    np.testing.assert_array_equal(found[0].transpose(1, 2, 0), np.asarray(image) / np.float32(255))


def test_a_photo_takes_little_memory() -> None:
    photo = Image.fromarray(np.zeros((3000, 4000, 3), np.uint8))
    tracemalloc.start()
    prepare(photo, BLUR, CLIP_NORMALIZE)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < MAXIMUM_PHOTO_BYTES


def test_records_survive_the_manifest() -> None:
    record = ImageRecord((COVER_SQUARE, SHRINK, CLIP_NORMALIZE))
    assert (
        read_record(ImageRecord, json.loads(json.dumps(write_record(record))), "images") == record
    )


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        (
            [ImageOperation("swirl")],
            r"operation 'swirl' is unknown \(known: resize, .*\): pip",
        ),
        ([ImageOperation("resize", 8, 8, "cubist")], r"resize: filter 'cubist' is unknown"),
        ([ImageOperation("resize", 8, 8)], r"resize: filter None is unknown"),
        ([ImageOperation("resize", None, 8, "box")], r"resize: size None must be a number"),
        ([ImageOperation("resize", "depth", 8, "box")], r"resize: size 'depth' must be"),
        ([ImageOperation("resize", 0, 8, "box")], r"resize: size 0 must be"),
        ([ImageOperation("normalize", mean=(0.5,))], r"normalize: mean must be three numbers"),
        ([ImageOperation("normalize", mean=CLIP_MEAN)], r"normalize: std must be three numbers"),
        ([BLUR, SHRINK], r"resize: it takes 8-bit pixels, and an operation before it made floats"),
    ],
)
def test_a_record_that_this_version_cannot_follow_is_refused(
    operations: list[ImageOperation], message: str
) -> None:
    with pytest.raises(BundleError, match=r"^manifest\.json: images: .*" + message):
        prepare(draw(9, 9), *operations)


def test_every_operation_and_filter_that_records_list_is_there() -> None:
    for kind in IMAGE_OPERATIONS:
        operation = ImageOperation(kind, 4, 5, "box", (0.0,) * 3, (1.0,) * 3)
        size = (4, 5) if kind != "normalize" else (9, 7)
        assert prepare(draw(9, 7), operation).shape == (1, 3, *size)
    for name in IMAGE_FILTERS:
        assert prepare(draw(9, 7), ImageOperation("resize", 4, 5, name)).shape == (1, 3, 4, 5)


def test_an_image_too_thin_to_blur_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"^image is 1 x 9 pixels; .* at least 2 x 2: use"):
        prepare(draw(9, 1), BLUR)


def test_an_image_too_narrow_to_cover_a_clip_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"^image is 1 x 3000 pixels and would be 512 x 153"):
        prepare(draw(3000, 1), COVER, height=320, width=512)


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_pixel_is_read_as_diffusers_reads_it(mode: str) -> None:
    image = draw(13, 17)
    if mode == "I;16":
        image = Image.fromarray(np.arange(13 * 17, dtype=np.uint16).reshape(13, 17) * 3)
    else:
        image = (
            image.convert("L").convert("LA").convert(mode) if mode == "PA" else image.convert(mode)
        )
    assert image.mode == mode
    found = load_image(image)
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(diffusers_load_image(image)))
    assert np.asarray(found).std() > 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_photo_is_turned_upright(orientation: int, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo.{ending}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw(20, 30).save(path, exif=exif)
    found = load_image(path)
    assert found.size == ((20, 30) if orientation >= 5 else (30, 20))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(diffusers_load_image(str(path))))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(load_image(str(path))))


def test_an_array_is_taken_as_it_is() -> None:
    array = np.asarray(draw(4, 6))
    np.testing.assert_array_equal(np.asarray(load_image(array)), array)


def test_loading_leaves_the_image_of_the_caller_alone() -> None:
    image = draw(4, 6)
    found = load_image(image)
    found.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) != (1, 2, 3)


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "clip.webp"
    draw(8, 8).save(path, save_all=True, append_images=[draw(8, 9).resize((8, 8))], lossless=True)
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(draw(8, 8)))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_another_array_is_refused(array: NDArray[Any]) -> None:
    with pytest.raises(
        ParameterError, match=r"^image is \w+\[.*\]; an array must be uint8 \[H, W, 3\]$"
    ):
        load_image(array)


@pytest.mark.parametrize("image", [None, 7, b"bytes", [1, 2]])
def test_what_is_no_image_at_all_is_refused(image: Any) -> None:
    with pytest.raises(ParameterError, match=r"^image is a \w+; it must be a path, a PIL image or"):
        load_image(image)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"^image is a PIL image of mode RGB of 0 x 5: give a"):
        load_image(Image.new("RGB", (0, 5)))


def test_an_image_that_cannot_be_converted_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"^image is a PIL image of mode La, which cannot be"):
        load_image(Image.new("La", (4, 5)))


def write_damaged(folder: Path, name: str, keep: slice) -> Path:
    path = folder / name
    draw(64, 64).save(path)
    path.write_bytes(path.read_bytes()[keep])
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tif", "a.bmp"])
def test_a_truncated_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = write_damaged(tmp_path, name, slice(0, 700))
    with pytest.raises(ParameterError, match=r"^image is .*: give a picture such as") as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.png", r"which does not exist: give a picture"),
        (lambda folder: folder, r"which cannot be read \(Is a directory\): give a picture"),
        (lambda folder: write_damaged(folder, "a.png", slice(0, 0)), r"not an image that Pillow"),
        (lambda folder: write_damaged(folder, "a.png", slice(8, None)), r"not an image that Pil"),
    ],
)
def test_a_path_to_no_image_is_refused(
    make: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=rf"^image is {tmp_path}.*{message}"):
        load_image(make(tmp_path))


def test_an_image_of_too_many_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    draw(40, 40).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(ParameterError, match=r"more pixels than Pillow reads \(2 \* 700\)"):
        load_image(path)
