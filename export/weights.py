"""Store weights in float16 and compute in float32, where nothing is lost by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray

from mutoscope.calibration.graph_editing import FLOAT16_SUFFIX
from mutoscope.export.errors import ExportError
from mutoscope.export.families.contract import ComponentExport
from mutoscope.export.graph import EXTERNAL_DATA_MINIMUM_BYTES
from mutoscope.runtime.errors import ParameterError

# What a graph computes in, and what its weights are stored in.
DTYPES = ("float32", "float16")
WEIGHT_TYPES = ("float32", "float16")


def choose_weight_type(dtype: str, weights: str | None) -> str:
    """Return how weights are stored in graphs that compute in `dtype`; None means in the same.

    Raises:
        ParameterError: An unknown type, or float32 weights for float16 graphs.
    """
    if dtype not in DTYPES:
        raise ParameterError(f"dtype is {dtype!r}: use one of {', '.join(DTYPES)}")
    if weights is not None and weights not in WEIGHT_TYPES:
        raise ParameterError(f"weights is {weights!r}: use one of {', '.join(WEIGHT_TYPES)}")
    if dtype == "float16" and weights == "float32":
        raise ParameterError(
            "weights is 'float32' with dtype 'float16', whose graphs have float16 weights: leave "
            "weights out, or use dtype 'float32'"
        )
    return weights or dtype


def check_float16_weights(component: ComponentExport) -> None:
    """Raise `ExportError` unless float16 holds every weight of the component exactly.

    That is so for every checkpoint that was itself saved in float16.
    """
    for name, tensor in component.module.state_dict().items():
        if tensor.is_floating_point() and not torch.equal(tensor.half().float(), tensor.float()):
            raise ExportError(
                f"{component.name}: {name} has values that float16 cannot hold, so storing it so "
                "would change the model: use --weights float32; or, where no LoRA is fused into "
                "it, save it first with pipeline.to(torch.float16).save_pretrained(FOLDER)"
            )


def store_weights_as_float16(model: onnx_ir.Model) -> int:
    """Store the large float32 initialisers as float16, in place; return how many were changed.

    Each is followed by one Cast to float32, which onnxruntime and TensorRT fold when they load the
    graph: they then run the very same float32 graph. What float16 does not hold exactly (constants
    that the exporter computed) stays as it is.
    """
    graph = model.graph
    casts: list[onnx_ir.Node] = []
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != onnx_ir.DataType.FLOAT:
            continue
        if tensor.nbytes < EXTERNAL_DATA_MINIMUM_BYTES or value.is_graph_output():
            continue
        half = make_exact_float16(tensor.numpy())
        if half is None:
            continue
        del graph.initializers[name]
        stored = onnx_ir.Value(name=f"{name}{FLOAT16_SUFFIX}", const_value=onnx_ir.tensor(half))
        graph.register_initializer(stored)
        cast = onnx_ir.node(
            "Cast",
            [stored],
            attributes={"to": onnx_ir.DataType.FLOAT},
            name=f"{name}.to_float32",
        )
        onnx_ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        cast.outputs[0].name = name
        casts.append(cast)
    if casts:
        graph.insert_before(graph[0], casts)
    return len(casts)


def make_exact_float16(array: NDArray[Any]) -> NDArray[np.float16] | None:
    """Return the array in float16, or None if that changes a value."""
    with np.errstate(over="ignore", under="ignore"):
        half: NDArray[np.float16] = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else None
