import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mutoscope.runtime.clip_files import load_clip
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.video import Video
from tests.runtime.evaluation.defects import draw, name_clip

# 4:2:0 halves the resolution of colour and the codec rounds; a wrong matrix or range is above 8.
MAX_MEAN_ERROR = 3.0


@pytest.fixture(scope="module")
def frames():
    return draw(name_clip())[:6]


def write_array(folder: Path, shape: str, data: bytes) -> Path:
    """Write a `.npy` whose header says `shape`."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    path = folder / "array.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)
    return path


@pytest.mark.parametrize("ending", [".webp", ".apng", ".npy", "", ".gif"])
def test_frames_come_back_as_they_were_saved(frames, tmp_path: Path, ending: str) -> None:
    path = Video(frames, 8.0).save(tmp_path / f"clip{ending}")
    # The drawn clip has fewer than the 256 colours of a GIF.
    assert np.array_equal(load_clip(path), frames)


@pytest.mark.parametrize("ending", [".mp4", ".webm"])
def test_videos_come_back_as_the_codec_kept_them(frames, tmp_path: Path, ending: str) -> None:
    found = load_clip(Video(frames, 8.0).save(tmp_path / f"clip{ending}"))
    assert found.dtype == np.uint8
    assert found.shape == frames.shape
    assert np.abs(found.astype(int) - frames).mean() < MAX_MEAN_ERROR


def test_an_image_is_a_clip_of_one_frame(frames, tmp_path: Path) -> None:
    path = Video(frames[:1], 8.0).save(tmp_path / "one.png")
    assert np.array_equal(load_clip(path), frames[:1])


def test_a_folder_is_read_in_the_order_of_names_and_other_files_are_left(
    frames, tmp_path: Path
) -> None:
    for name, frame in zip(("b.png", "a.png", "c.png"), frames, strict=False):
        Image.fromarray(frame).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no frame")
    assert np.array_equal(load_clip(tmp_path), frames[[1, 0, 2]])


@pytest.mark.parametrize("name", ["x.mp4", "x.webm", "x.gif", "x.webp", "x.apng", "x.npy", "x"])
def test_a_file_that_is_no_clip_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"no clip at all")
    with pytest.raises(ParameterError, match=r": give a \.mp4") as caught:
        load_clip(path)
    assert str(caught.value).startswith(f"{path} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_damaged_image_of_a_folder_is_named(frames, tmp_path: Path, share: float) -> None:
    path = Video(frames, 8.0).save(tmp_path / "clip")
    image = path / "frame_0003.png"
    whole = image.read_bytes()
    image.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ParameterError, match=r": write it again, or take it out") as caught:
        load_clip(path)
    assert str(caught.value).startswith(f"{image} ")


@pytest.mark.parametrize("name", ["x.mp4", "x.gif", "x.npy", "folder/x"])
def test_a_file_that_is_absent_says_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(ParameterError, match=r"cannot be read \(No such file or directory\)"):
        load_clip(tmp_path / name)


@pytest.mark.parametrize("ending", [".mp4", ".webp", ".apng", ".npy"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_that_was_cut_off_is_refused(
    frames, tmp_path: Path, ending: str, share: float
) -> None:
    path = Video(frames, 8.0).save(tmp_path / f"clip{ending}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ParameterError, match=r": give a \.mp4"):
        load_clip(path)


def test_an_array_that_is_no_clip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latents.npy"
    np.save(path, np.zeros((1, 4, 16, 8, 8), np.float32))
    with pytest.raises(ParameterError, match=r"holds float32\[1, 4, 16, 8, 8\]; a clip is uint8"):
        load_clip(path)


@pytest.mark.parametrize("num_frames", [17, 10**8, 10**40])
def test_an_array_whose_header_says_more_than_the_file_holds_is_refused(
    frames, tmp_path: Path, num_frames: int
) -> None:
    path = write_array(tmp_path, f"({num_frames}, 64, 64, 3)", frames.tobytes())
    said = f"header says {num_frames * 64 * 64 * 3}, uint8"
    with pytest.raises(ParameterError, match=said) as caught:
        load_clip(path)
    assert str(caught.value).startswith(f"{path} holds {frames.size} bytes of frames; its ")


@pytest.mark.parametrize("shape", ["(-1, 64, 64, 3)", "(0, 64, 64, 3)", "(64, 64, 3)"])
def test_an_array_without_frames_is_refused(frames, tmp_path: Path, shape: str) -> None:
    path = write_array(tmp_path, shape, frames.tobytes())
    with pytest.raises(ParameterError, match=r"holds uint8\[.*\]; a clip is uint8"):
        load_clip(path)


@pytest.mark.parametrize("shape", ["-" * 9000 + "1", "1+" * 4000 + "1", "(" * 5000])
def test_an_array_with_a_header_that_python_cannot_read_is_refused(
    tmp_path: Path, shape: str
) -> None:
    with pytest.raises(ParameterError, match=r": give a "):
        load_clip(write_array(tmp_path, shape, b""))


def test_a_clip_that_memory_does_not_hold_is_named(frames, tmp_path: Path, monkeypatch) -> None:
    path = Video(frames, 8.0).save(tmp_path / "clip.npy")

    def fail(*_arguments: object, **_named: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np.lib.format, "read_array", fail)
    with pytest.raises(ParameterError, match=r"clip\.npy takes more memory than there is"):
        load_clip(path)


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "objects.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ParameterError, match=r"holds object\[1\]; a clip is uint8"):
        load_clip(path)


def test_frames_of_several_sizes_are_refused(tmp_path: Path) -> None:
    for name, side in (("a.png", 32), ("b.png", 16)):
        Image.new("RGB", (side, 24)).save(tmp_path / name)
    with pytest.raises(ParameterError, match="frame 1 is 24 x 32, frame 2 is 24 x 16: give"):
        load_clip(tmp_path)


def test_an_empty_folder_has_no_frames(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="has no frames in it"):
        load_clip(tmp_path)
