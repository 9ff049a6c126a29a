import json
import os
from pathlib import Path

import click
import numpy as np
import pytest

from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.runtime import main
from mutoscope.runtime.commands.options import parse_bytes
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.latents_files import save_latents
from mutoscope.runtime.sampler import F32

# What a convolution in another order, and the last rounding, may change.
MAX_MEMORY_MODE_ERROR = 1
DECODER = {
    "independent_frames": True,
    "bytes_per_pixel": 4096.0,
    "bytes_per_latent_pair": 0.0,
    "weights_bytes": 1000,
}


@pytest.fixture(autouse=True)
def _command(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("mutoscope.runtime.commands.decode:decode", "Make a video of saved latents.")
    monkeypatch.setitem(main.COMMANDS, "decode", line)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def latents() -> F32:
    return np.random.default_rng(1).standard_normal((1, 4, 5, 4, 6), dtype=np.float32)


@pytest.fixture
def told_bundle(own_bundle: Path) -> Path:
    """A bundle that says what its decoder needs."""
    path = own_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["components"]["vae_decoder"]["decoder"] = DECODER
    path.write_text(json.dumps(manifest))
    return own_bundle


def run(*arguments: object) -> int:
    return main.run([str(argument) for argument in arguments])


def decode_whole(bundle: Path, latents: F32) -> np.ndarray:
    engine = OnnxruntimeEngine(bundle / "vae_decoder" / "model.onnx", num_threads=1)
    return engine.run({"latents": latents})["frames"][0]


def test_decode_makes_the_video_of_the_latents(
    bundle_path: Path, here: Path, latents: F32, capsys: pytest.CaptureFixture[str]
) -> None:
    save_latents("x.npz", latents, {"prompt": "a red circle", "frame_rate": 12.5, "seed": 7})
    assert run("decode", "x.npz", "--bundle", bundle_path, "-o", "x.npy", "--json") == 0
    np.testing.assert_array_equal(np.load("x.npy"), decode_whole(bundle_path, latents))
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["frame_rate"] == 12.5
    assert result["info"]["seed"] == 7
    assert result["tile_height"] is None
    assert captured.err.startswith("x.npy: ")
    assert captured.err.endswith(" s, 5 frames at a time, whole\n")


def test_decode_names_its_output_after_the_latents(
    bundle_path: Path, here: Path, latents: F32
) -> None:
    save_latents("clip.npz", latents)
    save_latents("one.npy", latents[:, :, :1])
    assert run("decode", "clip.npz", "--bundle", bundle_path) == 0
    assert run("decode", "one.npy", "--bundle", bundle_path) == 0
    assert sorted(os.listdir(here)) == ["clip.mp4", "clip.npz", "one.npy", "one.png"]


def test_low_memory_and_a_limit_decode_frame_by_frame_to_the_same(
    told_bundle: Path, here: Path, latents: F32, capsys: pytest.CaptureFixture[str]
) -> None:
    save_latents("x.npy", latents)
    memory = ["--memory", "low", "--memory-limit", "110MiB", "--num-threads", 1]
    arguments = ["--bundle", told_bundle, "-o", "out.npy", "--frame-rate", 4, *memory, "--json"]
    assert run("decode", "x.npy", *arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["frames_per_chunk"] == 1
    assert result["frame_rate"] == 4
    difference = np.load("out.npy").astype(int) - decode_whole(told_bundle, latents)
    assert np.abs(difference).max() <= MAX_MEMORY_MODE_ERROR


def test_decode_works_with_the_shipped_bundle(here: Path, latents: F32) -> None:
    save_latents("x.npz", latents)
    assert run("decode", "x.npz", "-o", "x.webp", "--num-threads", 1) == 0
    assert (here / "x.webp").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory-limit", "101MiB"], "memory_limit is 101 MiB; decoding 5 frames of 32 x 48 pix"),
        (["-o", "x.avi"], "x.avi has an unknown ending: use .mp4"),
        (["-o", "x.npz"], "x.npz has an unknown ending"),
        (["-o", "taken.mp4"], "taken.mp4 exists: use --force"),
        (["--execution-provider", "gpu"], "execution provider 'gpu' is unknown"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(
    told_bundle: Path,
    here: Path,
    latents: F32,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    save_latents("x.npz", latents)
    Path("taken.mp4").write_bytes(b"taken")
    assert run("decode", "x.npz", "--bundle", told_bundle, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(os.listdir(here)) == ["taken.mp4", "x.npz"]


def test_latents_of_another_bundle_are_refused(
    bundle_path: Path, here: Path, latents: F32, capsys: pytest.CaptureFixture[str]
) -> None:
    save_latents("x.npz", latents.repeat(4, axis=1))
    assert run("decode", "x.npz", "--bundle", bundle_path) == 1
    assert "x.npz has latents of 16 channels; this bundle's have 4" in capsys.readouterr().err


def test_a_size_that_is_none_is_wrong_usage(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("decode", "x.npz", "--memory-limit", "lots") == 2
    assert "'lots' is not a size in bytes: use for example 2GiB" in capsys.readouterr().err


def test_every_option_has_help_and_the_command_an_example() -> None:
    command = main.group.get_command(click.Context(main.group), "decode")
    assert command is not None
    assert "mutoscope decode" in (command.epilog or "")
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * 2**30),
        ("2G", 2 * 2**30),
        ("1.5g", 3 * 2**29),
        ("800MB", 800 * 10**6),
        ("800 MiB", 800 * 2**20),
        ("64k", 65536),
        ("1kB", 1000),
        ("4096", 4096),
        ("4096B", 4096),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1G", "1.G", "2 gigabytes", "1e9", "0", "0.1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match=r"use for example 2GiB"):
        parse_bytes(text)
