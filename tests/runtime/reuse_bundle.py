"""The hand-made bundle with more denoisers: one that gives out a feature, one that takes it.

`unet` is the one of the hand-made bundle, which also returns "deep_feature": its model output with
the frames as a batch, doubled. `unet_reuse` makes the model output of the sample, the text, the
timestep and that feature. `unet_few_step` is `unet` with another weight, and needs no guidance.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mutoscope.runtime.schedule import ScheduleRow, ScheduleTable, ScheduleUpdate
from tests.runtime.hand_made_bundle import CHANNELS, make_unet, save_graph, write_manifest

FEATURE_SCALE, REUSE_WEIGHT, FEW_STEP_WEIGHT = 2.0, 0.125, 0.75
FEATURE = "deep_feature"
_FEATURE_SHAPE: list[Any] = ["batch_frames", CHANNELS, "latent_height", "latent_width"]


def add_denoisers(path: Path) -> None:
    """Put the denoisers into a hand-made bundle, in place."""
    manifest = json.loads((path / "manifest.json").read_text())
    components = manifest["components"]
    unet, rest = components["unet"], components
    save_graph(_make_whole(), path / "unet/model.onnx")
    save_graph(_make_reuse(), path / "unet/model_reuse.onnx")
    save_graph(_make_few_step(), path / "unet_few_step/model.onnx")
    reuse, few_step = copy.deepcopy(unet), copy.deepcopy(unet)
    feature = {"dtype": "float32", "shape": _FEATURE_SHAPE}
    unet["outputs"][FEATURE] = feature
    reuse["inputs"][FEATURE] = feature | {"source": FEATURE}
    reuse |= {"variants": {"float32": "unet/model_reuse.onnx"}, "weights_of": "unet"}
    few_step["variants"] = {"float32": "unet_few_step/model.onnx"}
    decoder = rest.pop("vae_decoder")
    rest |= {"unet_reuse": reuse, "unet_few_step": few_step, "vae_decoder": decoder}
    write_manifest(path, manifest)


def add_schedule(
    path: Path, scheduler: str, rows: list[ScheduleRow], **fields: Any
) -> ScheduleTable:
    """Put a table of these rows into a bundle, in place, and return it."""
    table = ScheduleTable(scheduler, len(rows), "epsilon", 2.0, 1, tuple(rows), **fields)
    name = f"schedules/{scheduler}_{len(rows)}.json"
    table.save(path / name)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["schedules"].setdefault(scheduler, {})[str(len(rows))] = name
    write_manifest(path, manifest)
    return table


def make_rows(*denoisers: str | None, unguided: tuple[int, ...] = ()) -> list[ScheduleRow]:
    """Rows of these denoisers, as those of the hand-made tables else."""
    update = ScheduleUpdate(0, ((0, 0.9), ("model_output", -0.4)))
    return [
        ScheduleRow(
            float(999 - 900 * index // len(denoisers)),
            0.5,
            0,
            (update,),
            denoiser=denoiser,
            guidance=index not in unguided,
        )
        for index, denoiser in enumerate(denoisers)
    ]


def _make_whole() -> onnx.ModelProto:
    model = make_unet()
    model.graph.node.extend(
        [
            helper.make_node("Transpose", ["out_sample"], ["frames_first"], perm=[0, 2, 1, 3, 4]),
            helper.make_node("Shape", ["frames_first"], ["shape"], start=2),
            helper.make_node("Concat", ["any_length", "shape"], ["stacked"], axis=0),
            helper.make_node("Reshape", ["frames_first", "stacked"], ["feature"]),
            helper.make_node("Mul", ["feature", "feature_scale"], [FEATURE]),
        ]
    )
    _add_constants(
        model, any_length=np.array([-1], np.int64), feature_scale=np.float32(FEATURE_SCALE)
    )
    model.graph.output.append(
        helper.make_tensor_value_info(FEATURE, TensorProto.FLOAT, _FEATURE_SHAPE)
    )
    return model


def _make_reuse() -> onnx.ModelProto:
    model = make_unet()
    (last,) = (node for node in model.graph.node if node.output[0] == "out_sample")
    last.output[0] = "shallow"
    model.graph.node.extend(
        [
            helper.make_node("Transpose", ["sample"], ["frames_first"], perm=[0, 2, 1, 3, 4]),
            helper.make_node("Shape", ["frames_first"], ["shape"]),
            helper.make_node("Reshape", [FEATURE, "shape"], ["stacked"]),
            helper.make_node("Transpose", ["stacked"], ["deep"], perm=[0, 2, 1, 3, 4]),
            helper.make_node("Mul", ["deep", "reuse_weight"], ["weighted_deep"]),
            helper.make_node("Add", ["shallow", "weighted_deep"], ["out_sample"]),
        ]
    )
    _add_constants(model, reuse_weight=np.float32(REUSE_WEIGHT))
    model.graph.input.append(
        helper.make_tensor_value_info(FEATURE, TensorProto.FLOAT, _FEATURE_SHAPE)
    )
    return model


def _make_few_step() -> onnx.ModelProto:
    model = make_unet()
    for constant in model.graph.initializer:
        if constant.name == "sample_weight":
            constant.CopyFrom(numpy_helper.from_array(np.float32(FEW_STEP_WEIGHT), constant.name))
    return model


def _add_constants(model: onnx.ModelProto, **constants: Any) -> None:
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in arrays.items())
