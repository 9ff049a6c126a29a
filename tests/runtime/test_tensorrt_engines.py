"""What is built for TensorRT: real builds without a GPU, and what becomes of them with one.

The GPU is emulated (tests/runtime/emulated_gpu.py); nothing here ran on a real one.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.engines.options import EngineOptions
from mutoscope.engines.tensorrt_build import TensorrtBuildOptions
from mutoscope.runtime import built_engines
from mutoscope.runtime.built_engines import (
    PROOF_NAME,
    RECORD_NAME,
    BuiltEngine,
    find_built,
    remove_built,
)
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.engine_choice import GraphFinder
from mutoscope.runtime.engine_proof import MINIMUM_PSNR_DB, EngineProver
from mutoscope.runtime.errors import CancelledError, EngineError
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.shape_ranges import parse_clip_range
from mutoscope.runtime.tensorrt_engines import build_for_tensorrt, find_same
from tests.runtime.emulated_gpu import EmulatedGpu, emulate_gpu
from tests.runtime.test_variants import add_variants

pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13 (Linux, x86-64)")

RTX = "tensorrt-rtx"
TARGET = TensorrtBuildOptions(target="sm86")
COMPONENTS = ("text_encoder", "unet", "vae_decoder")
OPTIONS = EngineOptions(engine=RTX)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bundle(own_bundle: Path) -> Bundle:
    return Bundle.open(own_bundle)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedGpu]:
    with emulate_gpu(monkeypatch) as machine:
        yield machine


def build(
    bundle: Bundle, name: str = "unet", shapes: str = "fixed", variant: str = "float32", **how: Any
) -> BuiltEngine:
    options = TensorrtBuildOptions(**{"target": "sm86", **how})
    return build_for_tensorrt(bundle, name, variant, RTX, parse_clip_range(bundle, shapes), options)


def prove_all(bundle: Bundle, *shapes: str) -> None:
    for name in COMPONENTS:
        for text in shapes or ("fixed",):
            EngineProver(bundle, OPTIONS).prove(build(bundle, name, text))


def find_problem(bundle: Bundle, name: str = "unet") -> str | None:
    (built,) = find_built(bundle, name)
    return built.problem


def list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_was_built_lies_in_the_bundle_under_what_it_is_good_for(bundle: Bundle) -> None:
    built = build(bundle)
    key = built.folder.parent
    assert key.parent == bundle.path / "engines"
    assert key.name.startswith("tensorrt-rtx-")
    assert "-sm86-" in key.name
    assert built.path.stat().st_size > 0
    assert (built.component, built.variant) == ("unet", "float32")
    assert built.record is not None
    assert built.record.tensorrt is not None
    assert built.record.tensorrt.clips == parse_clip_range(bundle, "fixed")
    assert list(find_built(bundle, "unet", engine=RTX)) == [built]
    assert list(find_built(bundle, "unet", engine="onnxruntime")) == []
    remove_built(built)
    assert not (bundle.path / "engines").exists()


def test_without_a_gpu_nothing_that_was_built_is_used(bundle: Bundle) -> None:
    assert "driver" in (build(bundle).problem or "")
    with pytest.raises(EngineError, match=r"unet cannot run: .*driver"):
        GraphFinder(bundle, OPTIONS).find("unet")


def test_another_engine_has_nothing_to_do_with_what_was_built(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(platform: object) -> None:
        raise AssertionError("TensorRT was asked")

    built = build(bundle)
    monkeypatch.setattr(built_engines, "find_misfit", fail)
    for damaged in (False, True):
        if damaged:
            (built.folder / RECORD_NAME).write_text("{")
        found = GraphFinder(bundle, EngineOptions()).find("unet")
        assert (found.path, found.is_built) == (bundle.load_graph("unet"), False)


def test_what_was_not_compared_is_not_used(bundle: Bundle, machine: EmulatedGpu) -> None:
    build(bundle)
    assert find_problem(bundle) == "its results were not compared yet"
    with pytest.raises(EngineError, match=r"not compared yet: mutoscope verify .* --engine tens"):
        GraphFinder(bundle, OPTIONS).find("unet")
    assert machine.opened == []


def test_what_was_compared_is_used(bundle: Bundle, machine: EmulatedGpu) -> None:
    built = build(bundle)
    proof = EngineProver(bundle, OPTIONS).prove(built)
    assert proof.is_passed
    assert proof.device == "Test GPU"
    assert proof.seconds_run > 0
    found = GraphFinder(bundle, OPTIONS).find("unet")
    assert (found.path, found.options.engine, found.is_built) == (built.path, RTX, True)
    assert GraphFinder(bundle, EngineOptions(engine="auto")).find("unet") == found
    # The least and the usual size are the same here.
    assert len(machine.opened) == 1


@pytest.mark.parametrize("error", [0.2, "nan"])
def test_what_gives_other_results_is_not_used(
    bundle: Bundle, machine: EmulatedGpu, error: float | str
) -> None:
    machine.error = error
    proof = EngineProver(bundle, OPTIONS).prove(build(bundle))
    assert not proof.is_passed
    assert proof.minimum_psnr_db == MINIMUM_PSNR_DB["float32"]
    assert "are needed" in (find_problem(bundle) or "")
    with pytest.raises(EngineError, match="dB of onnxruntime's on the CPU"):
        GraphFinder(bundle, OPTIONS).find("unet")


def test_a_component_that_nothing_was_built_of_says_how_to_build_it(
    bundle: Bundle, machine: EmulatedGpu
) -> None:
    message = "nothing was built of unet for tensorrt-rtx: mutoscope build .* --variant float32"
    with pytest.raises(EngineError, match=message):
        GraphFinder(bundle, OPTIONS).find("unet")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("gpu", "it was built for sm86, the GPU here is sm89"),
        ("version", r"it was built by TensorRT for RTX 1\.0, here is"),
        ("graph", "it was built of another graph or of other weights"),
        ("plan", "has files of other sizes than build.json lists"),
        ("record", "build.json: engine is missing"),
        ("proof", "not compared yet"),
        ("proof of another", "not compared yet"),
    ],
)
def test_what_does_not_match_is_never_loaded(
    bundle: Bundle, machine: EmulatedGpu, change: str, reason: str
) -> None:
    built = build(bundle)
    EngineProver(bundle, OPTIONS).prove(built)
    record = json.loads((built.folder / RECORD_NAME).read_text())
    proof = json.loads((built.folder / PROOF_NAME).read_text())
    if change == "gpu":
        assert machine.gpu is not None
        machine.gpu = dataclasses.replace(machine.gpu, compute_capability="sm89")
    elif change == "version":
        record["tensorrt"]["platform"]["version"] = "1.0"
    elif change == "graph":
        built.folder.rename(built.folder.with_name(f"unet-{'0' * 16}"))
    elif change == "plan":
        built.path.write_bytes(built.path.read_bytes()[:-1])
    elif change == "record":
        record = {}
    elif change == "proof":
        proof = {}
    else:
        proof["platform"]["version"] = "1.0"
    (folder,) = built.folder.parent.iterdir()
    (folder / RECORD_NAME).write_text(json.dumps(record))
    (folder / PROOF_NAME).write_text(json.dumps(proof))
    machine.opened.clear()
    with pytest.raises(EngineError, match=reason):
        GraphFinder(bundle, OPTIONS).find("unet")
    assert machine.opened == []


def test_the_fastest_variant_is_run_unless_one_is_named(
    own_bundle: Path, machine: EmulatedGpu
) -> None:
    add_variants(own_bundle)
    bundle = Bundle.open(own_bundle)
    machine.slow = {"unet/model.onnx": 0.02, "unet/model_int8.onnx": 0.01}
    for variant in ("float32", "float16", "int8"):
        EngineProver(bundle, OPTIONS).prove(build(bundle, variant=variant))
    for engine in (RTX, "auto"):
        options = EngineOptions(engine=engine)
        assert GraphFinder(bundle, options).find("unet").variant == "float16"
        assert GraphFinder(bundle, options, "int8").find("unet").variant == "int8"


def test_one_is_built_again_only_if_it_differs(bundle: Bundle) -> None:
    clips = parse_clip_range(bundle, "fixed")
    built = build(bundle)
    assert find_same(bundle, "unet", "float32", RTX, clips, TARGET) == (built, None)
    for other, options, reason in (
        (parse_clip_range(bundle, "sizes"), TARGET, "it was built for 48x32x6"),
        (clips, TensorrtBuildOptions("sm89"), "it was built for tensorrt-rtx-"),
        (clips, dataclasses.replace(TARGET, workspace_bytes=2**20), "with other options"),
    ):
        found, why = find_same(bundle, "unet", "float32", RTX, other, options)
        assert found is None
        assert reason in (why or "")


def test_a_build_that_is_cancelled_leaves_nothing(bundle: Bundle) -> None:
    before = list_files(bundle.path)
    clips = parse_clip_range(bundle, "fixed")
    with pytest.raises(CancelledError):
        build_for_tensorrt(
            bundle, "unet", "float32", RTX, clips, TARGET, lambda phase, done, total: False
        )
    assert list_files(bundle.path) == before


def test_a_denoiser_for_two_clips_at_once_is_compared_on_two(
    bundle: Bundle, machine: EmulatedGpu
) -> None:
    clips = parse_clip_range(bundle, "fixed", 2)
    built = build_for_tensorrt(bundle, "unet", "float32", RTX, clips, TARGET)
    assert EngineProver(bundle, OPTIONS).prove(built).is_passed


def test_a_range_is_compared_at_its_least_size_too(bundle: Bundle, machine: EmulatedGpu) -> None:
    prover = EngineProver(bundle, OPTIONS)
    assert prover.prove(build(bundle, "vae_decoder", "any")).is_passed
    assert len(machine.opened) == 1


def test_a_pipeline_makes_the_video_of_onnxruntime_and_takes_the_engine_of_the_size(
    bundle: Bundle, machine: EmulatedGpu
) -> None:
    prove_all(bundle, "fixed", "96x64x8")
    machine.opened.clear()
    with VideoPipeline(bundle) as plain, VideoPipeline(bundle, engine="auto") as pipeline:
        for size in ({}, {"width": 96, "height": 64, "num_frames": 8}):
            expected = plain.generate("a red circle", seed=1, **size).frames  # type: ignore[arg-type]
            video = pipeline.generate("a red circle", seed=1, **size)  # type: ignore[arg-type]
            assert np.array_equal(video.frames, expected)
        assert {folder.parent.name.partition("-")[0] for folder, _ in machine.opened} == {
            *COMPONENTS
        }
        # The second size needs another engine of two of the components.
        assert len(machine.opened) == len(COMPONENTS) + 2
        assert "float32 with tensorrt-rtx" in pipeline.describe_engines()["unet"]


def test_a_size_that_nothing_was_built_for_is_an_error(
    bundle: Bundle, machine: EmulatedGpu
) -> None:
    prove_all(bundle)
    with VideoPipeline(bundle, engine=RTX) as pipeline:
        message = "unet was built for tensorrt-rtx for clips of 48x32x6, 1 at once, which does not"
        with pytest.raises(EngineError, match=message):
            pipeline.generate("a red circle", seed=1, width=96)


def test_a_clip_whose_decoder_was_not_built_is_refused_before_the_work(
    bundle: Bundle, machine: EmulatedGpu
) -> None:
    for name in ("text_encoder", "unet"):
        EngineProver(bundle, OPTIONS).prove(build(bundle, name))
    machine.opened.clear()
    with VideoPipeline(bundle, engine=RTX) as pipeline:
        assert set(pipeline.variants) == {"text_encoder", "unet"}
        with pytest.raises(EngineError, match="nothing was built of vae_decoder for tensorrt-rtx"):
            pipeline.generate("a red circle", seed=1)
    assert machine.opened == []


def test_an_engine_that_is_best_at_the_size_is_run_before_one_that_only_takes_it(
    bundle: Bundle, machine: EmulatedGpu
) -> None:
    prove_all(bundle, "fixed", "16x16x1,16x16x1,48x32x6")
    shapes = {"sample": (1, 4, 6, 4, 6)}
    found = GraphFinder(bundle, OPTIONS).find("unet", shapes)
    (fixed,) = (
        b
        for b in find_built(bundle, "unet")
        if b.record and b.record.tensorrt and b.record.tensorrt.clips.is_fixed
    )
    assert found.path == fixed.path


def test_what_ran_is_known_also_with_low_memory(bundle: Bundle, machine: EmulatedGpu) -> None:
    prove_all(bundle)
    with VideoPipeline(bundle, engine="auto", memory="low") as pipeline:
        pipeline.generate("a red circle", seed=1)
        machine.gpu = None
        assert "tensorrt-rtx" in pipeline.describe_engines()["unet"]


def test_a_proof_on_another_card_is_none(bundle: Bundle, machine: EmulatedGpu) -> None:
    EngineProver(bundle, OPTIONS).prove(build(bundle))
    assert find_problem(bundle) is None
    assert machine.gpu is not None
    machine.gpu = dataclasses.replace(machine.gpu, name="A smaller one")
    assert "not compared yet" in (find_problem(bundle) or "")


def test_a_decoder_in_tiles_is_not_for_tensorrt(bundle: Bundle, machine: EmulatedGpu) -> None:
    prove_all(bundle)
    with VideoPipeline(bundle, engine=RTX) as pipeline:
        opener = pipeline._components.make_opener
        with pytest.raises(EngineError, match="vae_decoder in tiles is not built for tensorrt-rtx"):
            opener("vae_decoder")
