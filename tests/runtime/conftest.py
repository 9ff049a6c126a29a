"""Fixtures of the runtime's tests: a bundle made by hand, and the command line."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.schedule import ScheduleTable
from tests.runtime.hand_made_bundle import make_bundle, write_manifest

# What the rows of the hand-made tables make of latents and model output; so that only rounding is
# left between an estimate and the latents after the row.
ESTIMATE = (0.9, -0.4)

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle; not to be changed."""
    return make_bundle(tmp_path_factory.mktemp("hand-made") / "bundle")


@pytest.fixture(scope="session")
def preview_bundle(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with its decoder a second time, and estimates that are the new latents."""
    bundle = tmp_path_factory.mktemp("preview") / "bundle"
    shutil.copytree(bundle_path, bundle)
    shutil.copytree(bundle / "vae_decoder", bundle / "preview_decoder")
    for path in (bundle / "schedules").iterdir():
        table = ScheduleTable.load(path)
        rows = tuple(dataclasses.replace(row, denoised=ESTIMATE) for row in table.rows)
        dataclasses.replace(table, rows=rows).save(path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    decoder = json.loads(json.dumps(manifest["components"]["vae_decoder"]))
    decoder["variants"] = {"float32": "preview_decoder/model.onnx"}
    manifest["components"]["preview_decoder"] = decoder
    write_manifest(bundle, manifest)
    return bundle


@pytest.fixture
def own_bundle(bundle_path: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that the test may damage."""
    return Path(shutil.copytree(bundle_path, tmp_path / "own-bundle"))


@pytest.fixture
def pipeline(bundle_path: Path) -> Iterator[VideoPipeline]:
    with VideoPipeline.open(bundle_path) as pipeline:
        yield pipeline


@pytest.fixture
def run_cli(tmp_path: Path) -> RunCli:
    """Run `mutoscope` in a process of its own, in an empty folder."""
    folder = tmp_path / "cli"
    folder.mkdir()

    def run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from mutoscope.runtime.main import main; main()"]
        done = subprocess.run(
            [*command, *map(str, arguments)], capture_output=True, text=True, cwd=folder
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run
