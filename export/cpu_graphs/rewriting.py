"""Make the graph for processors of a plain one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import onnx_ir
from onnx_ir.passes.common import (
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from mutoscope.calibration.graph_editing import CONTRIB_DOMAIN
from mutoscope.export.cpu_graphs.attention import attend_once, fuse_attention
from mutoscope.export.cpu_graphs.layout import (
    flatten_temporal_convolutions,
    merge_transposed_axes,
)
from mutoscope.export.cpu_graphs.norms import join_scale_and_shift
from mutoscope.runtime.errors import ParameterError

# In the order in which they run. `python -m benchmarks.cpu_rewrites` measures each of them.
REWRITES: dict[str, Callable[[onnx_ir.Model], int]] = {
    "fused-attention": fuse_attention,
    "shared-text": attend_once,
    "merged-transposes": merge_transposed_axes,
    "temporal-convolutions": flatten_temporal_convolutions,
    "joined-norms": join_scale_and_shift,
}


def check_rewrites(names: Iterable[str] | None) -> tuple[str, ...]:
    """Return the names of rewrites in the order in which they run; None means all of them.

    Raises:
        ParameterError: A name is unknown, or shared-text is there without fused-attention.
    """
    chosen = set(REWRITES if names is None else names)
    unknown = sorted(chosen - set(REWRITES))
    if unknown:
        raise ParameterError(
            f"rewrite {unknown[0]!r} is unknown: use {', '.join(REWRITES)}, or none of them"
        )
    if "shared-text" in chosen and "fused-attention" not in chosen:
        raise ParameterError(
            "shared-text works on what fused-attention makes: add fused-attention, or leave it out"
        )
    return tuple(name for name in REWRITES if name in chosen)


def make_cpu_graph(
    source: Path, target: Path, names: Iterable[str] | None = None
) -> dict[str, int]:
    """Write the graph at `source`, rewritten for processors, to `target` beside it.

    Nothing is written where no rewrite finds anything to do. Weights are read from the data file of
    `source`, whose name the new graph keeps.

    Args:
        source: A plain graph, in float32.
        target: The file to write, in the same folder.
        names: Which of REWRITES to run; None runs all.

    Returns:
        How many places each rewrite changed, without those that changed none.
    """
    model = onnx_ir.load(source)
    ShapeInferencePass()(model)
    counts = {name: REWRITES[name](model) for name in check_rewrites(names)}
    done = {name: count for name, count in counts.items() if count}
    if done:
        model.opset_imports[CONTRIB_DOMAIN] = 1
        _clean(model)
        onnx_ir.save(model, target)
    return done


def _clean(model: onnx_ir.Model) -> None:
    """Take out what nothing uses any more, and the shapes that were inferred."""
    for clean in (RemoveUnusedNodesPass(), TopologicalSortPass(), RemoveUnusedOpsetsPass()):
        clean(model)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
