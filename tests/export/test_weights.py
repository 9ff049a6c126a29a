"""Weights stored in float16 give the very same results, or are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import pytest

from mutoscope.export import ExportError, export_checkpoint
from mutoscope.export.checkpoint import open_checkpoint
from mutoscope.export.families import open_family
from mutoscope.export.graph import save_graph
from mutoscope.export.weights import make_exact_float16, store_weights_as_float16


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder"])
def test_float16_storage_changes_no_bit_and_halves_the_file(
    name: str, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = onnx_ir.load(tiny_bundle / name / "model.onnx")
    changed = store_weights_as_float16(model)
    path = tmp_path / "model.onnx"
    save_graph(model, path)
    old_size = (tiny_bundle / name / "model.onnx.data").stat().st_size
    assert changed > 10
    assert path.with_name("model.onnx.data").stat().st_size < 0.6 * old_size

    component = open_family(open_checkpoint(tiny_checkpoint)).component_makers[name]()
    for seed, sizes in enumerate(component.parity_sizes):
        inputs = component.make_inputs(sizes, seed)
        expected, found = (
            onnxruntime.InferenceSession(str(graph)).run(None, inputs)
            for graph in (tiny_bundle / name / "model.onnx", path)
        )
        assert len(found) == len(expected) > 0
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_float16_storage_that_would_lose_something_is_refused(
    other_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ExportError, match=r"has values that float16 cannot hold.*--weights float32"
    ):
        export_checkpoint(
            other_checkpoint, tmp_path / "bundle", weights="float16", num_inference_steps=[1]
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [0.1, 1e6, -70000.0, 1e-9])
def test_values_that_float16_does_not_hold_stay_in_float32(value: float) -> None:
    assert make_exact_float16(np.array([1.0, value], np.float32)) is None


def test_values_that_float16_holds_are_kept_to_the_bit() -> None:
    values = np.array([0.0, -0.0, 1.5, 65504.0, 6e-8], np.float16)
    half = make_exact_float16(values.astype(np.float32))
    assert half is not None
    np.testing.assert_array_equal(half.view(np.uint16), values.view(np.uint16))
