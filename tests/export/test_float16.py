"""Graphs that compute in float16: what stays float32, how close they are, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from mutoscope.export import ExportError, export_checkpoint, opening
from mutoscope.export.checkpoint import open_checkpoint
from mutoscope.export.families import open_family
from mutoscope.export.families.contract import ComponentExport
from mutoscope.export.float16 import (
    check_float16_weights_range,
    convert_to_float16,
    refuse_float16_overflow,
)
from mutoscope.export.graph import make_graph, save_graph
from mutoscope.export.parity import PARITY_LIMITS, make_references, measure_parity
from mutoscope.runtime import VideoPipeline
from mutoscope.runtime.manifest import Manifest, TensorRecord
from mutoscope.runtime.metrics import psnr_db
from tests.conftest import CommandResult, RunCommand

COMPONENTS = ("text_encoder", "unet", "vae_decoder")
PRODUCTS = {"MatMul", "Gemm", "Conv"}
# What sums many values, exponentiates, or needs the digits of a timestep up to 1000.
ISLANDS = {"InstanceNormalization", "LayerNormalization", "Softmax", "Sin", "Cos"}
# Two bundles of random weights after 4 steps: 59 dB, no value off by more than 1, was measured. A
# wrong graph gives another picture, below 30 dB.
MINIMUM_CLIP_PSNR_DB = 45.0
# Attention of two heads on standard normal values, results below 2: two roundings of 5e-4.
ATTENTION_TOLERANCE = 2e-3


@pytest.fixture(scope="module", params=COMPONENTS)
def typed_graph(request: pytest.FixtureRequest, float16_bundle: Path) -> onnx.ModelProto:
    """The graph of a component, with the type of every value worked out by onnx."""
    model = onnx.load(str(float16_bundle / request.param / "model.onnx"))
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def find_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of each value and initialiser."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    return {
        **{value.name: value.type.tensor_type.elem_type for value in values},
        **{tensor.name: tensor.data_type for tensor in graph.initializer},
    }


def test_every_product_is_of_float16_weights_and_values(typed_graph: onnx.ModelProto) -> None:
    types = find_types(typed_graph)
    nodes = [node for node in typed_graph.graph.node if node.op_type in PRODUCTS]
    assert len(nodes) > 10
    for node in nodes:
        assert {types[name] for name in node.input} == {TensorProto.FLOAT16}, node.name


def test_norms_softmax_and_sinusoids_stay_in_float32(typed_graph: onnx.ModelProto) -> None:
    types = find_types(typed_graph)
    nodes = [node for node in typed_graph.graph.node if node.op_type in ISLANDS]
    assert {node.op_type for node in nodes} >= {"Softmax"}
    for node in nodes:
        assert {types[name] for name in node.input} == {TensorProto.FLOAT}, node.name


def scale_weight(component: ComponentExport, name: str, factor: float) -> None:
    """Multiply one weight of a component, in place."""
    component.module.get_parameter(name).data.mul_(factor)


@pytest.mark.parametrize("name", COMPONENTS)
def test_float16_graphs_pass_the_checker_and_are_plain_onnx(
    name: str, float16_bundle: Path
) -> None:
    path = float16_bundle / name / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert model.ir_version <= 10
    assert not model.graph.value_info
    assert not model.functions


def test_the_manifest_differs_in_variant_and_types_only(
    float16_bundle: Path, tiny_bundle: Path
) -> None:
    half, full = (Manifest.load(path / "manifest.json") for path in (float16_bundle, tiny_bundle))
    for name in COMPONENTS:
        record, other = half.components[name], full.components[name]
        assert record.variants == {"float16": f"{name}/model.onnx"}
        assert record.default_variant == "float16"
        assert (record.inputs, record.outputs) == (other.inputs, other.outputs)
        data = f"{name}/model.onnx.data"
        assert half.files[data].size_bytes < 0.65 * full.files[data].size_bytes
    types = [(it.provenance["dtype"], it.provenance["weights"]) for it in (half, full)]
    assert types == [("float16", "float16"), ("float32", "float32")]


def test_the_command_says_what_float16_is_for(float16_export: tuple[Path, CommandResult]) -> None:
    lines = float16_export[1].stderr.splitlines()
    assert lines[1].startswith("note: on a CPU float16 graphs are no faster")


def test_a_clip_is_close_to_that_of_the_float32_bundle(
    float16_bundle: Path, tiny_bundle: Path
) -> None:
    clips = []
    for bundle in (float16_bundle, tiny_bundle):
        with VideoPipeline.open(bundle) as pipeline:
            video = pipeline.generate("red circle", seed=3, num_frames=4, num_inference_steps=4)
            clips.append(video.frames)
    assert psnr_db(clips[1], clips[0]) > MINIMUM_CLIP_PSNR_DB


@pytest.mark.parametrize("name", COMPONENTS)
def test_arithmetic_that_rounds_after_every_operator_is_within_the_limits(
    name: str, float16_bundle: Path, tiny_checkpoint: Path
) -> None:
    # onnxruntime keeps float32 between operators on a CPU; this evaluator does what a GPU does.
    component = open_family(open_checkpoint(tiny_checkpoint)).component_makers[name]()
    graph = ReferenceEvaluator(str(float16_bundle / name / "model.onnx"))
    limits = PARITY_LIMITS["float16"]
    for reference in make_references(component):
        (found,) = graph.run(list(reference.outputs), reference.inputs)
        (expected,) = reference.outputs.values()
        of_frames = found.dtype == np.uint8
        minimum = limits.minimum_frame_psnr_db if of_frames else limits.minimum_psnr_db
        assert psnr_db(expected, found) > minimum


def test_verification_uses_the_limits_of_float16(
    float16_bundle: Path, tiny_checkpoint: Path, run_command: RunCommand
) -> None:
    result = run_command("verify", float16_bundle, "--checkpoint", tiny_checkpoint)
    assert result.exit_code == 0, result.stderr
    assert "unet (float16) loads and is as declared" in result.stderr
    records = Manifest.load(float16_bundle / "manifest.json").components["unet"].parity
    assert min(record.psnr_db for record in records) < PARITY_LIMITS["float32"].minimum_psnr_db


def test_float16_with_float32_weights_is_refused_in_one_line(
    run_command: RunCommand, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    types = ("--dtype=float16", "--weights=float32")
    result = run_command("export", tiny_checkpoint, "-o", output, *types)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: weights is 'float32' with dtype")
    assert not output.exists()


def test_a_decoder_that_overflows_float16_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its norms undo the factor: in float32 nobody would notice.
    family = open_family(open_checkpoint(tiny_checkpoint))
    component = family.component_makers["vae_decoder"]()
    scale_weight(component, "vae.decoder.conv_in.weight", 5e4)
    makers = {"vae_decoder": lambda: component}
    monkeypatch.setattr(opening, "open_family", lambda _: replace(family, component_makers=makers))
    with pytest.raises(
        ExportError,
        match=r"^vae_decoder cannot compute in float16: vae\.decoder\.conv_in reaches .*e\+\d+ and "
        r"float16 ends at 65504: use --dtype float32$",
    ):
        export_checkpoint(
            tiny_checkpoint, tmp_path / "bundle", dtype="float16", num_inference_steps=[1]
        )
    assert not list(tmp_path.iterdir())


def test_a_weight_that_float16_does_not_hold_is_refused(tiny_checkpoint: Path) -> None:
    component = open_family(open_checkpoint(tiny_checkpoint)).component_makers["vae_decoder"]()
    check_float16_weights_range(component)
    scale_weight(component, "vae.decoder.conv_in.weight", 1e7)
    with pytest.raises(ExportError, match=r"the weight vae\.decoder\.conv_in\.weight reaches"):
        check_float16_weights_range(component)


def test_watching_for_overflow_changes_nothing(tiny_checkpoint: Path) -> None:
    component = open_family(open_checkpoint(tiny_checkpoint)).component_makers["text_encoder"]()
    with refuse_float16_overflow(component):
        watched = make_references(component)
    for one, other in zip(watched, make_references(component), strict=True):
        for name, expected in other.outputs.items():
            np.testing.assert_array_equal(one.outputs[name], expected)
    assert not any(part._forward_hooks for part in component.module.modules())


def test_converted_norms_keep_their_weights_in_float32() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    convert_to_float16(module)
    assert [parameter.dtype for parameter in module.parameters()] == [
        *(torch.float16, torch.float16),
        *(torch.float32, torch.float32),
    ]
    assert module(torch.ones(1, 4, dtype=torch.float16)).dtype == torch.float16


class Attention(torch.nn.Module):
    """Self-attention of two heads in float16, with one kind of mask."""

    def __init__(self, make_options: Callable[[torch.Tensor], dict[str, Any]]) -> None:
        super().__init__()
        self.make_options = make_options
        self.dtype = torch.float32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.to(self.dtype).unflatten(-1, (2, 8)).transpose(1, 2)  # [B, 2, S, 8]
        options = self.make_options(heads)
        return F.scaled_dot_product_attention(heads, heads.flip(1), heads, **options).float()


def see_the_past(heads: torch.Tensor) -> torch.Tensor:
    """Return the boolean mask [S, S] that is_causal stands for."""
    return torch.ones(heads.shape[2], heads.shape[2], dtype=torch.bool).tril()


@pytest.mark.parametrize(
    "make_options",
    [
        pytest.param(lambda _: {}, id="no mask"),
        pytest.param(lambda _: {"scale": 0.1}, id="scale"),
        pytest.param(lambda _: {"is_causal": True}, id="causal"),
        pytest.param(lambda heads: {"attn_mask": see_the_past(heads)}, id="boolean mask"),
        pytest.param(lambda heads: {"attn_mask": heads @ heads.mT}, id="mask of floats"),
    ],
)
def test_attention_in_float16_does_what_torch_does(
    make_options: Callable[[torch.Tensor], dict[str, Any]], tmp_path: Path
) -> None:
    module = Attention(make_options)
    shape = ("batch", "sequence", 16)
    component = ComponentExport(
        name="attention",
        module=module,
        inputs={"x": TensorRecord("float32", shape, "latents")},
        outputs={"y": TensorRecord("float32", ("batch", 2, "sequence", 8))},
        trace_sizes={"batch": 2, "sequence": 3},
        parity_sizes=({"batch": 1, "sequence": 5}, {"batch": 3, "sequence": 2}),
    )
    references = make_references(component)
    module.dtype = torch.float16
    path = tmp_path / "model.onnx"
    save_graph(make_graph(component, "float16"), path)
    for record in measure_parity(component, path, references):
        assert record.max_abs_error < ATTENTION_TOLERANCE
