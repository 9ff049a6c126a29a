"""Corrections to the exporter's translation of PyTorch operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op


def make_translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what torch.onnx.export takes as `custom_translation_table`."""
    return {torch.ops.aten.repeat_interleave.self_int: repeat_interleave}


def repeat_interleave(
    self: Any, repeats: Any, dim: int | None = None, output_size: Any = None
) -> Any:
    """Return `self` with each slice along `dim` repeated, for a constant or a dynamic count.

    onnxscript 0.7.2 expands to [1] * dim + [repeats] + [1] * (rank - dim) where the unsqueezed
    tensor needs [1] * (dim + 1) + [repeats] + [1] * (rank - 1 - dim): right for a batch of one
    only, which every UNet of diffusers with frames meets at once under guidance.
    """
    if dim is None:
        self = op.Reshape(self, op.Constant(value_ints=[-1]))
        dim, rank = 0, 1
    else:
        rank = len(self.shape)
    dim %= rank
    after = rank - 1 - dim
    repeated = op.Expand(
        op.Unsqueeze(self, op.Constant(value_ints=[dim + 1])),
        _concat(_ones(dim + 1), _count(repeats), _ones(after)),
    )
    before = [op.Shape(self, start=0, end=dim)] if dim else []
    behind = [op.Shape(self, start=dim + 1)] if after else []
    return op.Reshape(repeated, _concat(before, [op.Constant(value_ints=[-1])], behind))


def _ones(count: int) -> list[Any]:
    return [op.Constant(value_ints=[1] * count)] if count else []


def _count(repeats: Any) -> list[Any]:
    if isinstance(repeats, int):
        return [op.Constant(value_ints=[repeats])]
    return [op.Reshape(repeats, op.Constant(value_ints=[-1]))]


def _concat(*parts: list[Any]) -> Any:
    """Return the parts as one shape tensor."""
    flat = [part for group in parts for part in group]
    return flat[0] if len(flat) == 1 else op.Concat(*flat, axis=0)
