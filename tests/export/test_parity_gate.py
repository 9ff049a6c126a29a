"""The gate: a bundle that does not compute what the checkpoint computes is never written."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch

from mutoscope.export import ExportError, ExportParityError, compare_with_checkpoint
from mutoscope.export.checkpoint import open_checkpoint
from mutoscope.export.components.motion_unet import make_unet, open_motion_unet
from mutoscope.export.components.text import make_text_encoder
from mutoscope.export.families.contract import ComponentExport
from mutoscope.export.graph import _check_interface, make_graph, save_graph
from mutoscope.export.parity import Reference, check_parity, make_references, measure_parity
from mutoscope.runtime.manifest import Manifest, ParityRecord, TensorRecord
from tests.conftest import Layouts


def test_verification_finds_the_figures_of_the_export(
    other_bundle: Path, other_layouts: Layouts
) -> None:
    figures = compare_with_checkpoint(
        other_bundle, other_layouts.stable_diffusion, motion_adapter=other_layouts.motion_adapter
    )
    manifest = Manifest.load(other_bundle / "manifest.json")
    assert list(figures) == list(manifest.components)
    for name, records in figures.items():
        component = manifest.components[name]
        # Of the plain graph, and of the one for processors where there is one.
        stated = component.parity * (1 + len(component.cpu_graphs))
        assert [record.shapes for record in records] == [record.shapes for record in stated]
        assert min(record.psnr_db for record in records) > 100


def test_figures_are_of_two_batches_and_two_frame_counts(tiny_bundle: Path) -> None:
    components = Manifest.load(tiny_bundle / "manifest.json").components
    for name, input_name in (("unet", "sample"), ("vae_decoder", "latents")):
        shapes = [record.shapes[input_name] for record in components[name].parity]
        assert {shape[0] for shape in shapes} == {1, 2}
        assert len({shape[2] for shape in shapes}) == 2
        assert len({shape[3:] for shape in shapes}) == 2


def test_a_bundle_of_another_checkpoint_is_found(other_bundle: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ExportParityError, match="the bundle is of another checkpoint"):
        compare_with_checkpoint(other_bundle, tiny_checkpoint)


def test_one_changed_weight_is_found(
    other_bundle: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(other_bundle, copy)
    model = onnx_ir.load(other_bundle / "unet" / "model.onnx")
    value = next(v for v in model.graph.initializers.values() if (v.name or "").endswith("bias"))
    assert value.const_value is not None
    value.const_value = onnx_ir.tensor(value.const_value.numpy() + np.float32(0.01))
    save_graph(model, copy / "unet" / "model.onnx")
    with pytest.raises(ExportParityError, match=r"unet does not compute .* psnr_db is \d+\.\d"):
        compare_with_checkpoint(copy, other_checkpoint)


def test_a_graph_that_cannot_load_is_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    component = make_text_encoder(open_checkpoint(tiny_checkpoint))
    with pytest.raises(ExportParityError, match=r"^text_encoder does not load in onnxruntime: .+$"):
        measure_parity(component, path, make_references(component))


def test_a_graph_of_other_sizes_is_one_line(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    component = make_unet(open_motion_unet(open_checkpoint(tiny_checkpoint)))
    odd = {**component.parity_sizes[0], "latent_height": 3}
    references = (Reference(component.make_inputs(odd, seed=1), np.zeros(0)),)
    with pytest.raises(ExportParityError, match=r"^unet does not run in onnxruntime: .+$"):
        measure_parity(component, tiny_bundle / "unet" / "model.onnx", references)


@pytest.mark.parametrize(
    ("dtype", "psnr", "error", "cosine", "message"),
    [
        ("float32", 79.9, 1e-3, 1.0, "psnr_db is 79.9, the minimum is 80"),
        ("float32", 90.0, 1e-3, 0.9999, "cosine_similarity is 0.999900, the minimum is 0.99999"),
        ("float32", math.nan, 1e-3, 1.0, "psnr_db is nan"),
        ("uint8", 59.0, 1.0, 1.0, "psnr_db is 59.0, the minimum is 60"),
        ("uint8", 70.0, 2.0, 1.0, "a frame differs by 2 of 255"),
    ],
)
def test_the_gate_has_named_limits(
    dtype: str, psnr: float, error: float, cosine: float, message: str
) -> None:
    component = make_component(dtype)
    check_parity(component, (make_record({"x": (1, 2)}, 100.0, 1.0, 1.0),))
    with pytest.raises(ExportParityError, match=rf"{message}.* \(at x \[1, 2\]\)"):
        check_parity(component, (make_record({"x": (1, 2)}, psnr, error, cosine),))


@pytest.mark.parametrize(
    ("dtype", "psnr", "error", "cosine", "message"),
    [
        ("float32", 49.9, 1e-3, 1.0, "psnr_db is 49.9, the minimum is 50"),
        ("float32", 60.0, 1e-3, 0.999, "cosine_similarity is 0.999000, the minimum is 0.9999"),
        ("float32", math.nan, 1e-3, 1.0, "psnr_db is nan"),
        ("uint8", 44.0, 1.0, 1.0, "psnr_db is 44.0, the minimum is 45"),
        ("uint8", 60.0, 9.0, 1.0, "a frame differs by 9 of 255"),
    ],
)
def test_the_gate_has_other_limits_for_float16_graphs(
    dtype: str, psnr: float, error: float, cosine: float, message: str
) -> None:
    component = make_component(dtype)
    check_parity(component, (make_record({"x": (1, 2)}, 55.0, 5.0, 0.99995),), "float16")
    with pytest.raises(ExportParityError, match=message):
        check_parity(component, (make_record({"x": (1, 2)}, psnr, error, cosine),), "float16")


def test_a_variant_without_limits_is_refused() -> None:
    with pytest.raises(ExportParityError, match="toy is of the variant int4, for which there are"):
        check_parity(make_component("float32"), (), "int4")


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        (["b", "n"], "FLOAT", None),
        ([2, "n"], "FLOAT", "the axis batch was exported as the constant 2"),
        (["b", "n", 1], "FLOAT", "exported with 3 axes of 2"),
        (["b", "n"], "INT64", "exported as INT64 instead of float32"),
    ],
)
def test_an_axis_that_became_a_constant_is_found(
    shape: list[int | str], dtype: str, message: str | None
) -> None:
    values = [
        onnx_ir.Value(
            name=name,
            shape=onnx_ir.Shape(shape if name == "x" else ["b", "n"]),
            type=onnx_ir.TensorType(onnx_ir.DataType[dtype if name == "x" else "FLOAT"]),
        )
        for name in ("x", "y")
    ]
    graph = onnx_ir.Graph(values[:1], values[1:], nodes=[])
    if message is None:
        _check_interface(graph, make_component("float32"))
        return
    with pytest.raises(ExportError, match=message):
        _check_interface(graph, make_component("float32"))


def test_code_that_looks_at_a_size_cannot_be_exported() -> None:
    # torch says nothing of it: the branch is fixed, and so is the axis.
    class Looks(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.shape[0] == 2 else x

    component = replace(make_component("float32"), module=Looks())
    with pytest.raises(ExportError, match="toy: x: the axis batch was exported as the constant 2"):
        make_graph(component)


def make_record(
    shapes: dict[str, tuple[int, ...]], psnr: float, error: float, cosine: float
) -> ParityRecord:
    return ParityRecord(shapes, psnr, error, cosine, output="y")


def make_component(dtype: str) -> ComponentExport:
    return ComponentExport(
        name="toy",
        module=torch.nn.Identity(),
        inputs={"x": TensorRecord("float32", ("batch", "sequence"), "latents")},
        outputs={"y": TensorRecord(dtype, ("batch", "sequence"))},
        trace_sizes={"batch": 2, "sequence": 3},
        parity_sizes=({"batch": 1, "sequence": 2},),
    )
