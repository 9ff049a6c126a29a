"""float32 and float16 graphs in one bundle: exported together, or added to what is there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
import onnx_ir
import pytest
import torch
from diffusers.models.embeddings import Timesteps
from onnx import TensorProto

from mutoscope.calibration.reuse_graphs import CutGraph, name_reuse_graph
from mutoscope.export import (
    ExportError,
    ExportParityError,
    component_export,
    export_checkpoint,
    opening,
    variant_export,
)
from mutoscope.export.bundle_export import parse_dtypes
from mutoscope.export.checkpoint import open_checkpoint
from mutoscope.export.component_export import GraphPlan, WrittenGraph, export_component
from mutoscope.export.families import open_family
from mutoscope.export.families.contract import ComponentExport
from mutoscope.export.float16 import convert_to_float16
from mutoscope.export.variant_export import add_float16
from mutoscope.runtime import VideoPipeline
from mutoscope.runtime.bundle import Bundle, find_external_data
from mutoscope.runtime.bundle_writer import make_file_records
from mutoscope.runtime.errors import OutputError, ParameterError
from mutoscope.runtime.manifest import Manifest
from mutoscope.runtime.metrics import psnr_db
from tests.conftest import CommandResult, RunCommand, run_in_process

COMPONENTS = ("text_encoder", "unet", "vae_decoder")
REUSE_GRAPH = "unet/model_fp16_reuse.onnx"
# What is promised of a clip of float16 graphs beside that of float32 ones, on a CPU.
MINIMUM_CLIP_PSNR_DB = 45.0


@pytest.fixture(scope="module")
def added(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    float16_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, CommandResult]:
    """A copy of `tiny_bundle` with float16 graphs, and what the command that added them wrote.

    What the tracer makes of the checkpoint is taken from `float16_bundle`, which saves half a
    minute.
    """

    def trace(component: ComponentExport, dtype: str) -> onnx_ir.Model:
        assert dtype == "float16"
        return onnx_ir.load(float16_bundle / component.name / "model.onnx")

    bundle = tmp_path_factory.mktemp("added") / "tiny"
    shutil.copytree(tiny_bundle, bundle)
    (bundle / "engines").mkdir()
    (bundle / "engines" / "built").write_text("built")
    arguments = ("export", tiny_checkpoint, "-o", bundle, "--dtype", "float16", "--add", "--json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(component_export, "make_graph", trace)
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
        assert replace(new, variants=old.variants) == old
        data = f"{name}/model_fp16.onnx.data"
        assert find_external_data(after.manifest, new, f"{name}/model_fp16.onnx") == [data]
        for other in ("model.onnx", *(["model_cpu.onnx"] if old.cpu_graphs else [])):
            assert data not in find_external_data(after.manifest, new, f"{name}/{other}")
        after.load_graph(name, "float16")
    old, new = before.find_component("unet_reuse"), after.find_component("unet_reuse")
    assert new == replace(old, variants={**old.variants, "float16": REUSE_GRAPH})
    assert after.load_graph("unet_reuse", "float16") == added_bundle / REUSE_GRAPH
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


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_bundle` that the test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copies" / "tiny"))


@pytest.fixture
def quick_graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let each float16 graph be a few bytes; returns the paths of those that were written."""
    written: list[str] = []

    def write(
        component: ComponentExport, bundle: Path, path: PurePosixPath, *rest: object
    ) -> WrittenGraph:
        written.append(str(path))
        for end in ("", ".data"):
            (bundle / f"{path}{end}").write_text(f"{path} {len(written)}")
        return WrittenGraph(str(path), 1, ())

    def cut(_component: ComponentExport, graph: Path, *_rest: object) -> tuple[CutGraph, tuple[()]]:
        graph.with_name(name_reuse_graph(graph.name)).write_text(f"cut {len(written)}")
        return CutGraph((), 1), ()

    monkeypatch.setattr(variant_export, "write_graph", write)
    monkeypatch.setattr(variant_export, "write_reuse_graph", cut)
    return written


def find_contents(bundle: Path) -> dict[str, bytes]:
    """The content of every file in the folder of a bundle and beside it."""
    return {str(path): path.read_bytes() for path in bundle.parent.rglob("*") if path.is_file()}


def test_float16_graphs_are_replaced_with_force_only(
    copy: Path, tiny_checkpoint: Path, quick_graphs: list[str]
) -> None:
    add_float16(tiny_checkpoint, copy)
    before = find_contents(copy)
    with pytest.raises(OutputError, match=r"tiny has float16 graphs: .* with --force"):
        add_float16(tiny_checkpoint, copy)
    assert find_contents(copy) == before
    add_float16(tiny_checkpoint, copy, force=True)
    changed = {path for path, content in find_contents(copy).items() if before[path] != content}
    graphs = {f"{path}{end}" for path in quick_graphs for end in ("", ".data")}
    graphs |= {REUSE_GRAPH, "manifest.json"}
    assert changed == {str(copy / name) for name in graphs}
    bundle = Bundle.open(copy)
    for name in COMPONENTS:
        bundle.load_graph(name, "float16")
    assert bundle.manifest.provenance["dtype"] == "float32, float16"


def test_a_bundle_stays_as_it_was_when_a_component_fails(
    copy: Path, tiny_checkpoint: Path, quick_graphs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(component: ComponentExport, *rest: object) -> None:
        if component.name == "vae_decoder":
            raise ExportError("vae_decoder cannot compute in float16")

    monkeypatch.setattr(component_export, "check_float16_weights_range", fail)
    before = find_contents(copy)
    with pytest.raises(ExportError, match="vae_decoder cannot"):
        add_float16(tiny_checkpoint, copy)
    assert len(quick_graphs) == 2
    assert find_contents(copy) == before


def test_a_checkpoint_with_other_weights_is_refused(
    copy: Path, tiny_checkpoint: Path, quick_graphs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = open_family(open_checkpoint(tiny_checkpoint))
    component = family.component_makers["unet"]()
    component.module.get_parameter("unet.conv_in.weight").data.mul_(1.01)
    makers = {**family.component_makers, "unet": lambda: component}
    monkeypatch.setattr(opening, "open_family", lambda _: replace(family, component_makers=makers))
    before = find_contents(copy)
    with pytest.raises(
        ExportParityError, match=r"unet does not compute .*: the bundle is of another checkpoint"
    ):
        add_float16(tiny_checkpoint, copy)
    assert find_contents(copy) == before


def test_a_checkpoint_of_another_kind_is_refused(
    copy: Path, other_checkpoint: Path, modelscope_checkpoint: Path, quick_graphs: list[str]
) -> None:
    with pytest.raises(ExportParityError, match=r"text_encoder takes or returns other shapes"):
        add_float16(other_checkpoint, copy)
    message = r"the bundle is animatediff with .*; the checkpoint gives .*: the bundle is of anothe"
    with pytest.raises(ExportParityError, match=message):
        add_float16(modelscope_checkpoint, copy)
    assert not quick_graphs


def test_a_bundle_without_float32_graphs_is_refused(
    float16_bundle: Path, tiny_checkpoint: Path
) -> None:
    with pytest.raises(ParameterError, match=r"text_encoder in .* has no float32 graph"):
        add_float16(tiny_checkpoint, float16_bundle)


def test_both_types_are_exported_at_once(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = open_family(open_checkpoint(tiny_checkpoint))
    makers = {"vae_decoder": family.component_makers["vae_decoder"]}
    only = replace(family, component_makers=makers)
    monkeypatch.setattr(opening, "open_family", lambda _: only)
    report = export_checkpoint(
        tiny_checkpoint, tmp_path / "bundle", dtype=["float16", "float32"], num_inference_steps=[1]
    )
    record = report.manifest.components["vae_decoder"]
    assert record.variants == {
        "float16": "vae_decoder/model_fp16.onnx",
        "float32": "vae_decoder/model.onnx",
    }
    assert record.default_variant == "float16"
    assert record.cpu_graphs == {"float32": "vae_decoder/model_cpu.onnx"}
    assert report.components["vae_decoder"].cpu_rewrites
    assert report.manifest.provenance["dtype"] == "float16, float32"
    # Its tiles are cut out of the float32 graph.
    assert record.decoder is not None
    assert record.decoder.tiles is not None
    head = onnx.load(report.bundle / record.decoder.tiles.head, load_external_data=False)
    kinds = {tensor.data_type for tensor in head.graph.initializer}
    assert TensorProto.FLOAT in kinds
    assert TensorProto.FLOAT16 not in kinds


def test_a_component_that_must_stay_in_float32_has_that_alone(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    make = open_family(open_checkpoint(tiny_checkpoint)).component_makers["text_encoder"]
    plan = GraphPlan(("float16", "float32"), "float32", ())
    record = export_component(lambda: replace(make(), float32_only=True), tmp_path, plan).record
    assert record.variants == {"float32": "text_encoder/model.onnx"}
    assert record.default_variant == "float32"


@pytest.mark.parametrize(
    ("dtype", "dtypes"),
    [
        ("float32", ("float32",)),
        ("float32,float16", ("float32", "float16")),
        ("float16, float32", ("float16", "float32")),
        (["float16", "float16"], ("float16",)),
    ],
)
def test_types_are_read_from_a_text_or_a_sequence(dtype: Any, dtypes: tuple[str, ...]) -> None:
    assert parse_dtypes(dtype) == dtypes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--add"], "--add needs --dtype float16"),
        (["--add", "--dtype", "float32,float16"], "--add needs --dtype float16"),
        (
            ["--add", "--dtype", "float16", "--name", "x", "--scheduler", "ddim"],
            "leave out --name, --scheduler",
        ),
    ],
)
def test_add_refuses_what_it_has_no_use_for(
    arguments: list[str], message: str, tiny_checkpoint: Path, run_command: RunCommand
) -> None:
    result = run_command("export", tiny_checkpoint, "-o", "bundle", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_buffers_that_are_views_can_be_converted() -> None:
    module = torch.nn.Module()
    module.register_buffer("positions", torch.ones(2, 4)[:1])
    module.register_buffer("ids", torch.arange(3))
    convert_to_float16(module)
    assert module.positions.dtype == torch.float16
    assert module.positions._base is None
    assert module.ids.dtype == torch.int64


def test_sinusoids_are_made_in_float32_and_passed_on_in_float16() -> None:
    module = Timesteps(8, flip_sin_to_cos=True, downscale_freq_shift=0)
    time = torch.tensor([999.0])
    expected = module(time)
    convert_to_float16(module)
    assert module(time).dtype == torch.float16
    assert torch.equal(module(time), expected.half())
