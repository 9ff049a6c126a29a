"""Fixtures of the runtime's tests: a bundle made by hand, and the command line."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mutoscope.runtime.pipeline import VideoPipeline
from tests.runtime.hand_made_bundle import make_bundle

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle; not to be changed."""
    return make_bundle(tmp_path_factory.mktemp("hand-made") / "bundle")


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
