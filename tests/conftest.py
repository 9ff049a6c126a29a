"""Tiny random checkpoints and their bundles, each made once for all tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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


def run_in_process(*arguments: str | Path) -> CommandResult:
    """Run `mutoscope ARGUMENTS` here, without a new interpreter, and return what it gave."""
    from click.testing import CliRunner

    from mutoscope.runtime.main import run

    runner, code = CliRunner(), 0
    with runner.isolation() as (stdout, stderr, *_):
        code = run([str(argument) for argument in arguments])
        return CommandResult(code, stdout.getvalue().decode(), stderr.getvalue().decode())


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AnimateDiffPipeline folder in float16: DDIM, v-prediction, motion in the middle block."""
    import torch

    from tests.checkpoints import TINY, make_components, save_animatediff

    folder = tmp_path_factory.mktemp("tiny")
    return save_animatediff(make_components(TINY, folder), folder / "tiny", torch.float16)


@pytest.fixture(scope="session")
def other_layouts(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    """A model of other sizes in float32: Euler, epsilon prediction, three blocks, 12 frames."""
    import torch

    from tests.checkpoints import (
        OTHER,
        make_components,
        save_animatediff,
        save_stable_diffusion,
    )

    folder = tmp_path_factory.mktemp("other")
    parts = make_components(OTHER, folder)
    image_model, adapter = save_stable_diffusion(parts, folder)
    return Layouts(save_animatediff(parts, folder / "other", torch.float32), image_model, adapter)


@pytest.fixture(scope="session")
def other_checkpoint(other_layouts: Layouts) -> Path:
    """The AnimateDiffPipeline folder of `other_layouts`."""
    return other_layouts.animatediff


@pytest.fixture(scope="session")
def tiny_export(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CommandResult]:
    """The bundle of `tiny_checkpoint`, and what the command that made it wrote."""
    output = tmp_path_factory.mktemp("bundles") / "tiny"
    return output, run_in_process("export", tiny_checkpoint, "-o", output, "--json")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_export: tuple[Path, CommandResult]) -> Path:
    """A bundle of `tiny_checkpoint` with DDIM tables for 1 to 50 steps."""
    path, result = tiny_export
    assert result.exit_code == 0, result.stderr
    return path


@pytest.fixture(scope="session")
def float16_export(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CommandResult]:
    """The bundle of `tiny_checkpoint` with float16 graphs, and what its command wrote."""
    output = tmp_path_factory.mktemp("bundles") / "tiny-float16"
    result = run_in_process(
        "export", tiny_checkpoint, "-o", output, "--dtype=float16", "--num-inference-steps=4,25"
    )
    assert result.exit_code == 0, result.stderr
    return output, result


@pytest.fixture(scope="session")
def float16_bundle(float16_export: tuple[Path, CommandResult]) -> Path:
    """A bundle of `tiny_checkpoint` with float16 graphs and DDIM tables for 4 and 25 steps."""
    return float16_export[0]


@pytest.fixture(scope="session")
def other_bundle(other_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `other_checkpoint` with tables of four schedulers for a few step counts."""
    from mutoscope.export import export_checkpoint

    output = tmp_path_factory.mktemp("bundles") / "other"
    report = export_checkpoint(
        other_checkpoint,
        output,
        name="other",
        schedulers=("ddim", "euler-ancestral", "UniPCMultistepScheduler"),
        num_inference_steps=(1, 2, 4, 8, 25),
    )
    return report.bundle


@pytest.fixture(scope="session")
def sdxl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AnimateDiffSDXLPipeline folder in float32: Euler, epsilon prediction, 16 frames."""
    from tests.sdxl_checkpoints import save_sdxl

    return save_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="session")
def sdxl_bundle(sdxl_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `sdxl_checkpoint`."""
    from mutoscope.export import export_checkpoint

    output = tmp_path_factory.mktemp("bundles") / "sdxl"
    return export_checkpoint(sdxl_checkpoint, output, num_inference_steps=(1, 2, 4)).bundle


@pytest.fixture(scope="session")
def modelscope_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TextToVideoSDPipeline folder in float32: DDIM, epsilon prediction."""
    from tests.unet3d_checkpoints import save_modelscope

    return save_modelscope(tmp_path_factory.mktemp("modelscope"))


@pytest.fixture(scope="session")
def modelscope_bundle(
    modelscope_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle of `modelscope_checkpoint`, with a scheduler that draws noise."""
    from mutoscope.export import export_checkpoint

    output = tmp_path_factory.mktemp("bundles") / "modelscope"
    return export_checkpoint(
        modelscope_checkpoint,
        output,
        schedulers=("euler-ancestral",),
        num_inference_steps=(1, 3, 8),
    ).bundle


@pytest.fixture(scope="session")
def i2vgen_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An I2VGenXLPipeline folder in float32: DDIM, v-prediction, zero terminal SNR."""
    from tests.unet3d_checkpoints import save_i2vgen

    return save_i2vgen(tmp_path_factory.mktemp("i2vgen"))


@pytest.fixture(scope="session")
def i2vgen_bundle(i2vgen_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `i2vgen_checkpoint`, with a scheduler that draws noise."""
    from mutoscope.export import export_checkpoint

    output = tmp_path_factory.mktemp("bundles") / "i2vgen"
    return export_checkpoint(
        i2vgen_checkpoint, output, schedulers=("euler-ancestral",), num_inference_steps=(1, 3, 8)
    ).bundle


@pytest.fixture(scope="session")
def svd_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableVideoDiffusionPipeline folder in float32: Euler, v-prediction, Karras sigmas."""
    from tests.svd_checkpoints import save_stable_video

    return save_stable_video(tmp_path_factory.mktemp("svd"))


@pytest.fixture(scope="session")
def svd_bundle(svd_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `svd_checkpoint`."""
    from mutoscope.export import export_checkpoint

    output = tmp_path_factory.mktemp("bundles") / "svd"
    return export_checkpoint(svd_checkpoint, output, num_inference_steps=(1, 4, 25)).bundle


@pytest.fixture
def run_command() -> RunCommand:
    """A function that runs `mutoscope ARGUMENTS` and returns a `CommandResult`."""
    return run_in_process


@pytest.fixture(scope="session")
def tiny_manifest(tiny_bundle: Path) -> dict[str, Any]:
    """The parsed manifest.json of `tiny_bundle`."""
    value: dict[str, Any] = json.loads((tiny_bundle / "manifest.json").read_text())
    return value
