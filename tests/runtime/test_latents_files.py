import os
from pathlib import Path

import numpy as np
import pytest

from mutoscope.runtime.errors import OutputError, ParameterError
from mutoscope.runtime.latents_files import load_latents, save_latents
from mutoscope.runtime.sampler import F32

INFO = {"prompt": "a réd circle", "seed": 2**64 - 1, "frame_rate": 8.0}


@pytest.fixture
def latents() -> F32:
    return np.random.default_rng(0).standard_normal((1, 4, 2, 3, 5), dtype=np.float32)


def test_latents_come_back_to_the_bit_with_how_they_were_made(tmp_path: Path, latents: F32) -> None:
    path = save_latents(tmp_path / "x.npz", latents, INFO)
    saved = load_latents(path, num_channels=4)
    np.testing.assert_array_equal(saved.latents, latents)
    assert saved.info == INFO
    assert os.listdir(tmp_path) == ["x.npz"]


def test_npy_is_the_array_alone(tmp_path: Path, latents: F32) -> None:
    transposed = np.asfortranarray(latents)
    path = save_latents(tmp_path / "x.npy", transposed, INFO)
    np.testing.assert_array_equal(np.load(path), latents)
    assert load_latents(path).info == {}


def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path, latents: F32) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"x.npz exists: use --force"):
        save_latents(path, latents)
    assert path.read_bytes() == b"mine"
    save_latents(path, latents, force=True)
    np.testing.assert_array_equal(load_latents(path).latents, latents)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.mp4", r"x.mp4 has an unknown ending for latents: use .npz or .npy"),
        ("no/x.npz", "there is no folder"),
        ("folder.npz", r"folder.npz is a folder: use another name"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused(
    tmp_path: Path, latents: F32, name: str, message: str
) -> None:
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(OutputError, match=message):
        save_latents(tmp_path / name, latents)


def test_only_latents_are_saved(tmp_path: Path, latents: F32) -> None:
    for wrong, message in (
        (latents.astype(np.float64), r"latents holds float64\[1, 4, 2, 3, 5\]; it must be float32"),
        (latents[0], r"latents holds float32\[4, 2, 3, 5\]; it must be float32 \[1, C, F, h, w\]"),
        (np.full_like(latents, np.nan), "latents has values that are not finite"),
    ):
        with pytest.raises(ParameterError, match=message):
            save_latents(tmp_path / "x.npz", wrong)
    assert os.listdir(tmp_path) == []


def test_a_file_that_holds_no_latents_is_refused_in_one_line(tmp_path: Path, latents: F32) -> None:
    whole = save_latents(tmp_path / "whole.npz", latents).read_bytes()
    np.savez(tmp_path / "other.npz", something=latents)
    np.savez(tmp_path / "list.npz", latents=latents, info="[1]")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object))
    (tmp_path / "cut.npz").write_bytes(whole[:200])
    (tmp_path / "text.npz").write_text("not latents")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("other.npz", "list.npz", "object.npy", "cut.npz", "text.npz", "empty.npz"):
        with pytest.raises(
            ParameterError, match=rf"{name} is not a file of latents: make"
        ) as caught:
            load_latents(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ParameterError, match=r"absent.npz cannot be read: No such file"):
        load_latents(tmp_path / "absent.npz")


def test_latents_of_another_kind_are_refused(tmp_path: Path, latents: F32) -> None:
    path = save_latents(tmp_path / "x.npz", latents)
    with pytest.raises(ParameterError, match=r"has latents of 4 channels; this bundle's have 16"):
        load_latents(path, num_channels=16)
    np.save(tmp_path / "frames.npy", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ParameterError, match=r"frames.npy holds uint8\[2, 8, 8, 3\]; it must be"):
        load_latents(tmp_path / "frames.npy")
    latents[0, 0, 0, 0, 0] = np.inf
    np.save(tmp_path / "inf.npy", latents)
    with pytest.raises(ParameterError, match=r"inf.npy has values that are not finite"):
        load_latents(tmp_path / "inf.npy")
