"""What a user installs: the wheel's files, its metadata, and the layers of the source tree."""

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("export", "runtime", "engines", "calibration")
LEAN_DEPENDENCIES = {"numpy", "onnxruntime", "tokenizers", "pillow", "click", "av"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    return zipfile.ZipFile(path)


def is_native(name: str) -> bool:
    """Whether a file is of libmutoscope, of which the wheel has its Python binding alone."""
    return name.startswith("runtime/native/")


def test_the_wheel_holds_exactly_the_source_files(wheel: zipfile.ZipFile) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PARTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    expected = {
        f"mutoscope/{name}"
        for name in tracked
        if name and (ROOT / name).is_file() and (not is_native(name) or name.endswith(".py"))
    }
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {name for name in expected if is_native(name.removeprefix("mutoscope/"))}


def test_the_wheel_holds_a_whole_bundle(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for name in ("manifest.json", "unet/model.onnx", "vae_decoder/model.onnx"):
        assert f"mutoscope/runtime/default_bundle/{name}" in names


def test_a_plain_install_asks_for_the_lean_runtime_only(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    lines = wheel.read(name).decode().splitlines()
    required = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist")]
    plain = {text.partition(">=")[0].strip() for text in required if "extra ==" not in text}
    assert plain == LEAN_DEPENDENCIES


def test_the_version_is_the_same_in_code_and_metadata() -> None:
    from mutoscope.runtime import __version__

    assert __version__ == metadata.version("mutoscope")
