"""TensorRT builds engines of every component, for all sizes that its bundle takes."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from mutoscope.export import export_checkpoint
from mutoscope.export.graph import OPSET_VERSION
from mutoscope.runtime.manifest import Manifest
from tests.tensorrt_build import (
    InputRange,
    TensorrtError,
    build_component,
    build_engine,
)

pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13 (Linux, x86-64)")

# Fixtures of bundles, and the components that such a bundle has: another bundle is one line more.
BUNDLES = {
    "tiny_bundle": ("text_encoder", "unet", "vae_decoder"),
    "sdxl_bundle": ("text_encoder", "unet", "vae_decoder"),
    "modelscope_bundle": ("text_encoder", "unet", "vae_decoder"),
    "i2vgen_bundle": ("text_encoder", "image_encoder", "vae_encoder", "unet", "vae_decoder"),
    "svd_bundle": ("image_encoder", "vae_encoder", "unet", "vae_decoder"),
    "float16_bundle": ("text_encoder", "unet", "vae_decoder"),
}
# Families that float16_bundle is not of.
FLOAT16_FAMILIES = ("sdxl", "modelscope", "i2vgen", "svd")
CASES = [(bundle, component) for bundle, components in BUNDLES.items() for component in components]


@pytest.mark.parametrize(("fixture", "component"), CASES)
def test_an_engine_is_built_for_all_sizes(
    fixture: str, component: str, request: pytest.FixtureRequest
) -> None:
    bundle: Path = request.getfixturevalue(fixture)
    assert build_component(bundle, component).size_bytes > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", FLOAT16_FAMILIES)
def test_engines_are_built_of_all_components_in_float16(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    checkpoint: Path = request.getfixturevalue(f"{family}_checkpoint")
    bundle = export_checkpoint(
        checkpoint, tmp_path / "bundle", dtype="float16", num_inference_steps=(1,)
    ).bundle
    graph = onnx.load(bundle / "unet" / "model.onnx").graph
    assert onnx.TensorProto.FLOAT16 in {tensor.data_type for tensor in graph.initializer}
    for component in Manifest.load(bundle / "manifest.json").components:
        assert build_component(bundle, component).size_bytes > 0


@pytest.mark.parametrize("fixture", BUNDLES)
def test_no_component_is_left_out(fixture: str, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(fixture)
    assert BUNDLES[fixture] == tuple(Manifest.load(bundle / "manifest.json").components)


def test_a_graph_that_is_right_for_one_in_a_batch_only_is_found(tmp_path: Path) -> None:
    # What onnxscript 0.7.2 makes of repeat_interleave; export/translations.py has its own.
    ranges = {
        "text": InputRange((1, 4), (2, 4), (2, 4)),
        "sample": InputRange((1, 1, 4), (2, 8, 4), (2, 16, 4)),
    }
    path = save_text(
        tmp_path,
        """(float[batch, 4] text, float[batch, frames, 4] sample) => (float[n, 4] per_frame) {
            shape = Shape <start = 1> (sample)
            per_frame = Expand (text, shape)
        }""",
    )
    with pytest.raises(TensorrtError, match=r"cannot be built: .*violate shape constraints"):
        build_engine(path, ranges)
    of_one = {name: InputRange(r.minimum, r.minimum, r.minimum) for name, r in ranges.items()}
    assert build_engine(path, of_one).size_bytes > 0


def test_a_graph_that_tensorrt_cannot_read_is_found(tmp_path: Path) -> None:
    path = save_text(tmp_path, "(float[2] x) => (float[2] y) { y = NoSuchOperator (x) }")
    with pytest.raises(TensorrtError, match=r"cannot be parsed: NoSuchOperator: "):
        build_engine(path, {})


def save_text(folder: Path, graph: str) -> Path:
    """Write a graph that is given as text."""
    text = f'<ir_version: 8, opset_import: ["": {OPSET_VERSION}]> graph {graph}'
    onnx.save(onnx.parser.parse_model(text), folder / "model.onnx")
    return folder / "model.onnx"
