"""Features that a denoiser returns, and the part of it that runs on those of an earlier step."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from mutoscope.calibration.reuse_graphs import DEEP_FEATURE, name_reuse_graph
from mutoscope.export import ExportError, ExportParityError, component_export, export_checkpoint
from mutoscope.export.checkpoint import open_checkpoint
from mutoscope.export.component_export import GraphPlan, export_component
from mutoscope.export.families import open_family
from mutoscope.export.families.contract import Arrays, ComponentExport
from mutoscope.export.parity import run_module
from mutoscope.export.reuse_export import (
    DEFAULT_REUSE_LAYERS,
    check_reuse_layers,
    export_reuse,
    make_reusable,
)
from mutoscope.runtime.bundle import Bundle, find_external_data
from mutoscope.runtime.errors import BundleError, ParameterError
from mutoscope.runtime.manifest import Manifest
from tests.conftest import RunCommand

FAMILIES = ("tiny", "sdxl", "modelscope", "i2vgen", "svd")
# Batch, frames, and the sides of the latents in whole blocks of the UNet, none as it was traced.
SIZES = ((2, 4, 3, 1), (1, 1, 1, 2))
# What another value of one input must change in outputs of about 1, to say that it is looked at;
# rounding moves them by 1e-6.
MINIMUM_INFLUENCE = 1e-3
# Numbers are added to whole channels. In the tiny UNet of Stable Video Diffusion each group of the
# last block's norms is one channel, and takes that away again.
NO_NUMBERS = "svd"


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(family: str, request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"{family}_checkpoint")
    return path


@pytest.fixture(scope="module")
def bundle(family: str, request: pytest.FixtureRequest) -> Bundle:
    return Bundle.open(request.getfixturevalue(f"{family}_bundle"))


def make_unet(checkpoint: Path, reuse_layers: int) -> ComponentExport:
    make = open_family(open_checkpoint(checkpoint)).component_makers["unet"]
    return make_reusable(make, reuse_layers)


def run_graph(path: Path, inputs: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name: inputs[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, wanted), strict=True))


def draw_inputs(checkpoint: Path, size: tuple[int, ...], seed: int = 7) -> Arrays:
    component = make_unet(checkpoint, 0)
    batch, num_frames, height, width = size
    multiple = component.multiples["latent_height"]
    sides = {"latent_height": height * multiple, "latent_width": width * multiple}
    return component.make_inputs(
        {"batch": batch, "num_frames": num_frames, "sequence": 6, **sides}, seed
    )


@pytest.mark.parametrize("reuse_layers", [1, 2])
def test_the_feature_is_what_the_layer_joins_with_its_skip_connection(
    checkpoint: Path, reuse_layers: int
) -> None:
    component = make_unet(checkpoint, reuse_layers)
    unet: Any = component.module.unet
    joined: list[torch.Tensor] = []
    unet.up_blocks[-1].resnets[-reuse_layers].register_forward_pre_hook(
        lambda _module, inputs, named: joined.append((inputs or list(named.values()))[0]),
        with_kwargs=True,
    )
    sizes = component.parity_sizes[-1]
    outputs = run_module(component, component.make_inputs(sizes, seed=1))
    feature = outputs[DEEP_FEATURE]
    channels = component.outputs[DEEP_FEATURE].shape[1]
    assert feature.shape == (
        sizes["batch"] * sizes["num_frames"], channels, sizes["latent_height"],
        sizes["latent_width"],
    )  # fmt: skip
    ((state,)) = joined
    assert state.shape[1] > feature.shape[1]
    np.testing.assert_array_equal(feature, state[:, : feature.shape[1]].numpy())


def test_a_denoiser_returns_the_same_model_output_with_and_without_features(
    checkpoint: Path,
) -> None:
    plain, reusable = (make_unet(checkpoint, layers) for layers in (0, 2))
    inputs = plain.make_inputs(plain.parity_sizes[-1], seed=1)
    expected, found = run_module(plain, inputs), run_module(reusable, inputs)
    assert list(expected) == ["out_sample"]
    assert list(found) == ["out_sample", DEEP_FEATURE]
    np.testing.assert_array_equal(found["out_sample"], expected["out_sample"])


def test_more_layers_than_there_are_mean_all_of_them(checkpoint: Path) -> None:
    component = make_unet(checkpoint, 99)
    unet: Any = component.module.unet
    whole = make_unet(checkpoint, len(unet.up_blocks[-1].resnets))
    inputs = component.make_inputs(component.parity_sizes[-1], seed=1)
    features = [run_module(each, inputs)[DEEP_FEATURE] for each in (component, whole)]
    np.testing.assert_array_equal(*features)
    assert component.outputs == whole.outputs


def test_the_shallow_graphs_return_what_the_whole_ones_do(bundle: Bundle, checkpoint: Path) -> None:
    whole, shallow = (bundle.find_component(name) for name in ("unet", "unet_reuse"))
    for size in SIZES:
        inputs = draw_inputs(checkpoint, size)
        for graph in (*whole.variants.values(), *whole.cpu_graphs.values()):
            expected = run_graph(bundle.path / graph, inputs)
            given = {**inputs, DEEP_FEATURE: expected[DEEP_FEATURE]}
            found = run_graph(bundle.path / name_reuse_graph(graph), given)
            assert list(found) == ["out_sample"]
            # The same operators on the same values.
            np.testing.assert_array_equal(found["out_sample"], expected["out_sample"])
    assert set(shallow.variants) == set(whole.variants)
    assert set(shallow.cpu_graphs) == set(whole.cpu_graphs)


def test_every_input_of_the_shallow_graph_counts(
    family: str, bundle: Bundle, checkpoint: Path
) -> None:
    record = bundle.find_component("unet_reuse")
    graph = bundle.load_graph("unet_reuse")
    inputs, others = (
        (drawn := draw_inputs(checkpoint, SIZES[0], seed))
        | run_graph(bundle.load_graph("unet"), drawn)
        for seed in (1, 2)
    )
    output = run_graph(graph, inputs)["out_sample"]
    for name in record.inputs:
        if family == NO_NUMBERS and record.inputs[name].shape in ((1,), ("batch",)):
            continue
        changed = run_graph(graph, {**inputs, name: others[name]})["out_sample"]
        assert np.abs(changed - output).max() > MINIMUM_INFLUENCE, name


def test_the_manifest_says_what_is_cut_out_of_what(bundle: Bundle) -> None:
    manifest = bundle.manifest
    names = list(manifest.components)
    assert names.index("unet_reuse") == names.index("unet") + 1
    whole, shallow = manifest.components["unet"], manifest.components["unet_reuse"]
    assert list(whole.outputs) == ["out_sample", DEEP_FEATURE]
    assert shallow.weights_of == "unet"
    feature = shallow.inputs[DEEP_FEATURE]
    assert feature.source == DEEP_FEATURE
    assert (feature.dtype, feature.shape) == ("float32", whole.outputs[DEEP_FEATURE].shape)
    assert list(shallow.outputs) == ["out_sample"]
    others = {name: tensor for name, tensor in shallow.inputs.items() if name != DEEP_FEATURE}
    assert others.items() <= whole.inputs.items()
    assert len(shallow.parity) == 2
    assert min(record.psnr_db for record in shallow.parity) > 100
    assert manifest.provenance["reuse_layers"] == DEFAULT_REUSE_LAYERS


def read_places(path: Path) -> set[tuple[str, ...]]:
    """File, offset and length of each weight of a graph that is not in the graph itself."""
    graph = onnx.load(path, load_external_data=False).graph
    return {
        tuple(entry.value for entry in tensor.external_data)
        for tensor in graph.initializer
        if tensor.external_data
    }


def test_the_shallow_graphs_read_weights_of_the_whole_ones(bundle: Bundle) -> None:
    manifest, shallow = bundle.manifest, bundle.find_component("unet_reuse")
    for graph in (*shallow.variants.values(), *shallow.cpu_graphs.values()):
        assert find_external_data(manifest, shallow, graph) == ["unet/model.onnx.data"]
        whole = read_places(bundle.path / graph.replace("_reuse", ""))
        found = read_places(bundle.path / graph)
        assert found
        assert found < whole
    data = {name for name in manifest.files if name.startswith("unet") and "_reuse" in name}
    assert data == {*shallow.variants.values(), *shallow.cpu_graphs.values()}


def test_a_shallow_graph_is_checked_with_the_weights_that_it_reads(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    Bundle.open(path).load_graph("unet_reuse")
    content = bytearray((path / "unet" / "model.onnx.data").read_bytes())
    content[-1] ^= 1
    (path / "unet" / "model.onnx.data").write_bytes(content)
    with pytest.raises(BundleError, match=r"unet/model.onnx.data does not match its sha256"):
        Bundle.open(path).load_graph("unet_reuse", for_cpu=True)


def test_weights_of_a_component_without_such_a_graph_are_an_error(tiny_bundle: Path) -> None:
    manifest = Manifest.load(tiny_bundle / "manifest.json")
    shallow = manifest.components["unet_reuse"]
    whole = replace(manifest.components["unet"], cpu_graphs={})
    changed = replace(manifest, components={**manifest.components, "unet": whole})
    with pytest.raises(BundleError, match="has the weights of unet, which has no such graph"):
        find_external_data(changed, shallow, shallow.cpu_graphs["float32"])


def test_float16_graphs_are_cut_too(float16_bundle: Path, tiny_checkpoint: Path) -> None:
    bundle = Bundle.open(float16_bundle)
    record = bundle.find_component("unet_reuse")
    assert record.variants == {"float16": "unet/model_reuse.onnx"}
    assert record.inputs[DEEP_FEATURE].dtype == "float32"
    inputs = draw_inputs(tiny_checkpoint, SIZES[0])
    expected = run_graph(bundle.load_graph("unet"), inputs)
    assert expected[DEEP_FEATURE].dtype == np.float32
    given = {**inputs, DEEP_FEATURE: expected[DEEP_FEATURE]}
    found = run_graph(bundle.load_graph("unet_reuse"), given)
    assert found["out_sample"].dtype == np.float32
    check_close_in_float16(found["out_sample"], expected["out_sample"])


def check_close_in_float16(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """On a CPU onnxruntime fuses conversions away, so that some values are rounded in one alone."""
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


def trace_as_in(bundle: Path, *, reuses: bool) -> Any:
    """What takes the place of the tracer, which takes half a minute for a UNet."""

    def trace(component: ComponentExport, _dtype: str) -> onnx_ir.Model:
        model = onnx_ir.load(bundle / component.name / "model.onnx")
        if component.name == "unet" and not reuses:
            assert list(component.outputs) == ["out_sample"]
            model.graph.outputs.pop()
        return model

    return trace


def test_without_reuse_there_is_nothing_of_it(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    run_command: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(component_export, "make_graph", trace_as_in(tiny_bundle, reuses=False))
    arguments = ("--reuse-layers", "0", "--num-inference-steps", "1", "--json")
    result = run_command("export", tiny_checkpoint, "-o", tmp_path / "bundle", *arguments)
    assert result.exit_code == 0, result.stderr
    assert "unet_reuse" not in json.loads(result.stdout)["components"]
    bundle = Bundle.open(tmp_path / "bundle")
    assert list(bundle.find_component("unet").outputs) == ["out_sample"]
    assert not [name for name in bundle.manifest.files if "reuse" in name]
    result = run_command("verify", tmp_path / "bundle", "--checkpoint", tiny_checkpoint)
    assert result.exit_code == 0, result.stderr


def test_a_negative_number_of_layers_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"reuse_layers is -1; it must be 0, .*: use 1"):
        export_checkpoint(tiny_checkpoint, tmp_path / "bundle", reuse_layers=-1)
    assert check_reuse_layers(None) == DEFAULT_REUSE_LAYERS
    assert check_reuse_layers(0) == 0


@pytest.fixture
def unet_folder(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, component_export.ExportedComponent]:
    """A folder with the graphs of `tiny_bundle`'s denoiser, and what their export gave."""
    monkeypatch.setattr(component_export, "make_graph", trace_as_in(tiny_bundle, reuses=True))
    plan = GraphPlan(("float32",), "float32", ())
    return tmp_path, export_component(
        lambda: make_unet(tiny_checkpoint, DEFAULT_REUSE_LAYERS), tmp_path, plan
    )


def test_features_of_another_layer_do_not_pass(
    unet_folder: tuple[Path, component_export.ExportedComponent],
) -> None:
    folder, exported = unet_folder
    graph = folder / "unet" / "model.onnx"
    model = onnx_ir.load(graph)
    # As if the layer took twice the features that are returned.
    feature = model.graph.outputs[1]
    double = onnx_ir.node("Add", [feature, feature])
    users = [(user, index) for user, index in feature.uses() if user is not double]
    model.graph.insert_after(feature.producer(), double)
    for user, index in users:
        user.replace_input_with(index, double.outputs[0])
    onnx_ir.save(model, graph)
    with pytest.raises(ExportParityError, match="unet_reuse does not compute what the checkpoint"):
        export_reuse("unet", exported, folder)


def test_what_cannot_be_cut_is_an_error_of_the_export(
    unet_folder: tuple[Path, component_export.ExportedComponent],
) -> None:
    folder, exported = unet_folder
    graph = folder / "unet" / "model.onnx"
    model = onnx_ir.load(graph)
    model.graph.outputs.pop()
    onnx_ir.save(model, graph)
    with pytest.raises(ExportError, match="does not return deep_feature"):
        export_reuse("unet", exported, folder)
