"""Tiny random checkpoints and their bundles, each made once for all tests."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# The models of the tests are so small that threads only wait for each other: on a busy machine with
# two cores one forward pass took 30 times as long with two threads. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass(frozen=True)
class Layouts:
    """One random model in the folder layouts that people have.

    Attributes:
        animatediff: A saved AnimateDiffPipeline.
        stable_diffusion: The same image model, as a saved StableDiffusionPipeline.
        motion_adapter: The motion modules that belong to it.
    """

    animatediff: Path
    stable_diffusion: Path
    motion_adapter: Path


@dataclass(frozen=True)
class CommandResult:
    """What a run of the command line gave."""

    exit_code: int
    stdout: str
    stderr: str


RunCommand = Callable[..., CommandResult]
MakeOnce = Callable[[str, Callable[[Path], Path]], Path]


def run_in_process(*arguments: str | Path) -> CommandResult:
    """Run `mutoscope ARGUMENTS` here, without a new interpreter, and return what it gave."""
    from click.testing import CliRunner

    from mutoscope.runtime.main import run

    runner, code = CliRunner(), 0
    with runner.isolation() as (stdout, stderr, *_):
        code = run([str(argument) for argument in arguments])
        return CommandResult(code, stdout.getvalue().decode(), stderr.getvalue().decode())


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """A function that fills a folder of a name once for all processes of a run.

    It returns the path that what fills the folder returned; what is in it is not to be changed.
    """
    root = tmp_path_factory.getbasetemp()
    # With pytest-xdist each process has a folder of its own in that of the run.
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"
    root.mkdir(exist_ok=True)

    def make(name: str, fill: Callable[[Path], Path]) -> Path:
        folder, made = root / name, root / f"{name}.made"
        with FileLock(f"{folder}.lock"):
            if not made.exists():
                # What another process left when it failed.
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                made.write_text(str(fill(folder)))
        return Path(made.read_text())

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_once: MakeOnce) -> Path:
    """An AnimateDiffPipeline folder in float16: DDIM, v-prediction, motion in the middle block."""

    def fill(folder: Path) -> Path:
        import torch

        from tests.checkpoints import TINY, make_components, save_animatediff

        return save_animatediff(make_components(TINY, folder), folder / "tiny", torch.float16)

    return make_once("tiny", fill)


@pytest.fixture(scope="session")
def other_layouts(make_once: MakeOnce) -> Layouts:
    """A model of other sizes in float32: Euler, epsilon prediction, three blocks, 12 frames."""

    def fill(folder: Path) -> Path:
        import torch

        from tests.checkpoints import (
            OTHER,
            make_components,
            save_animatediff,
            save_stable_diffusion,
        )

        parts = make_components(OTHER, folder)
        save_stable_diffusion(parts, folder)
        save_animatediff(parts, folder / "other", torch.float32)
        return folder

    folder = make_once("other", fill)
    return Layouts(folder / "other", folder / "stable-diffusion", folder / "motion-adapter")


@pytest.fixture(scope="session")
def other_checkpoint(other_layouts: Layouts) -> Path:
    """The AnimateDiffPipeline folder of `other_layouts`."""
    return other_layouts.animatediff


def _export_once(
    make_once: MakeOnce, name: str, *arguments: str | Path
) -> tuple[Path, CommandResult]:
    """The bundle that a command line makes, and what it wrote."""

    def fill(folder: Path) -> Path:
        result = run_in_process("export", *arguments, "-o", folder / name)
        (folder / "result.json").write_text(json.dumps(dataclasses.asdict(result)))
        return folder

    folder = make_once(f"bundle-{name}", fill)
    return folder / name, CommandResult(**json.loads((folder / "result.json").read_text()))


def _export_bundle(make_once: MakeOnce, name: str, checkpoint: Path, /, **options: Any) -> Path:
    """The bundle that `export_checkpoint` makes with these options."""

    def fill(folder: Path) -> Path:
        from mutoscope.export import export_checkpoint

        return export_checkpoint(checkpoint, folder / name, **options).bundle

    return make_once(f"bundle-{name}", fill)


@pytest.fixture(scope="session")
def tiny_export(tiny_checkpoint: Path, make_once: MakeOnce) -> tuple[Path, CommandResult]:
    """The bundle of `tiny_checkpoint`, and what the command that made it wrote."""
    return _export_once(make_once, "tiny", tiny_checkpoint, "--json")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_export: tuple[Path, CommandResult]) -> Path:
    """A bundle of `tiny_checkpoint` with DDIM tables for 1 to 50 steps."""
    path, result = tiny_export
    assert result.exit_code == 0, result.stderr
    return path


@pytest.fixture(scope="session")
def float16_export(tiny_checkpoint: Path, make_once: MakeOnce) -> tuple[Path, CommandResult]:
    """The bundle of `tiny_checkpoint` with float16 graphs, and what its command wrote."""
    path, result = _export_once(
        make_once,
        "tiny-float16",
        tiny_checkpoint,
        "--dtype=float16",
        "--num-inference-steps=4,25",
    )
    assert result.exit_code == 0, result.stderr
    return path, result


@pytest.fixture(scope="session")
def float16_bundle(float16_export: tuple[Path, CommandResult]) -> Path:
    """A bundle of `tiny_checkpoint` with float16 graphs and DDIM tables for 4 and 25 steps."""
    return float16_export[0]


@pytest.fixture(scope="session")
def other_bundle(other_checkpoint: Path, make_once: MakeOnce) -> Path:
    """A bundle of `other_checkpoint` with tables of four schedulers for a few step counts."""
    return _export_bundle(
        make_once,
        "other",
        other_checkpoint,
        name="other",
        schedulers=("ddim", "euler-ancestral", "UniPCMultistepScheduler"),
        num_inference_steps=(1, 2, 4, 8, 25),
    )


@pytest.fixture(scope="session")
def sdxl_checkpoint(make_once: MakeOnce) -> Path:
    """An AnimateDiffSDXLPipeline folder in float32: Euler, epsilon prediction, 16 frames."""
    from tests.sdxl_checkpoints import save_sdxl

    return make_once("sdxl", save_sdxl)


@pytest.fixture(scope="session")
def sdxl_bundle(sdxl_checkpoint: Path, make_once: MakeOnce) -> Path:
    """A bundle of `sdxl_checkpoint`."""
    return _export_bundle(make_once, "sdxl", sdxl_checkpoint, num_inference_steps=(1, 2, 4))


@pytest.fixture(scope="session")
def modelscope_checkpoint(make_once: MakeOnce) -> Path:
    """A TextToVideoSDPipeline folder in float32: DDIM, epsilon prediction."""
    from tests.unet3d_checkpoints import save_modelscope

    return make_once("modelscope", save_modelscope)


@pytest.fixture(scope="session")
def modelscope_bundle(modelscope_checkpoint: Path, make_once: MakeOnce) -> Path:
    """A bundle of `modelscope_checkpoint`, with a scheduler that draws noise."""
    return _export_bundle(
        make_once,
        "modelscope",
        modelscope_checkpoint,
        schedulers=("euler-ancestral",),
        num_inference_steps=(1, 3, 8),
    )


@pytest.fixture(scope="session")
def i2vgen_checkpoint(make_once: MakeOnce) -> Path:
    """An I2VGenXLPipeline folder in float32: DDIM, v-prediction, zero terminal SNR."""
    from tests.unet3d_checkpoints import save_i2vgen

    return make_once("i2vgen", save_i2vgen)


@pytest.fixture(scope="session")
def i2vgen_bundle(i2vgen_checkpoint: Path, make_once: MakeOnce) -> Path:
    """A bundle of `i2vgen_checkpoint`, with a scheduler that draws noise."""
    return _export_bundle(
        make_once,
        "i2vgen",
        i2vgen_checkpoint,
        schedulers=("euler-ancestral",),
        num_inference_steps=(1, 3, 8),
    )


@pytest.fixture(scope="session")
def svd_checkpoint(make_once: MakeOnce) -> Path:
    """A StableVideoDiffusionPipeline folder in float32: Euler, v-prediction, Karras sigmas."""
    from tests.svd_checkpoints import save_stable_video

    return make_once("svd", save_stable_video)


@pytest.fixture(scope="session")
def svd_bundle(svd_checkpoint: Path, make_once: MakeOnce) -> Path:
    """A bundle of `svd_checkpoint`."""
    return _export_bundle(make_once, "svd", svd_checkpoint, num_inference_steps=(1, 4, 25))


@pytest.fixture
def run_command() -> RunCommand:
    """A function that runs `mutoscope ARGUMENTS` and returns a `CommandResult`."""
    return run_in_process


@pytest.fixture(scope="session")
def tiny_manifest(tiny_bundle: Path) -> dict[str, Any]:
    """The parsed manifest.json of `tiny_bundle`."""
    value: dict[str, Any] = json.loads((tiny_bundle / "manifest.json").read_text())
    return value
