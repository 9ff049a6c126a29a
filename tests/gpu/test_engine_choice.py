"""What was built and proved is found and used; what was not proved, or fails its proof, is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_in_process
from tests.gpu.conftest import Build, FindBundle
from tests.gpu.running import TENSORRT, EngineCase
from tests.gpu.test_results import generate

pytestmark = pytest.mark.gpu

VARIANTS = ("float32", "float16")
# More than any PSNR.
IMPOSSIBLE_DB = 250.0

on_every_flavour = pytest.mark.parametrize("case", TENSORRT, ids=str)


@pytest.fixture
def path(find_bundle: FindBundle, tmp_path: Path) -> Path:
    """A copy of a bundle without engines, which the test may change."""
    source = find_bundle("tiny")
    return shutil.copytree(source, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))


@on_every_flavour
def test_auto_takes_the_fastest_of_what_was_proved(
    case: EngineCase, path: Path, build: Build, tmp_path: Path
) -> None:
    case.make_options()
    built = [one for variant in VARIANTS for one in build(path, case, variant)["built"]]
    made = generate(path, tmp_path / "clip.npy", "--engine", "auto")
    for component, variant in made["variants"].items():
        seconds = {
            one["variant"]: one["proof"]["seconds_run"]
            for one in built
            if one["component"] == component
        }
        assert set(seconds) == set(VARIANTS)
        assert variant == min(seconds, key=lambda name: seconds[name])


@on_every_flavour
def test_a_second_build_finds_what_is_there(case: EngineCase, path: Path, build: Build) -> None:
    case.make_options()
    first = build(path, case, "float16")
    result = run_in_process(
        "build", path, "--engine", case.engine, "--variant", "float16", "--json"
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == first


@on_every_flavour
@pytest.mark.parametrize("change", ["removed", "failed"])
def test_what_is_not_proved_is_not_loaded_until_it_is(
    change: str, case: EngineCase, path: Path, build: Build, tmp_path: Path
) -> None:
    case.make_options()
    for one in build(path, case, "float16")["built"]:
        change_proof(Path(one["folder"]) / "proof.json", change)
    arguments = ("--bundle", path, "--engine", case.engine, "--variant", "float16")
    output = ("-o", tmp_path / "clip.npy", "--json")
    refused = run_in_process("generate", "a red circle", *arguments, *output)
    assert refused.exit_code == 1
    assert "is not used" in refused.stderr
    assert f"mutoscope verify {path} --engine {case.engine}" in refused.stderr
    verified = run_in_process("verify", path, "--engine", case.engine, "--json")
    assert verified.exit_code == 0, verified.stderr
    assert json.loads(verified.stdout)["ok"]
    done = run_in_process("generate", "a red circle", *arguments, *output)
    assert done.exit_code == 0, done.stderr


def change_proof(proof: Path, change: str) -> None:
    """Remove a proof, or make it one that was not good enough."""
    record: dict[str, Any] = json.loads(proof.read_text())
    if change == "removed":
        proof.unlink()
    else:
        proof.write_text(json.dumps({**record, "minimum_psnr_db": IMPOSSIBLE_DB}))
