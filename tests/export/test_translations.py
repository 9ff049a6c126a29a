"""What export/translations.py says of an operator is what PyTorch computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch

from mutoscope.export.graph import OPSET_VERSION
from mutoscope.export.library_noise import quiet_libraries
from mutoscope.export.translations import make_translation_table

REPEATS = 3
SHAPE = (2, 4, 5)


class Repeat(torch.nn.Module):
    """repeat_interleave by a constant, or by the length of another input."""

    def __init__(self, dim: int | None, repeats: int | None) -> None:
        super().__init__()
        self.dim = dim
        self.repeats = repeats

    def forward(self, values: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        repeats = frames.shape[0] if self.repeats is None else self.repeats
        return values.repeat_interleave(repeats, dim=self.dim) + frames.sum()


@pytest.mark.parametrize(
    ("dim", "repeats"), [(0, None), (1, None), (-1, None), (None, None), (1, REPEATS)]
)
def test_repeat_interleave_is_that_of_torch_at_every_size(
    dim: int | None, repeats: int | None, tmp_path: Path
) -> None:
    module = Repeat(dim, repeats)
    path = export(module, tmp_path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape, frames in (((1, 4, 5), 1), ((1, 2, 7), 2), ((3, 6, 1), 4), ((2, 1, 2), 5)):
        inputs = make_inputs(shape, frames)
        expected = module(*inputs.values()).numpy()
        (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        np.testing.assert_array_equal(found, expected)


def test_attention_is_translated_in_float16_only() -> None:
    attention = torch.ops.aten.scaled_dot_product_attention.default
    assert attention in make_translation_table("float16")
    assert attention not in make_translation_table("float32")
    assert attention not in make_translation_table()


def export(module: torch.nn.Module, folder: Path) -> Path:
    """Export a module with all sizes dynamic."""
    axes = {index: torch.export.Dim(f"axis_{index}") for index in range(len(SHAPE))}
    with quiet_libraries():
        program = torch.onnx.export(
            module.eval(),
            kwargs=make_inputs(SHAPE, REPEATS + 3),
            dynamo=True,
            dynamic_shapes={"values": axes, "frames": {0: torch.export.Dim("frames")}},
            input_names=["values", "frames"],
            opset_version=OPSET_VERSION,
            custom_translation_table=make_translation_table(),
            verbose=False,
        )
    assert program is not None
    path = folder / "model.onnx"
    onnx_ir.save(program.model, path)
    onnx.checker.check_model(path, full_check=True)
    return path


def make_inputs(shape: tuple[int, ...], frames: int) -> dict[str, torch.Tensor]:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return {"values": torch.from_numpy(values), "frames": torch.ones(frames)}
