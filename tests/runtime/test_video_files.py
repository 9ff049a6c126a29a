import dataclasses
import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mutoscope.runtime import video_files
from mutoscope.runtime.clip_files import load_clip
from mutoscope.runtime.errors import CancelledError, OutputError, ParameterError
from mutoscope.runtime.metrics import psnr_db
from mutoscope.runtime.settings import Settings
from mutoscope.runtime.video import Video
from mutoscope.runtime.video_files import Clip, make_durations_ms, open_video_file

# Two encodings of one clip; a clip of other frames is far below.
SAME_CLIP_PSNR_DB = 40

Frames = NDArray[np.uint8]
NUM_FRAMES, HEIGHT, WIDTH = 7, 48, 64
PROMPT = "a réd circle"
# 4:2:0 halves the resolution of colour and the codec rounds; a wrong matrix or range is above 8.
MAX_MEAN_ERROR = 3.0
# One colour all over has nothing that 4:2:0 could lose.
MAX_FLAT_ERROR = 2
# 256 colours for a smooth picture.
MAX_MEAN_ERROR_GIF = 6.0
ANIMATED = (".gif", ".webp", ".apng")
FILES = (".mp4", ".webm", *ANIMATED, ".npy")


def make_frames(num_frames: int = NUM_FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Frames:
    """Smooth colours that move, so that 4:2:0 loses little and no two frames are the same."""
    f, y, x = np.meshgrid(*map(np.arange, (num_frames, height, width)), indexing="ij")
    channels = [
        128 + 100 * np.sin(x / 17 + f / 3),
        128 + 100 * np.cos(y / 13 - f / 4),
        60 + 2 * x + 5 * f,
    ]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


@pytest.fixture
def video() -> Video:
    settings = Settings(
        7, "DDIMScheduler", 4, 3.0, HEIGHT, WIDTH, NUM_FRAMES, 12.5, (1, 4, 7, 6, 8)
    )
    return Video(make_frames(), 12.5, PROMPT, "", settings)


def read_with_pyav(path: Path) -> tuple[Frames, Any, dict[str, str]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        facts = (stream.average_rate, stream.codec_context.name, stream.codec_context.pix_fmt)
        return np.stack(frames), facts, dict(container.metadata)


def read_with_pillow(path: Path) -> tuple[Frames, list[float], dict[str, Any]]:
    frames, durations = [], []
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            # WebP knows the duration of a frame only once it is decoded.
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
        return np.stack(frames), durations, image.info | {"exif": dict(image.getexif())}


def mean_error(found: Frames, expected: Frames) -> float:
    return float(np.abs(found.astype(int) - expected.astype(int)).mean())


@pytest.mark.parametrize(("ending", "codec"), [(".mp4", "h264"), (".webm", "vp9")])
def test_mp4_and_webm_play_the_same_frames(
    video: Video, tmp_path: Path, ending: str, codec: str
) -> None:
    path = video.save(tmp_path / f"out{ending}")
    frames, facts, metadata = read_with_pyav(path)
    rate, name, pixel_format = facts
    assert frames.shape == video.frames.shape
    assert mean_error(frames, video.frames) < MAX_MEAN_ERROR
    assert rate == Fraction(25, 2)
    assert codec in name
    assert pixel_format == "yuv420p"
    comment = metadata.get("comment") or metadata["COMMENT"]
    assert json.loads(comment)["prompt"] == PROMPT
    assert json.loads(comment)["seed"] == 7


@pytest.mark.parametrize("ending", [".mp4", ".webm"])
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 128, 0), (30, 60, 200), (255, 255, 255)])
def test_mp4_and_webm_keep_colours(
    tmp_path: Path, ending: str, colour: tuple[int, int, int]
) -> None:
    flat = np.full((3, HEIGHT, WIDTH, 3), colour, np.uint8)
    frames, _, _ = read_with_pyav(Video(flat, 8.0).save(tmp_path / f"out{ending}"))
    assert np.abs(frames.astype(int) - flat.astype(int)).max() <= MAX_FLAT_ERROR


def test_mp4_has_its_index_first_and_says_how_colours_are_meant(
    video: Video, tmp_path: Path
) -> None:
    path = video.save(tmp_path / "out.mp4")
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (1, 1)


@pytest.mark.parametrize("ending", [".webp", ".apng"])
def test_webp_and_apng_are_lossless(video: Video, tmp_path: Path, ending: str) -> None:
    frames, durations, _ = read_with_pillow(video.save(tmp_path / f"out{ending}"))
    np.testing.assert_array_equal(frames, video.frames)
    assert durations == [80] * NUM_FRAMES


def test_gif_is_close_and_keeps_the_rate(video: Video, tmp_path: Path) -> None:
    frames, durations, info = read_with_pillow(video.save(tmp_path / "out.gif"))
    assert mean_error(frames, video.frames) < MAX_MEAN_ERROR_GIF
    assert durations == [80] * NUM_FRAMES
    assert info["loop"] == 0
    assert json.loads(info["comment"])["seed"] == 7


def test_npy_is_exact(video: Video, tmp_path: Path) -> None:
    loaded = np.load(video.save(tmp_path / "out.npy"))
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, video.frames)


@pytest.mark.parametrize("name", ["out", "out.d/"])
def test_no_ending_or_a_slash_makes_a_folder_of_images(
    video: Video, tmp_path: Path, name: str
) -> None:
    path = video.save(f"{tmp_path}/{name}")
    names = sorted(os.listdir(path))
    assert names == [f"frame_{number:04d}.png" for number in range(1, NUM_FRAMES + 1)]
    for name, frame in zip(names, video.frames, strict=True):
        with Image.open(path / name) as image:
            np.testing.assert_array_equal(np.asarray(image), frame)
            assert image.info["prompt"] == PROMPT


def test_many_images_are_in_order_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_files, "FRAME_DIGITS", 1)  # as if ten frames were ten thousand
    frames = make_frames(10)
    path = Video(frames, 8.0).save(tmp_path / "out")
    np.testing.assert_array_equal(load_clip(path), frames)
    assert Video(frames[:1], 8.0).save(path, force=True) == path
    assert os.listdir(path) == ["frame_1.png"]


def test_png_is_one_image_and_carries_how_it_was_made(tmp_path: Path) -> None:
    video = Video(make_frames(1), 8.0, PROMPT)
    with Image.open(video.save(tmp_path / "out.png")) as image:
        assert getattr(image, "n_frames", 1) == 1
        np.testing.assert_array_equal(np.asarray(image), video.frames[0])
        assert image.info["prompt"] == PROMPT


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif", ".webp", ".apng", ".png", ".npy", ""])
def test_a_clip_of_one_frame_can_be_saved_in_every_format(tmp_path: Path, ending: str) -> None:
    Video(make_frames(1), 8.0).save(tmp_path / f"out{ending}")


def test_a_video_without_settings_or_prompt_can_be_saved_in_every_format(tmp_path: Path) -> None:
    for ending in FILES:
        Video(make_frames(), 24.0).save(tmp_path / f"out{ending}")


def test_the_ending_may_be_in_capitals(video: Video, tmp_path: Path) -> None:
    frames, _, _ = read_with_pyav(video.save(tmp_path / "OUT.MP4"))
    assert len(frames) == NUM_FRAMES


def test_an_unknown_ending_is_refused_with_the_known(video: Video, tmp_path: Path) -> None:
    with pytest.raises(
        OutputError,
        match=r"out.avi has an unknown ending: use .mp4, .webm, .gif, .webp, .apng, .png, .npy, "
        "or no ending",
    ):
        video.save(tmp_path / "out.avi")


def test_png_refuses_several_frames(video: Video, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds one image and the clip has 7 frames: use .apng"):
        video.save(tmp_path / "out.png")


def test_mp4_refuses_odd_sizes_and_names_formats_that_take_them(tmp_path: Path) -> None:
    video = Video(make_frames(2, 15, 17), 8.0)
    with pytest.raises(OutputError, match=r"even height and width, the clip has 15 x 17: use .web"):
        video.save(tmp_path / "out.mp4")
    for ending in (".webm", ".webp", ".apng", ".gif"):
        video.save(tmp_path / f"out{ending}")
    frames, _, _ = read_with_pyav(tmp_path / "out.webm")
    assert frames.shape == video.frames.shape


def test_gif_refuses_a_rate_that_it_cannot_show(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"GIF cannot show 60 frames per second \(at most 50\)"):
        Video(make_frames(), 60.0).save(tmp_path / "out.gif")


@pytest.mark.parametrize("ending", [*FILES, ""])
def test_an_existing_output_is_kept_unless_forced(
    video: Video, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"out{ending}"
    video.save(path)
    before = path.stat().st_mtime_ns
    with pytest.raises(OutputError, match=r"exists: use --force \(force=True\) or another name"):
        video.save(path)
    assert path.stat().st_mtime_ns == before
    video.save(path, force=True)
    assert sorted(os.listdir(tmp_path)) == [path.name]


def test_a_folder_with_other_files_is_never_replaced(video: Video, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    video.save(folder)
    (folder / "diary.txt").write_text("dear diary")
    with pytest.raises(OutputError, match=r"is a folder with other files in it \(diary.txt\)"):
        video.save(folder, force=True)
    assert (folder / "diary.txt").read_text() == "dear diary"


def test_a_file_is_not_written_over_a_folder(video: Video, tmp_path: Path) -> None:
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(OutputError, match=r"out.mp4 is a folder: use another name"):
        video.save(tmp_path / "out.mp4", force=True)


def test_a_missing_folder_is_one_line(video: Video, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written: there is no folder .*nowhere"):
        video.save(tmp_path / "nowhere" / "out.mp4")


@pytest.mark.parametrize("ending", [*FILES, ""])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    video: Video, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch, ending)
    with pytest.raises(OutputError, match=f"out{ending} cannot be written: No space left") as error:
        video.save(tmp_path / f"out{ending}")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("ending", [*FILES, ""])
def test_ctrl_c_while_writing_leaves_nothing(
    video: Video, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, ending)
    with pytest.raises(KeyboardInterrupt):
        video.save(tmp_path / f"out{ending}")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("ending", [".mp4", ".gif", ".webp", ".apng", ".npy"])
def test_every_writer_tells_of_a_full_disk_with_its_errno(ending: str) -> None:
    from mutoscope.runtime import video_files

    video = Video(make_frames(), 8.0)
    clip = Clip(NUM_FRAMES, HEIGHT, WIDTH, 8.0)
    with (
        pytest.raises(OSError, match="No space left on device") as caught,
        video_files._WRITERS[ending](Path("/dev/full"), clip, video) as add_frames,
    ):
        add_frames(video.frames)
    assert caught.value.errno == errno.ENOSPC


def test_an_encoder_that_is_missing_is_one_line(
    video: Video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mutoscope.runtime import video_files

    def open_mp4(path: Path, clip: Clip, video: Video) -> Any:
        return video_files._open_container(path, clip, video, "mp4", "libnothing", {}, {})

    monkeypatch.setitem(video_files._WRITERS, ".mp4", open_mp4)
    with pytest.raises(OutputError, match="this PyAV cannot encode mp4 with libnothing"):
        video.save(tmp_path / "out.mp4")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_a_video_refuses_other_arrays(frames: Any) -> None:
    with pytest.raises(ParameterError, match=r"it must be uint8 \[F, H, W, 3\]"):
        Video(frames, 8.0)


@pytest.mark.parametrize("frame_rate", [0.5, 7.3, 8, 24, 23.976, 29.97, 50])
def test_durations_add_up_to_the_length_of_the_clip(frame_rate: float) -> None:
    durations = make_durations_ms(100, frame_rate, unit_ms=10)
    assert sum(durations) == pytest.approx(100_000 / frame_rate, abs=5)
    assert max(durations) - min(durations) <= 10


@pytest.mark.parametrize("ending", [*FILES, ""])
def test_a_clip_in_parts_is_the_file_of_the_whole(
    video: Video, tmp_path: Path, ending: str
) -> None:
    whole, parts = tmp_path / f"whole{ending}", tmp_path / f"parts{ending}"
    video.save(whole)
    clip = Clip(NUM_FRAMES, HEIGHT, WIDTH, video.frame_rate)
    with open_video_file(parts, clip) as add:
        for frames in np.split(video.frames, [1, 3]):
            add(dataclasses.replace(video, frames=frames))
            assert not parts.exists()
    if ending in (".mp4", ".webm"):
        # Encoders that use threads write other bytes of the same clip when the machine is busy.
        found, expected = load_clip(parts), load_clip(whole)
        assert found.shape == expected.shape
        assert psnr_db(expected, found) >= SAME_CLIP_PSNR_DB
    elif ending:
        assert parts.read_bytes() == whole.read_bytes()
    else:
        for path in sorted(whole.iterdir()):
            assert (parts / path.name).read_bytes() == path.read_bytes()
        assert len(list(parts.iterdir())) == NUM_FRAMES


@pytest.mark.parametrize("ending", [*FILES, ""])
def test_an_error_between_two_parts_leaves_nothing_and_keeps_what_was(
    video: Video, tmp_path: Path, ending: str
) -> None:
    target = video.save(tmp_path / f"out{ending}")
    before = target.stat().st_mtime_ns

    def write_half() -> None:
        clip = Clip(NUM_FRAMES, HEIGHT, WIDTH, video.frame_rate)
        with open_video_file(target, clip, force=True) as add:
            add(dataclasses.replace(video, frames=video.frames[:3]))
            raise CancelledError("cancelled after run 1 of 2")

    with pytest.raises(CancelledError, match="cancelled after run 1 of 2"):
        write_half()
    assert os.listdir(tmp_path) == [target.name]
    assert target.stat().st_mtime_ns == before


def test_nothing_is_written_before_the_first_part(video: Video, tmp_path: Path) -> None:
    clip = Clip(NUM_FRAMES, HEIGHT, WIDTH, 8.0)
    with open_video_file(tmp_path / "out.mp4", clip) as add:
        assert os.listdir(tmp_path) == []
        add(video)
    assert os.listdir(tmp_path) == ["out.mp4"]


def fill_disk(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """Have the writer of a format fail as it does on a full disk, with half of the data written."""
    replace_writer(monkeypatch, ending, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def interrupt(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    replace_writer(monkeypatch, ending, KeyboardInterrupt())


def replace_writer(monkeypatch: pytest.MonkeyPatch, ending: str, error: BaseException) -> None:
    from mutoscope.runtime import video_files

    key = ending or video_files.FOLDER
    whole = video_files._WRITERS[key]

    @contextmanager
    def open_failing(path: Path, clip: Clip, video: Video) -> Iterator[Callable[[Frames], object]]:
        with whole(path, clip, video) as add_frames:
            yield add_frames
        raise error

    monkeypatch.setitem(video_files._WRITERS, key, open_failing)
