"""What the tests on a GPU share: bundles in all variants, and what was built of them.

They run with make test-gpu. What a machine lacks is skipped, with what it lacks as the reason, and
what ran is counted at the end: a run in which all was skipped must not look like one that passed.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.engines.cuda_device import GpuRecord, list_gpus
from mutoscope.runtime.errors import EngineError
from tests.conftest import run_in_process
from tests.gpu.running import EngineCase

FOLDER = "tests/gpu/"
ROOT = Path(__file__).resolve().parents[2]
# A clip of few steps: calibration is to find ranges here, not to be good.
CALIBRATION_STEPS = 2

FindBundle = Callable[[str], Path]
Build = Callable[..., dict[str, Any]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what ran of the tests on a GPU, if any was chosen."""
    counts, reasons = Counter[str](), Counter[str]()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            if not report.nodeid.startswith(FOLDER) or "gpu" not in report.keywords:
                continue
            counts[outcome] += 1
            if outcome == "skipped":
                reasons[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1
    if not counts:
        return
    terminalreporter.section("tests on a GPU")
    ran = counts.total() - counts["skipped"]
    if ran:
        listed = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        terminalreporter.line(f"{ran} of {counts.total()} ran: {listed}")
    else:
        terminalreporter.line(f"nothing could run here: all {counts.total()} were skipped")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count} skipped: {reason}")


@pytest.fixture(scope="session", autouse=True)
def gpu() -> GpuRecord:
    """The GPU that engines run on; before all else, since making bundles takes a while."""
    try:
        return list_gpus()[0]
    except EngineError as err:
        pytest.skip(str(err))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of their own, for engines of bundles that others may use too."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def find_bundle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> FindBundle:
    """A function that returns a bundle of BUNDLES, with graphs in float32, float16 and int8."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = make_variants(*find_source(request, name), folder)
        return made[name]

    return find


def find_source(request: pytest.FixtureRequest, name: str) -> tuple[Path, Path]:
    """Return the bundle in float32 and the checkpoint that it was made of."""
    if name == "shipped":
        return ROOT / "runtime" / "default_bundle", ROOT / "checkpoints" / "moving-shapes"
    bundle, checkpoint = (request.getfixturevalue(f"{name}_{k}") for k in ("bundle", "checkpoint"))
    return bundle, checkpoint


def make_variants(source: Path, checkpoint: Path, folder: Path) -> Path:
    """Return a copy of a bundle with float16 and int8 graphs; every layer that may be is int8."""
    from PIL import Image

    from mutoscope.calibration.calibrate import CalibrationOptions, calibrate_bundle
    from mutoscope.calibration.samples import SamplingOptions
    from mutoscope.runtime.bundle import Bundle
    from tests.calibration.small_calibration import ANY_DB, PROMPTS, make_up_times

    path = shutil.copytree(source, folder / "bundle")
    result = run_in_process("export", checkpoint, "-o", path, "--dtype", "float16", "--add")
    assert result.exit_code == 0, result.stderr
    bundle, image, prompts = Bundle.open(path), folder / "image.png", folder / "prompts.txt"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    prompts.write_text(PROMPTS)
    options = CalibrationOptions(
        preset="fast",
        method="minmax",
        min_psnr_db=ANY_DB,
        num_samples=1,
        prompts=prompts if bundle.manifest.tokenizers else None,
        images=(image,) if bundle.manifest.images else (),
        sampling=SamplingOptions(num_inference_steps=choose_steps(bundle, CALIBRATION_STEPS)),
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_up_times(monkeypatch)
        calibrate_bundle(bundle, options)
    return path


def choose_steps(bundle: Any, wanted: int) -> int:
    """Return the number of steps with a table that is nearest to what is wanted."""
    counts = bundle.manifest.schedules[bundle.manifest.defaults.scheduler]
    return min(map(int, counts), key=lambda count: abs(count - wanted))


@pytest.fixture(scope="session")
def build() -> Build:
    """A function that runs `mutoscope build --json` once for the same arguments."""
    done: dict[tuple[str, ...], dict[str, Any]] = {}

    def run(bundle: Path, case: EngineCase, variant: str, *arguments: str) -> dict[str, Any]:
        command = (str(bundle), "--engine", case.engine, "--variant", variant, *arguments)
        if command not in done:
            result = run_in_process("build", *command, "--json")
            assert result.exit_code == 0, result.stderr
            done[command] = json.loads(result.stdout)
        return done[command]

    return run
