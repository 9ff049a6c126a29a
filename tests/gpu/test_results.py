"""What engines compute on a GPU, against onnxruntime on the CPU: components and whole clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.engine_proof import MINIMUM_PSNR_DB
from mutoscope.runtime.metrics import psnr_db
from tests.conftest import run_in_process
from tests.gpu.conftest import Build, FindBundle, choose_steps
from tests.gpu.running import (
    BUNDLES,
    PROVIDERS,
    SEED,
    TENSORRT,
    VARIANTS,
    EngineCase,
    make_feeds,
    measure_psnr,
    open_component,
    run_on_cpu,
)

pytestmark = pytest.mark.gpu

# Of frames, 0 to 255, made by the same graphs on the CPU. In float32 (TF32) and float16 each step
# adds an error like that of one pass, which is 50 and 40 dB at worst; four steps of it, added up as
# noise, are 6 dB more. Two int8 clips that are 40 dB from float32, as those of the shipped model,
# are 34 dB from each other at worst.
MINIMUM_CLIP_PSNR_DB = {"float32": 44.0, "float16": 34.0, "int8": 30.0}
STEPS = 4
CLIPS = [
    *(("shipped", variant) for variant in VARIANTS),
    *((name, "float16") for name in BUNDLES[1:]),
]

on_every_engine = pytest.mark.parametrize("case", [*PROVIDERS, *TENSORRT], ids=str)


@on_every_engine
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", BUNDLES)
def test_components_give_what_they_give_on_the_cpu(
    name: str, variant: str, case: EngineCase, find_bundle: FindBundle, build: Build
) -> None:
    options, path = case.make_options(), find_bundle(name)
    if case in TENSORRT:
        build(path, case, variant)
    found = {}
    for component, record in Bundle.open(path).manifest.components.items():
        chosen, feeds = record.choose_variant(variant), make_feeds(path)[component]
        with open_component(path, component, options, chosen, feeds) as engine:
            outputs = engine.run(feeds)
        expected = run_on_cpu(path, component, chosen)
        found[component] = measure_psnr(expected, outputs) - MINIMUM_PSNR_DB[chosen]
    assert min(found.values()) >= 0, f"dB above the least: {found}"


@on_every_engine
@pytest.mark.parametrize(("name", "variant"), CLIPS)
def test_a_clip_is_that_of_the_cpu(
    name: str,
    variant: str,
    case: EngineCase,
    find_bundle: FindBundle,
    build: Build,
    tmp_path: Path,
) -> None:
    case.make_options()
    path = find_bundle(name)
    if case in TENSORRT:
        build(path, case, variant)
    engine = ("--engine", case.engine, "--execution-provider", case.execution_provider)
    clips = {}
    for place, choice in (("cpu", ()), ("gpu", engine)):
        output = tmp_path / f"{place}.npy"
        made = generate(path, output, "--variant", variant, *choice)
        assert set(made["variants"].values()) <= {variant, "float32"}
        assert made["engine"]["engine"] == (case.engine if choice else "onnxruntime")
        clips[place] = np.load(output)
    assert clips["cpu"].std() > 0
    assert psnr_db(clips["cpu"], clips["gpu"]) >= MINIMUM_CLIP_PSNR_DB[variant]


def generate(path: Path, output: Path, *arguments: str) -> dict[str, object]:
    """Run `mutoscope generate` for a short clip, and return what it says."""
    bundle = Bundle.open(path)
    inputs: list[str | Path] = ["a red circle moves left"] if bundle.manifest.tokenizers else []
    if bundle.manifest.images:
        inputs += ["--image", path.parent / "image.png"]
    steps = str(choose_steps(bundle, STEPS))
    result = run_in_process(
        *("generate", *inputs, "--bundle", path, "-o", output, "--seed", str(SEED), "--json"),
        *("--num-inference-steps", steps, "--guidance-scale", "1", *arguments),
    )
    assert result.exit_code == 0, result.stderr
    made: dict[str, object] = json.loads(result.stdout)
    return made
