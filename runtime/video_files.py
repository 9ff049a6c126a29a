"""Video files: a format for each ending.

PyAV and Pillow are imported when the first file of their kind is written.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mutoscope.runtime.errors import OutputError
from mutoscope.runtime.outputs import check_replaceable, check_writable, new_file, new_folder

if TYPE_CHECKING:
    from PIL.Image import Image

    from mutoscope.runtime.video import Video

H264_CRF = "14"
VP9_CRF = "18"
# Delays in GIF are hundredths of a second, and players slow down anything below two of them.
GIF_MAX_FRAME_RATE = 50
FOLDER = "a folder"

_FRAME_NAME = re.compile(r"frame_\d+\.png")
_FRAME_RATE_DENOMINATOR = 65535
_EXIF_IMAGE_DESCRIPTION = 0x010E
# ITU-R BT.709, tagged in the file so that no player has to guess; H.273 numbers it 1 throughout.
_BT709 = 1
_LIMITED_RANGE = 1


@dataclass(frozen=True)
class Clip:
    """What a format needs to know of a clip before there are frames."""

    num_frames: int
    height: int
    width: int
    frame_rate: float


def save_video(video: Video, path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write a video; see `Video.save`."""
    num_frames, height, width, _ = video.frames.shape
    target = check_output(path, Clip(num_frames, height, width, video.frame_rate), force=force)
    ending = find_ending(path)
    write = _WRITERS[ending]
    if ending == FOLDER:
        with new_folder(target) as temporary:
            write(video, temporary)
    else:
        with new_file(target) as temporary:
            write(video, temporary)
    return target


def check_output(path: str | os.PathLike[str], clip: Clip, *, force: bool = False) -> Path:
    """Return `path` if such a clip can be written there; for use before the work.

    Raises:
        OutputError: The ending is unknown or cannot hold the clip, the path exists, or its folder
            is absent or not writable.
    """
    ending = find_ending(path)
    target = Path(path)
    if ending == ".mp4" and (clip.height % 2 or clip.width % 2):
        raise OutputError(
            f"{path}: H.264 needs an even height and width, the clip has {clip.height} x "
            f"{clip.width}: use .webm, .webp or .apng"
        )
    if ending == ".png" and clip.num_frames > 1:
        raise OutputError(
            f"{path} holds one image and the clip has {clip.num_frames} frames: use .apng, or "
            f"{target.with_suffix('')}/ for a folder of images"
        )
    if ending == ".gif" and clip.frame_rate > GIF_MAX_FRAME_RATE:
        raise OutputError(
            f"{path}: GIF cannot show {clip.frame_rate:g} frames per second "
            f"(at most {GIF_MAX_FRAME_RATE}): use .mp4 or .apng"
        )
    check_writable(target)
    check_replaceable(target, force=force, is_ours=_is_frame)
    if ending != FOLDER and target.is_dir():
        raise OutputError(f"{path} is a folder: use another name")
    return target


def find_ending(path: str | os.PathLike[str]) -> str:
    """Return the key of `ENDINGS` that belongs to a path; raises `OutputError`."""
    text = os.fspath(path)
    ending = Path(text).suffix.lower()
    separators = tuple(filter(None, (os.sep, os.altsep)))
    if not ending or text.endswith(separators):
        return FOLDER
    if ending not in _WRITERS:
        raise OutputError(
            f"{text} has an unknown ending: use {', '.join(ENDINGS[:-1])}, or no ending for a "
            "folder of .png"
        )
    return ending


def _is_frame(path: Path) -> bool:
    return _FRAME_NAME.fullmatch(path.name) is not None


def _write_mp4(video: Video, path: Path) -> None:
    # The index first, so that a browser can start before it has the whole file.
    options = {"movflags": "+faststart"}
    codec = {"crf": H264_CRF, "preset": "medium"}
    _write_container(video, path, "mp4", "libx264", codec, options)


def _write_webm(video: Video, path: Path) -> None:
    codec = {"crf": VP9_CRF, "b": "0", "row-mt": "1", "cpu-used": "2"}
    _write_container(video, path, "webm", "libvpx-vp9", codec, {})


def _write_container(
    video: Video,
    path: Path,
    container_format: str,
    codec: str,
    codec_options: dict[str, str],
    container_options: dict[str, str],
) -> None:
    """Encode with PyAV; its errors on a full disk are OSErrors with an errno."""
    import av

    try:
        _encode_frames(video, path, container_format, codec, codec_options, container_options)
    except (av.FFmpegError, av.codec.codec.UnknownCodecError) as err:
        if isinstance(err, OSError):
            raise
        raise OutputError(
            f"this PyAV cannot encode {container_format} with {codec} ({err}): use .webp or .apng"
        ) from err


def _encode_frames(
    video: Video,
    path: Path,
    container_format: str,
    codec: str,
    codec_options: dict[str, str],
    container_options: dict[str, str],
) -> None:
    import av

    rate = Fraction(video.frame_rate).limit_denominator(_FRAME_RATE_DENOMINATOR)
    _, height, width, _ = video.frames.shape
    with av.open(str(path), "w", format=container_format, options=container_options) as container:
        container.metadata["comment"] = _describe(video)
        if video.prompt:
            container.metadata["title"] = video.prompt
        stream: Any = container.add_stream(codec, rate=rate, options=codec_options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        for array in video.frames:
            rgb = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame = rgb.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_gif(video: Video, path: Path) -> None:
    images = [image.quantize() for image in _make_images(video)]
    _write_images(
        images,
        path,
        format="GIF",
        duration=make_durations_ms(len(images), video.frame_rate, unit_ms=10),
        loop=0,
        comment=_describe(video).encode(),
    )


def _write_webp(video: Video, path: Path) -> None:
    from PIL.Image import Exif

    exif = Exif()
    exif[_EXIF_IMAGE_DESCRIPTION] = _describe(video)
    images = _make_images(video)
    _write_images(
        images,
        path,
        format="WEBP",
        duration=make_durations_ms(len(images), video.frame_rate, unit_ms=1),
        loop=0,
        lossless=True,
        exif=exif,
    )


def _write_apng(video: Video, path: Path) -> None:
    images = _make_images(video)
    _write_images(
        images,
        path,
        format="PNG",
        duration=make_durations_ms(len(images), video.frame_rate, unit_ms=1),
        loop=0,
        pnginfo=_make_png_text(video),
    )


def _write_png(video: Video, path: Path) -> None:
    _make_images(video)[0].save(path, format="PNG", pnginfo=_make_png_text(video))


def _write_folder(video: Video, path: Path) -> None:
    text = _make_png_text(video)
    for number, image in enumerate(_make_images(video), start=1):
        image.save(path / f"frame_{number:04d}.png", format="PNG", pnginfo=text)


def _write_npy(video: Video, path: Path) -> None:
    # np.save would write with the C library, and tell of a full disk without an errno.
    frames = np.ascontiguousarray(video.frames)
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(frames)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(frames.data)


_WRITERS: dict[str, Callable[[Video, Path], None]] = {
    ".mp4": _write_mp4,
    ".webm": _write_webm,
    ".gif": _write_gif,
    ".webp": _write_webp,
    ".apng": _write_apng,
    ".png": _write_png,
    ".npy": _write_npy,
    FOLDER: _write_folder,
}
ENDINGS = tuple(_WRITERS)


def make_durations_ms(num_frames: int, frame_rate: float, *, unit_ms: int) -> list[int]:
    """Return how long each frame is shown, in milliseconds, as multiples of `unit_ms`.

    Single frames are rounded, their sum is not: 8 frames per second in units of 10 ms are 120 and
    130 in turn.
    """
    units = 1000 / unit_ms / frame_rate
    ends = [round(number * units) for number in range(num_frames + 1)]
    return [max(1, end - start) * unit_ms for start, end in itertools.pairwise(ends)]


def _make_images(video: Video) -> list[Image]:
    from PIL import Image

    return [Image.fromarray(frame) for frame in video.frames]


def _write_images(images: list[Image], path: Path, **options: Any) -> None:
    images[0].save(path, save_all=True, append_images=images[1:], **options)


def _make_png_text(video: Video) -> Any:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    for name, value in video.describe().items():
        text.add_itxt(name, str(value))
    return text


def _describe(video: Video) -> str:
    """How the clip was made, as ASCII JSON: every format has a place for that."""
    return json.dumps(video.describe())
