"""float32 and float16 graphs in one bundle: exported together, or added to what is there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mutoscope.calibration.metrics import psnr_db
from mutoscope.export import ExportError, ExportParityError, export_checkpoint
from mutoscope.export.variant_export import add_float16
from mutoscope.runtime import VideoPipeline
from mutoscope.runtime.bundle import Bundle, find_external_data
from mutoscope.runtime.bundle_writer import make_file_records, save_manifest
from mutoscope.runtime.errors import MutoscopeError, OutputError, ParameterError
from mutoscope.runtime.manifest import Manifest
from tests.conftest import CommandResult, RunCommand

COMPONENTS = ("text_encoder", "unet", "vae_decoder")
# What is promised of a clip of float16 graphs beside that of float32 ones, on a CPU.
MINIMUM_CLIP_PSNR_DB = 45.0


@pytest.fixture(scope="module")
def added(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CommandResult]:
    """A copy of `tiny_bundle` with float16 graphs, and what the command that added them wrote."""
    from tests.conftest import run_in_process

    bundle = tmp_path_factory.mktemp("added") / "tiny"
    shutil.copytree(tiny_bundle, bundle)
    (bundle / "engines").mkdir()
    (bundle / "engines" / "built").write_text("built")
    arguments = ("export", tiny_checkpoint, "-o", bundle, "--dtype", "float16", "--add", "--json")
    return bundle, run_in_process(*arguments)


@pytest.fixture(scope="module")
def added_bundle(added: tuple[Path, CommandResult]) -> Path:
    """A bundle with float32 and float16 graphs; not to be changed."""
    path, result = added
    assert result.exit_code == 0, result.stderr
    return path


def test_the_added_variant_stands_beside_the_default_one(
    added_bundle: Path, tiny_bundle: Path
) -> None:
    before, after = Bundle.open(tiny_bundle), Bundle.open(added_bundle)
    for name in COMPONENTS:
        old, new = before.find_component(name), after.find_component(name)
        assert new.variants == {
            "float32": f"{name}/model.onnx",
            "float16": f"{name}/model_fp16.onnx",
        }
        assert new.default_variant == "float32"
        assert (new.cpu_graphs, new.decoder, new.parity) == (old.cpu_graphs, old.decoder, old.parity)
        data = f"{name}/model_fp16.onnx.data"
        assert find_external_data(after.manifest, new, f"{name}/model_fp16.onnx") == [data]
        for other in ("model.onnx", *(["model_cpu.onnx"] if old.cpu_graphs else [])):
            assert data not in find_external_data(after.manifest, new, f"{name}/{other}")
        after.load_graph(name, "float16")
    assert after.manifest.provenance["dtype"] == "float32, float16"
    assert after.manifest.provenance["weights"] == "float32, float16"


def test_adding_a_variant_changes_no_other_file(added_bundle: Path, tiny_bundle: Path) -> None:
    before, after = (Manifest.load(path / "manifest.json") for path in (tiny_bundle, added_bundle))
    assert before.files.items() < after.files.items()
    on_disk = make_file_records(added_bundle)
    assert (added_bundle / "engines" / "built").read_text() == "built"
    del on_disk["manifest.json"], on_disk["engines/built"]
    assert after.files == on_disk


def test_the_added_graphs_are_those_of_a_float16_bundle(
    added_bundle: Path, float16_bundle: Path
) -> None:
    for name in COMPONENTS:
        half = float16_bundle / name / "model.onnx.data"
        added = added_bundle / name / "model_fp16.onnx.data"
        assert added.read_bytes() == half.read_bytes()


def test_a_clip_of_the_float16_variant_is_close_to_that_of_float32(added_bundle: Path) -> None:
    clips = []
    for variant in ("float32", "float16"):
        with VideoPipeline.open(added_bundle, variant=variant) as pipeline:
            video = pipeline.generate("red circle", seed=3, num_frames=4, num_inference_steps=25)
            clips.append(video.frames)
    # Equal clips would say that the variant was not run.
    assert MINIMUM_CLIP_PSNR_DB < psnr_db(*clips) < 100


def test_the_command_reports_the_added_graphs(added: tuple[Path, CommandResult]) -> None:
    bundle, result = added
    report = json.loads(result.stdout)
    assert report["bundle"] == str(bundle)
    for name in COMPONENTS:
        files = [bundle / name / f"model_fp16.onnx{end}" for end in ("", ".data")]
        assert report["components"][name]["size_bytes"] == sum(f.stat().st_size for f in files)
        assert min(figure["psnr_db"] for figure in report["components"][name]["parity"]) > 50


def test_verify_accepts_a_bundle_of_both(added_bundle: Path, run_command: RunCommand) -> None:
    result = run_command("verify", added_bundle, "--variant", "float16")
    assert result.exit_code == 0, result.stderr
    for variant in ("float32", "float16", "float32, for CPUs"):
        assert f"unet ({variant}) loads and is as declared" in result.stderr
    assert "not in manifest.json" not in result.stderr


def copy_bundle(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder / "bundle"))


def find_digests(bundle: Path) -> dict[str, str]:
    return {
        path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(bundle.rglob("*"))
        if path.is_file()
    }


def test_float16_graphs_are_replaced_with_force_only(
    added_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copy_bundle(added_bundle, tmp_path)
    before = find_digests(bundle)
    with pytest.raises(OutputError, match="has float16 graphs: .* --force"):
        add_float16(tiny_checkpoint, bundle)
    graph = bundle / "text_encoder" / "model_fp16.onnx"
    manifest = Manifest.load(bundle / "manifest.json")
    graph.write_bytes(b"an older graph")
    files = {**manifest.files, "text_encoder/model_fp16.onnx": make_file_records(bundle)[
        "text_encoder/model_fp16.onnx"]}
    import dataclasses

    save_manifest(dataclasses.replace(manifest, files=files), bundle)
    add_float16(tiny_checkpoint, bundle, force=True)
    assert find_digests(bundle) == before
