"""Cut the shallow part of a denoiser out of its graph: what runs where deep features are reused.

It is cut out of the finished graph, of each variant, so that it reads the same bytes of the same
weights file; a graph that was traced on its own would have other names and a second copy of them.

Source: Ma et al., "DeepCache: Accelerating Diffusion Models for Free", arXiv:2312.00858.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import onnx_ir
from onnx_ir.passes.common import (
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    TopologicalSortPass,
)

from mutoscope.calibration.errors import CalibrationError
from mutoscope.runtime.manifest import ComponentRecord, TensorRecord

# What a denoiser returns beside the model output, and the source of the input that takes it.
DEEP_FEATURE: Final = "deep_feature"

# In the names of weights. Of the up blocks, the last alone is shallow.
_DEEP_WEIGHT = re.compile(r"(?:^|\.)(?:(mid_block)|up_blocks\.(\d+))\.")


@dataclass(frozen=True)
class CutGraph:
    """A graph that was cut out of another one."""

    inputs: tuple[str, ...]
    nodes: int


def name_reuse(denoiser: str) -> str:
    """Return the name of the component that is the shallow part of a denoiser."""
    return f"{denoiser}_reuse"


def name_reuse_graph(graph: str) -> str:
    """Return the path of what is cut out of a graph: unet/model_cpu_reuse.onnx, for instance."""
    return f"{graph.removesuffix('.onnx')}_reuse.onnx"


def cut_reuse_graph(source: Path, target: Path) -> CutGraph:
    """Write all that the first output of a graph needs, with deep_feature as an input.

    The weights are read from the data file of `source`, where they are.

    Args:
        source: A denoiser's graph, whose second output is deep_feature.
        target: The file to write, in the same folder.

    Raises:
        CalibrationError: There is no such output, or the part that is cut out is not shallow.
    """
    model = onnx_ir.load(source)
    graph = model.graph
    where = f"{source.parent.name}/{source.name}"
    feature = next((value for value in graph.outputs if value.name == DEEP_FEATURE), None)
    if feature is None:
        raise CalibrationError(
            f"{where} does not return {DEEP_FEATURE}: export the checkpoint again with "
            "--reuse-layers 1"
        )
    names = [str(name) for name in graph.initializers]
    taken, is_converted = _find_taken(feature, where)
    graph.outputs.remove(feature)
    given = onnx_ir.val(DEEP_FEATURE, shape=feature.shape, type=feature.type)
    feature.name = f"{DEEP_FEATURE}.computed"
    graph.inputs.append(given)
    replacement: onnx_ir.Value = given
    if is_converted:
        # It is returned in float32 by a graph that computes in float16.
        cast = onnx_ir.node("Cast", [given], {"to": onnx_ir.DataType.FLOAT16.value})
        graph.append(cast)
        replacement = cast.outputs[0]
    taken.replace_all_uses_with(replacement)
    for clean in (RemoveUnusedNodesPass(), TopologicalSortPass(), RemoveUnusedOpsetsPass()):
        clean(model)
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    for value in graph.initializers.values():
        value.shape = value.type = None  # their tensors say it; the graph would say it again
    _check_shallow(names, [str(name) for name in graph.initializers], where)
    graph.name = name_reuse(str(graph.name))
    onnx_ir.save(model, target)
    return CutGraph(tuple(str(value.name) for value in graph.inputs), len(graph))


def make_reuse_record(
    denoiser: str, record: ComponentRecord, inputs: tuple[str, ...]
) -> ComponentRecord:
    """Return the record of a denoiser's shallow part, which has all of its variants.

    Args:
        denoiser: The name of the component that it is cut out of.
        record: The record of that.
        inputs: The names of the inputs that are left.
    """
    feature = replace(record.outputs[DEEP_FEATURE], source=DEEP_FEATURE)
    kept: dict[str, TensorRecord] = {
        name: tensor for name, tensor in record.inputs.items() if name in inputs
    }
    model_output = next(iter(record.outputs))
    return ComponentRecord(
        variants={name: name_reuse_graph(path) for name, path in record.variants.items()},
        default_variant=record.default_variant,
        inputs={**kept, DEEP_FEATURE: feature},
        outputs={model_output: record.outputs[model_output]},
        cpu_graphs={name: name_reuse_graph(path) for name, path in record.cpu_graphs.items()},
        weights_of=denoiser,
    )


def _find_taken(feature: onnx_ir.Value, where: str) -> tuple[onnx_ir.Value, bool]:
    """The value that the shallow part takes, and whether the output is a conversion of it."""
    value, is_converted = feature, False
    behind: onnx_ir.Node | None = None
    while all(user is behind for user in value.consumers()):
        node = value.producer()
        if node is None or node.op_type not in ("Identity", "Cast") or node.inputs[0] is None:
            raise CalibrationError(f"{where} computes {DEEP_FEATURE}, and nothing in it takes that")
        is_converted = is_converted or node.op_type == "Cast"
        value, behind = node.inputs[0], node
    return value, is_converted


def _check_shallow(names: list[str], kept: list[str], where: str) -> None:
    """Raise `CalibrationError` if weights of deep layers are kept."""
    blocks = [int(found[2]) for name in names if (found := _DEEP_WEIGHT.search(name)) and found[2]]
    last = max(blocks, default=0)
    for name in kept:
        found = _DEEP_WEIGHT.search(name)
        if found and (found[1] or int(found[2]) < last):
            raise CalibrationError(
                f"the shallow part of {where} needs the deep layer {name}: leave reuse out with "
                "--reuse-layers 0"
            )
