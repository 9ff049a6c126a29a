"""Corrections to the exporter's translation of PyTorch operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir
import torch
from onnxscript import opset18 as op


def make_translation_table(dtype: str = "float32") -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what torch.onnx.export takes as `custom_translation_table`.

    Args:
        dtype: What the graph computes in, "float32" or "float16".
    """
    table: dict[Callable[..., Any], Callable[..., Any]] = {
        torch.ops.aten.repeat_interleave.self_int: repeat_interleave
    }
    if dtype == "float16":
        table[torch.ops.aten.scaled_dot_product_attention.default] = attention_in_float16
    return table


def attention_in_float16(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Return attention with both products in float16, and mask and softmax in float32.

    The query is scaled before its product with the key, which float16 might not hold otherwise.

    `query` is [B, heads, L, D], `key` and `value` are [B, heads, S, D]; `attn_mask` broadcasts to
    [B, heads, L, S] and is boolean (True is seen) or of floats to add.

    Source: torch.nn.functional.scaled_dot_product_attention (tests/export/test_float16.py).
    """
    if enable_gqa or dropout_p:
        raise NotImplementedError("attention with dropout or with fewer heads for keys")
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scaled = op.Mul(query, op.Constant(value=onnx_ir.tensor(factor, dtype=query.dtype)))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))  # [B, heads, L, S]
    scores = op.Cast(scores, to=onnx_ir.DataType.FLOAT)
    if is_causal:
        scores = op.Add(scores, _make_causal_mask(query, key))
    elif attn_mask is not None:
        scores = op.Add(scores, _make_float32_mask(attn_mask))
    return op.MatMul(op.Cast(op.Softmax(scores, axis=-1), to=value.dtype), value)


def _make_causal_mask(query: Any, key: Any) -> Any:
    """Return float32 [L, S]: 0 up to the diagonal, the lowest number above it."""
    size = op.Concat(op.Shape(query, start=2, end=3), op.Shape(key, start=2, end=3), axis=0)
    return op.Trilu(op.Expand(_lowest_float32(), size), op.Constant(value_int=1), upper=1)


def _make_float32_mask(attn_mask: Any) -> Any:
    """Return what is added to the scores for a mask of either kind."""
    if attn_mask.dtype == onnx_ir.DataType.BOOL:
        return op.Where(attn_mask, op.Constant(value_float=0.0), _lowest_float32())
    return op.Cast(attn_mask, to=onnx_ir.DataType.FLOAT)


def _lowest_float32() -> Any:
    # Not -inf: the softmax of a row that sees nothing would be NaN.
    return op.Constant(value_float=torch.finfo(torch.float32).min)


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
