"""Turn a component's module into an ONNX graph that holds nothing but the model.

Source: torch.onnx.export with dynamo=True; what else was weighed is in
docs/decisions/0002-exporter.md.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
)

from mutoscope.export.errors import ExportError
from mutoscope.export.families.contract import ComponentExport
from mutoscope.export.gated_linear import split_gated_linears
from mutoscope.export.library_noise import quiet_libraries
from mutoscope.export.translations import make_translation_table
from mutoscope.runtime.manifest import TensorRecord

# The newest operator set that onnxruntime 1.20 and TensorRT 10.3 (JetPack 6) both read in full.
OPSET_VERSION = 20
# Initialisers of this many bytes or more lie in the external data file. The smaller ones, among
# them all shape constants, must be inline: onnxruntime reads shapes before it maps the file.
EXTERNAL_DATA_MINIMUM_BYTES = 1024

# Where onnxscript's optimiser writes what an initialiser was computed of.
_FOLDED_FROM = "pkg.onnxscript.optimizer.folded_from"

ONNX_TYPES = {
    "float32": onnx_ir.DataType.FLOAT,
    "int64": onnx_ir.DataType.INT64,
    "uint8": onnx_ir.DataType.UINT8,
}


def make_graph(component: ComponentExport, dtype: str = "float32") -> onnx_ir.Model:
    """Return the ONNX model of a component, checked to be dynamic where the component says so.

    Args:
        component: Its module computes in `dtype`.
        dtype: "float32" or "float16".

    Raises:
        ExportError: The exporter failed, or made a dynamic axis constant.
    """
    inputs = {
        name: torch.from_numpy(array)
        for name, array in component.make_inputs(component.trace_sizes, seed=0).items()
    }
    try:
        with quiet_libraries(), torch.no_grad():
            program = torch.onnx.export(
                component.module,
                kwargs=inputs,
                dynamo=True,
                dynamic_shapes=_make_dynamic_shapes(component),
                input_names=list(component.inputs),
                output_names=list(component.outputs),
                opset_version=OPSET_VERSION,
                custom_translation_table=make_translation_table(dtype),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as err:
        first_line = str(err).strip().splitlines()[0]
        raise ExportError(
            f"{component.name} could not be exported by torch {torch.__version__}: {first_line}"
        ) from err
    if program is None:
        raise ExportError(f"{component.name} could not be exported by torch {torch.__version__}")
    model = program.model
    _check_interface(model.graph, component)
    _name_folded_weights(model.graph)
    split_gated_linears(model)
    _clean_graph(model, component)
    return model


def save_graph(model: onnx_ir.Model, path: Path) -> int:
    """Write `model.onnx` and `model.onnx.data` beside it; return the number of nodes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx_ir.save(
        model,
        path,
        external_data=f"{path.name}.data",
        size_threshold_bytes=EXTERNAL_DATA_MINIMUM_BYTES,
    )
    return len(model.graph)


def release_weights(model: onnx_ir.Model, module: torch.nn.Module) -> None:
    """Empty a model that was saved, and the module that it was made of, so that memory is free.

    To let go of them is not enough: the patterns of onnxscript's rewriter, which live as long as
    the process, remember the graphs that they last saw.
    """
    for value in model.graph.initializers.values():
        value.const_value = None
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = torch.empty(0)


def _make_dynamic_shapes(component: ComponentExport) -> dict[str, dict[int, Any]]:
    """Return what torch calls dynamic_shapes: for each input, its dynamic axes."""
    return {
        name: {
            index: _make_dim(axis, component.multiples.get(axis, 1))
            for index, axis in enumerate(tensor.shape)
            if isinstance(axis, str)
        }
        for name, tensor in component.inputs.items()
    }


def _make_dim(axis: str, multiple: int) -> Any:
    """Return the torch dimension of an axis."""
    dim = torch.export.Dim(f"axis_{axis}")  # sympy has functions of its own called "sequence", "E"
    return dim if multiple == 1 else multiple * dim


def _check_interface(graph: onnx_ir.Graph, component: ComponentExport) -> None:
    """Refuse a graph with other inputs or outputs, or with constants for dynamic axes.

    The exporter specialises without a word where Python code looks at a size.
    """
    declared = {**component.inputs, **component.outputs}
    values = [*graph.inputs, *graph.outputs]
    names = [value.name for value in values]
    if names != list(declared):
        raise ExportError(
            f"{component.name} was exported with {', '.join(map(str, names))} instead of "
            f"{', '.join(declared)}"
        )
    for value, tensor in zip(values, declared.values(), strict=True):
        _check_value(value, tensor, component.name)


def _check_value(value: onnx_ir.Value, tensor: TensorRecord, component_name: str) -> None:
    where = f"{component_name}: {value.name}"
    if value.dtype != ONNX_TYPES[tensor.dtype]:
        raise ExportError(f"{where} was exported as {value.dtype} instead of {tensor.dtype}")
    shape = [] if value.shape is None else list(value.shape)
    if len(shape) != len(tensor.shape):
        raise ExportError(f"{where} was exported with {len(shape)} axes of {len(tensor.shape)}")
    for exported, axis in zip(shape, tensor.shape, strict=True):
        if isinstance(axis, str) and isinstance(exported, int):
            raise ExportError(
                f"{where}: the axis {axis} was exported as the constant {exported}; the model's "
                "code takes a decision on its size"
            )
        if isinstance(axis, int) and exported != axis:
            raise ExportError(f"{where}: an axis of {axis} was exported as {exported}")


def _name_folded_weights(graph: onnx_ir.Graph) -> None:
    """Give weights that the exporter transposed the name of the parameter that they were made of.

    It numbers them, and differently in float32 and float16; calibration, LoRAs and people look for
    a layer by the name of its weight.
    """
    for value in list(graph.initializers.values()):
        sources = ast.literal_eval(value.metadata_props.get(_FOLDED_FROM, "[]"))
        if len(sources) != 1 or sources[0] in graph.initializers or value.const_value is None:
            continue
        value.name = value.const_value.name = sources[0]


def _clean_graph(model: onnx_ir.Model, component: ComponentExport) -> None:
    """Name the axes, and take out all that is not the model, in place.

    The exporter leaves stack traces with paths of this machine in the metadata of every node, and
    inner shapes under names of its own, which onnxruntime and TensorRT work out anyway.
    """
    RemoveUnusedNodesPass()(model)
    DeduplicateInitializersPass()(model)
    ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    model.metadata_props.clear()
    graph.metadata_props.clear()
    graph.name = component.name
    model.producer_name, model.producer_version = "mutoscope", None
    interface = {**component.inputs, **component.outputs}
    for value in [*graph.inputs, *graph.outputs]:
        value.shape = onnx_ir.Shape(interface[str(value.name)].shape)
    inner = [value for node in graph for value in node.outputs]
    for value in [*graph.inputs, *graph.initializers.values(), *inner]:
        value.metadata_props.clear()
        if value.name not in interface:
            value.shape = value.type = None
    for node in graph:
        node.metadata_props.clear()
