"""Video files: a format for each ending.

PyAV and Pillow are imported when the first file of their kind is written.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mutoscope.runtime.errors import OutputError
from mutoscope.runtime.outputs import check_replaceable, check_writable, new_file, new_folder

if TYPE_CHECKING:
    from PIL.Image import Image

    from mutoscope.runtime.video import Video

Frames: TypeAlias = NDArray[np.uint8]
AddFrames: TypeAlias = Callable[[Frames], object]

H264_CRF = "14"
VP9_CRF = "18"
# Delays in GIF are hundredths of a second, and players slow down anything below two of them.
GIF_MAX_FRAME_RATE = 50
FOLDER = "a folder"
# Of the numbers in the names of images, where they need no more.
FRAME_DIGITS = 4

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
    if not num_frames:
        raise OutputError(
            f"{path} would have no frames, since on_frames took them: generate without it, or save "
            "the parts (open_video_file)"
        )
    clip = Clip(num_frames, height, width, video.frame_rate)
    with open_video_file(path, clip, force=force) as add:
        add(video)
    return Path(path)


@contextmanager
def open_video_file(
    path: str | os.PathLike[str], clip: Clip, *, force: bool = False
) -> Iterator[Callable[[Video], None]]:
    """Give a function that adds the next part of a clip to a file or a folder; see `Video.save`.

    What was written is at `path` when the block ends without an error, and nowhere else. Parts of
    .gif, .webp and .apng are kept until then, those of the others are written at once.

    Args:
        path: Where to write.
        clip: What all parts make together.
        force: Replace what is there.

    Raises:
        OutputError: As `Video.save`.
    """
    target = check_output(path, clip, force=force)
    ending = find_ending(path)
    new_output = new_folder if ending == FOLDER else new_file
    with ExitStack() as stack:
        add_frames: AddFrames | None = None

        def add(part: Video) -> None:
            nonlocal add_frames
            if add_frames is None:
                temporary = stack.enter_context(new_output(target))
                add_frames = stack.enter_context(_WRITERS[ending](temporary, clip, part))
            add_frames(part.frames)

        yield add


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


@contextmanager
def _open_container(
    path: Path,
    clip: Clip,
    video: Video,
    container_format: str,
    codec: str,
    codec_options: dict[str, str],
    container_options: dict[str, str],
) -> Iterator[AddFrames]:
    """Encode with PyAV; its errors on a full disk are OSErrors with an errno."""
    import av

    rate = Fraction(clip.frame_rate).limit_denominator(_FRAME_RATE_DENOMINATOR)
    try:
        with av.open(
            str(path), "w", format=container_format, options=container_options
        ) as container:
            container.metadata["comment"] = _describe(video)
            if video.prompt:
                container.metadata["title"] = video.prompt
            stream: Any = container.add_stream(codec, rate=rate, options=codec_options)
            stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE

            def add_frames(frames: Frames) -> None:
                for array in frames:
                    rgb = av.VideoFrame.from_ndarray(array, format="rgb24")
                    frame = rgb.reformat(
                        format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
                    )
                    container.mux(stream.encode(frame))

            yield add_frames
            container.mux(stream.encode(None))
    except (av.FFmpegError, av.codec.codec.UnknownCodecError) as err:
        if isinstance(err, OSError):
            raise
        raise OutputError(
            f"this PyAV cannot encode {container_format} with {codec} ({err}): use .webp or .apng"
        ) from err


def _open_mp4(path: Path, clip: Clip, video: Video) -> AbstractContextManager[AddFrames]:
    # The index first, so that a browser can start before it has the whole file.
    options = {"movflags": "+faststart"}
    codec = {"crf": H264_CRF, "preset": "medium"}
    return _open_container(path, clip, video, "mp4", "libx264", codec, options)


def _open_webm(path: Path, clip: Clip, video: Video) -> AbstractContextManager[AddFrames]:
    codec = {"crf": VP9_CRF, "b": "0", "row-mt": "1", "cpu-used": "2"}
    return _open_container(path, clip, video, "webm", "libvpx-vp9", codec, {})


@contextmanager
def _open_gif(path: Path, clip: Clip, video: Video) -> Iterator[AddFrames]:
    images: list[Image] = []
    yield lambda frames: images.extend(image.quantize() for image in _make_images(frames))
    _save_images(
        images,
        path,
        format="GIF",
        duration=make_durations_ms(len(images), clip.frame_rate, unit_ms=10),
        loop=0,
        comment=_describe(video).encode(),
    )


@contextmanager
def _open_webp(path: Path, clip: Clip, video: Video) -> Iterator[AddFrames]:
    from PIL.Image import Exif

    exif = Exif()
    exif[_EXIF_IMAGE_DESCRIPTION] = _describe(video)
    images: list[Image] = []
    yield lambda frames: images.extend(_make_images(frames))
    _save_images(
        images,
        path,
        format="WEBP",
        duration=make_durations_ms(len(images), clip.frame_rate, unit_ms=1),
        loop=0,
        lossless=True,
        exif=exif,
    )


@contextmanager
def _open_apng(path: Path, clip: Clip, video: Video) -> Iterator[AddFrames]:
    images: list[Image] = []
    yield lambda frames: images.extend(_make_images(frames))
    _save_images(
        images,
        path,
        format="PNG",
        duration=make_durations_ms(len(images), clip.frame_rate, unit_ms=1),
        loop=0,
        pnginfo=_make_png_text(video),
    )


@contextmanager
def _open_png(path: Path, clip: Clip, video: Video) -> Iterator[AddFrames]:
    text = _make_png_text(video)

    def add_frames(frames: Frames) -> None:
        for image in _make_images(frames):
            image.save(path, format="PNG", pnginfo=text)

    yield add_frames


@contextmanager
def _open_folder(path: Path, clip: Clip, video: Video) -> Iterator[AddFrames]:
    text, numbers = _make_png_text(video), itertools.count(1)
    # All of one length: who reads them by name gets them in their order.
    width = max(FRAME_DIGITS, len(str(clip.num_frames)))

    def add_frames(frames: Frames) -> None:
        for image in _make_images(frames):
            name = f"frame_{next(numbers):0{width}d}.png"
            image.save(path / name, format="PNG", pnginfo=text)

    yield add_frames


@contextmanager
def _open_npy(path: Path, clip: Clip, video: Video) -> Iterator[AddFrames]:
    # np.save would write with the C library, and tell of a full disk without an errno.
    shape = (clip.num_frames, clip.height, clip.width, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda frames: file.write(np.ascontiguousarray(frames).data)


# Each opens a new file for a clip, with what a part of it says of how it was made.
_WRITERS: dict[str, Callable[[Path, Clip, Video], AbstractContextManager[AddFrames]]] = {
    ".mp4": _open_mp4,
    ".webm": _open_webm,
    ".gif": _open_gif,
    ".webp": _open_webp,
    ".apng": _open_apng,
    ".png": _open_png,
    ".npy": _open_npy,
    FOLDER: _open_folder,
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


def _make_images(frames: Frames) -> Iterator[Image]:
    from PIL import Image

    for frame in frames:
        yield Image.fromarray(frame)


def _save_images(images: list[Image], path: Path, **options: Any) -> None:
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
