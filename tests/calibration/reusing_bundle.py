"""The deep hand-made bundle with a second denoiser, and a denoiser whose features are reused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from mutoscope.calibration.reuse_graphs import DEEP_FEATURE, cut_reuse_graph, make_reuse_record
from mutoscope.runtime.json_records import write_record
from mutoscope.runtime.manifest import Manifest
from mutoscope.runtime.schedule import ScheduleTable
from tests.calibration import layered_bundle
from tests.runtime.hand_made_bundle import save_graph, write_manifest

REUSE, FEW_STEP = "unet_reuse", "unet_few_step"
# A scheduler whose tables run the second denoiser without guidance, and one of each second step
# with reused features; both have tables for these steps.
FEW_STEP_SCHEDULER, REUSING_SCHEDULER, NUM_STEPS = "few-step", "ddim-reuse", 4


def make_reusing_bundle(path: Path) -> Path:
    """Write the bundle into a new folder; its default scheduler runs the first denoiser."""
    layered_bundle.make_deep_bundle(path)
    save_graph(make_reusing_unet(), path / "unet" / "model.onnx")
    (path / FEW_STEP).mkdir()
    save_graph(layered_bundle.make_deep_unet(), path / FEW_STEP / "model.onnx")
    cut = cut_reuse_graph(path / "unet" / "model.onnx", path / "unet" / "model_reuse.onnx")
    manifest = json.loads((path / "manifest.json").read_text())
    unet = manifest["components"]["unet"]
    few_step = json.loads(json.dumps(unet).replace("unet/", f"{FEW_STEP}/"))
    shape = ["batch", layered_bundle._WIDTH, "num_frames", "latent_height", "latent_width"]
    unet["outputs"][DEEP_FEATURE] = {"dtype": "float32", "shape": shape}
    write_manifest(path, manifest)
    record = Manifest.load(path / "manifest.json").components["unet"]
    reuse = write_record(make_reuse_record("unet", record, cut.inputs))
    components = {"unet": unet, REUSE: reuse, FEW_STEP: few_step}
    manifest["components"] = {
        other: component
        for name, kept in manifest["components"].items()
        for other, component in (components if name == "unet" else {name: kept}).items()
    }
    for scheduler, table in make_tables(path).items():
        name = f"schedules/{scheduler}_{NUM_STEPS}.json"
        table.save(path / name)
        manifest["schedules"][scheduler] = {str(NUM_STEPS): name}
    write_manifest(path, manifest)
    return path


def make_tables(path: Path) -> dict[str, ScheduleTable]:
    """The tables that run other denoisers than the first, by scheduler."""
    plain = ScheduleTable.load(path / "schedules" / f"ddim_{NUM_STEPS}.json")
    unguided = tuple(dataclasses.replace(row, guidance=False) for row in plain.rows)
    reusing = tuple(
        dataclasses.replace(row, denoiser=REUSE if index % 2 else None)
        for index, row in enumerate(plain.rows)
    )
    return {
        FEW_STEP_SCHEDULER: dataclasses.replace(plain, rows=unguided, denoiser=FEW_STEP),
        REUSING_SCHEDULER: dataclasses.replace(plain, rows=reusing),
    }


def prefer(path: Path, scheduler: str) -> None:
    """Let this be the default scheduler of the bundle."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["defaults"]["scheduler"] = scheduler
    write_manifest(path, manifest)


def make_reusing_unet() -> onnx.ModelProto:
    """The deep denoiser, with what its second convolution makes as features.

    What comes before that convolution skips it, and is joined with what comes after.
    """
    model = layered_bundle.make_deep_unet()
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = DEEP_FEATURE if name == "mixed" else name
    last = model.graph.node[-1]
    last.input[0] = "joined"
    model.graph.node.insert(
        len(model.graph.node) - 1, helper.make_node("Add", ["back", "bounded"], ["joined"])
    )
    model.graph.output.append(
        helper.make_tensor_value_info(
            DEEP_FEATURE, TensorProto.FLOAT, ["B", layered_bundle._WIDTH, "F", "h", "w"]
        )
    )
    return model
