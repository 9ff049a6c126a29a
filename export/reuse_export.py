"""Let a denoiser return the features that its last layers take, and export those layers alone.

What runs where deep features are reused is cut out of the denoiser's graphs
(`calibration/reuse_graphs.py`); here its denoiser gets the output that this takes, and what was cut
out is compared with the checkpoint.

Source: Ma et al., "DeepCache: Accelerating Diffusion Models for Free", arXiv:2312.00858.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.reuse_graphs import (
    DEEP_FEATURE,
    CutGraph,
    cut_reuse_graph,
    make_reuse_record,
    name_reuse,
    name_reuse_graph,
)
from mutoscope.export.component_export import ExportedComponent
from mutoscope.export.errors import ExportError
from mutoscope.export.families.contract import ComponentExport
from mutoscope.export.few_step import FEW_STEP_UNET
from mutoscope.export.parity import Reference, check_parity, measure_parity
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.manifest import DENOISERS, Manifest, ParityRecord, TensorRecord

# On the shipped model a plan with 1 is faster, at the same PSNR, than one with 2.
DEFAULT_REUSE_LAYERS = 1
# In the provenance of a manifest.
REUSE_LAYERS = "reuse_layers"


def check_reuse_layers(reuse_layers: int | None) -> int:
    """Return the number of layers, the usual one for None; raises `ParameterError`."""
    if reuse_layers is None:
        return DEFAULT_REUSE_LAYERS
    if reuse_layers < 0:
        raise ParameterError(
            f"reuse_layers is {reuse_layers}; it must be 0, which leaves reuse out, or more: use "
            f"{DEFAULT_REUSE_LAYERS}"
        )
    return reuse_layers


def find_reuse_layers(manifest: Manifest) -> int:
    """Return the number of layers that run with reused features; 0 if a bundle reuses none."""
    return int(manifest.provenance.get(REUSE_LAYERS, 0))


def is_reusable(name: str) -> bool:
    """Whether a component is a denoiser that a shallow part is cut out of."""
    return name in (*DENOISERS, FEW_STEP_UNET)


def make_reusable(
    make_component: Callable[[], ComponentExport], reuse_layers: int
) -> ComponentExport:
    """Return a component which, if it is the whole denoiser, also returns its deep features.

    Args:
        make_component: Returns the component.
        reuse_layers: How many layers of the last up block run where features are reused, at most
            all; 0 leaves the component as it is.

    Raises:
        CheckpointError: The component cannot be loaded.
    """
    component = make_component()
    if not reuse_layers or not is_reusable(component.name):
        return component
    unet: Any = component.module.unet
    count = min(reuse_layers, len(unet.up_blocks[-1].resnets))
    _return_deep_feature(component.module, unet.up_blocks[-1], count)
    channels = tuple(unet.config.block_out_channels)
    is_whole_block = count == len(unet.up_blocks[-1].resnets)
    features = channels[min(int(is_whole_block), len(channels) - 1)]
    record = TensorRecord("float32", ("batch_frames", features, "latent_height", "latent_width"))
    return replace(component, outputs={**component.outputs, DEEP_FEATURE: record})


def _return_deep_feature(module: torch.nn.Module, up_block: Any, count: int) -> None:
    """Let a module return what enters the last `count` layers of an up block, as float32 too."""
    states: list[torch.Tensor] = []
    features: list[torch.Tensor] = []

    def enter(_module: torch.nn.Module, inputs: Any, named_inputs: Mapping[str, Any]) -> None:
        states[:] = [named_inputs["hidden_states"] if not inputs else inputs[0]]

    def leave(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        states[:] = [output[0] if isinstance(output, tuple) else output]

    def keep(_module: torch.nn.Module, _inputs: Any) -> None:
        # What enters the layer itself is joined with the skip connection already.
        features[:] = states

    def add_output(
        _module: torch.nn.Module, _inputs: Any, output: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        states.clear()
        return output, features.pop().float()

    up_block.register_forward_pre_hook(enter, with_kwargs=True)
    for parts in up_block.children():
        for part in parts if isinstance(parts, torch.nn.ModuleList) else ():
            part.register_forward_hook(leave)
    up_block.resnets[-count].register_forward_pre_hook(keep)
    module.register_forward_hook(add_output)


def export_reuse(denoiser: str, exported: ExportedComponent, bundle: Path) -> ExportedComponent:
    """Cut the shallow part out of all graphs of a denoiser, and compare it with the checkpoint.

    Args:
        denoiser: The name of the denoiser.
        exported: What its export gave.
        bundle: The folder.

    Raises:
        ExportError: What is cut out is not shallow.
        ExportParityError: It differs from the checkpoint, given the deep features of that.
    """
    parity: dict[str, tuple[ParityRecord, ...]] = {}
    cuts: dict[str, CutGraph] = {}
    graphs = exported.record
    for dtype, graph in [*graphs.variants.items(), *graphs.cpu_graphs.items()]:
        cuts[graph], figures = write_reuse_graph(
            exported.component, bundle / graph, dtype, exported.references
        )
        parity.setdefault(dtype, figures)
    cut = cuts[graphs.variants[graphs.default_variant]]
    record = make_reuse_record(denoiser, graphs, cut.inputs)
    record = replace(record, parity=parity[graphs.default_variant])
    return replace(exported, record=record, nodes=cut.nodes, rewrites={})


def write_reuse_graph(
    component: ComponentExport, graph: Path, dtype: str, references: tuple[Reference, ...]
) -> tuple[CutGraph, tuple[ParityRecord, ...]]:
    """Cut the shallow part out of one graph, beside it; return it and how close it came.

    Args:
        component: The denoiser.
        graph: One of its graphs, in a bundle.
        dtype: What that computes in.
        references: What the checkpoint computes.

    Raises:
        ExportError: What is cut out is not shallow.
        ExportParityError: It differs from the checkpoint, given the deep features of that.
    """
    target = graph.with_name(name_reuse_graph(graph.name))
    try:
        cut = cut_reuse_graph(graph, target)
    except CalibrationError as err:
        raise ExportError(str(err)) from err
    return cut, compare_reuse(component, target, cut.inputs, dtype, references)


def compare_reuse(
    component: ComponentExport,
    graph: Path,
    inputs: Iterable[str],
    dtype: str,
    references: tuple[Reference, ...],
) -> tuple[ParityRecord, ...]:
    """Return how close a shallow graph comes to the checkpoint, given the deep features of that.

    Args:
        component: The denoiser that it was cut out of.
        graph: The shallow graph.
        inputs: The names of its inputs.
        dtype: What it computes in.
        references: What the checkpoint computes.

    Raises:
        ExportParityError: It is not within the limits of its type.
    """
    model_output = next(iter(component.outputs))
    shallow = replace(
        component,
        name=name_reuse(component.name),
        outputs={model_output: component.outputs[model_output]},
    )
    given = tuple(_give_feature(reference, model_output, inputs) for reference in references)
    figures = measure_parity(shallow, graph, given)
    check_parity(shallow, figures, dtype)
    return figures


def _give_feature(reference: Reference, model_output: str, inputs: Iterable[str]) -> Reference:
    """What the checkpoint computes, as the shallow part does: from its deep features."""
    known = {**reference.inputs, DEEP_FEATURE: reference.outputs[DEEP_FEATURE]}
    return Reference(
        {name: known[name] for name in inputs}, {model_output: reference.outputs[model_output]}
    )
