"""Write the graphs of one component, each compared with the checkpoint before it may stay."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mutoscope.export.cpu_graphs.rewriting import make_cpu_graph
from mutoscope.export.decoder_memory import measure_decoder
from mutoscope.export.decoder_tiles import add_tiles
from mutoscope.export.families.contract import ComponentExport
from mutoscope.export.float16 import (
    check_float16_weights_range,
    convert_to_float16,
    refuse_float16_overflow,
)
from mutoscope.export.graph import make_graph, release_weights, save_graph
from mutoscope.export.mapped_weights import release_pages
from mutoscope.export.parity import Reference, check_parity, make_references, measure_parity
from mutoscope.export.weights import check_float16_weights, store_weights_as_float16
from mutoscope.runtime.manifest import DECODERS, ComponentRecord, ParityRecord

GRAPH_NAME = "model.onnx"
CPU_GRAPH_NAME = "model_cpu.onnx"
# Of a component that has float32 graphs too; else they have the plain name.
FLOAT16_GRAPH_NAME = "model_fp16.onnx"


@dataclass(frozen=True)
class GraphPlan:
    """What graphs a component is to have.

    Attributes:
        dtypes: What they compute in, "float32", "float16" or both; the first is the default.
        weights: How the weights of float32 graphs are stored.
        cpu_rewrites: What is rewritten in their graphs for processors; nothing leaves those out.
    """

    dtypes: tuple[str, ...]
    weights: str
    cpu_rewrites: tuple[str, ...]


@dataclass(frozen=True)
class WrittenGraph:
    """A graph that is within the limits of its type.

    Attributes:
        path: In the bundle.
        nodes: How many it has.
        parity: How close it came to the checkpoint.
    """

    path: str
    nodes: int
    parity: tuple[ParityRecord, ...]


@dataclass(frozen=True)
class ExportedComponent:
    """A component whose graphs are written.

    Attributes:
        nodes: How many its default graph has.
        rewrites: How many places each rewrite for processors changed.
        component: What it was made of, without the weights.
        references: What the checkpoint computes, in float32.
    """

    record: ComponentRecord
    nodes: int
    rewrites: dict[str, int]
    component: ComponentExport
    references: tuple[Reference, ...]


def export_component(
    make_component: Callable[[], ComponentExport], bundle: Path, plan: GraphPlan
) -> ExportedComponent:
    """Write one component into the folder of a bundle, and return what was written.

    Raises:
        ExportError: It cannot be exported, or not to such a type.
        ExportParityError: A graph differs from the checkpoint.
    """
    component = make_component()
    dtypes = ("float32",) if component.float32_only else plan.dtypes
    references = make_checked_references(component, dtypes)
    written: dict[str, WrittenGraph] = {}
    for dtype in dtypes:
        if written:
            # What was written took the weights of the module with it.
            component = make_component()
        path = PurePosixPath(component.name) / _name_graph(dtype, dtypes)
        weights = "float32" if component.float32_only else plan.weights
        written[dtype] = write_graph(component, bundle, path, dtype, weights, references)
    rewrites: dict[str, int] = {}
    cpu_path = PurePosixPath(component.name) / CPU_GRAPH_NAME
    if "float32" in written:
        source = bundle / written["float32"].path
        rewrites = make_cpu_graph(source, bundle / cpu_path, plan.cpu_rewrites)
    if rewrites:
        figures = measure_parity(component, bundle / cpu_path, references)
        check_parity(component, figures, "float32")
    decoder = None
    if component.name in DECODERS:
        path = PurePosixPath(component.name) / GRAPH_NAME
        decoder = add_tiles(measure_decoder(bundle / path), bundle, str(path))
    default = written[dtypes[0]]
    record = ComponentRecord(
        variants={dtype: graph.path for dtype, graph in written.items()},
        default_variant=dtypes[0],
        inputs=component.inputs,
        outputs=component.outputs,
        parity=default.parity,
        decoder=decoder,
        cpu_graphs={"float32": str(cpu_path)} if rewrites else {},
    )
    return ExportedComponent(record, default.nodes, rewrites, component, references)


def make_checked_references(
    component: ComponentExport, dtypes: Sequence[str]
) -> tuple[Reference, ...]:
    """Return what the checkpoint computes in float32, seen to fit into all of these types.

    Raises:
        ExportError: float16 is among them, and a weight or a value is too large for it.
    """
    if "float16" not in dtypes:
        return make_references(component)
    check_float16_weights_range(component)
    with refuse_float16_overflow(component):
        return make_references(component)


def write_graph(
    component: ComponentExport,
    bundle: Path,
    path: PurePosixPath,
    dtype: str,
    weights: str,
    references: tuple[Reference, ...],
) -> WrittenGraph:
    """Write one graph of a component and compare it with the checkpoint.

    The component's module has no weights afterwards.

    Args:
        component: Its module computes in float32.
        bundle: The folder.
        path: Where the graph goes in it; its weights lie beside it.
        dtype: What the graph computes in.
        weights: How the weights of a float32 graph are stored.
        references: What the checkpoint computes.

    Raises:
        ExportError: The graph cannot be made.
        ExportParityError: It differs from the checkpoint.
    """
    smaller_weights = (dtype, weights) == ("float32", "float16")
    if smaller_weights:
        check_float16_weights(component)
    if dtype == "float16":
        convert_to_float16(component.module)
    release_pages(component.module)
    model = make_graph(component, dtype)
    if smaller_weights:
        store_weights_as_float16(model)
    nodes = save_graph(model, bundle / path)
    # A large module and a session do not fit into memory side by side.
    release_pages(component.module)
    release_weights(model, component.module)
    del model
    gc.collect()
    parity = measure_parity(component, bundle / path, references)
    check_parity(component, parity, dtype)
    return WrittenGraph(str(path), nodes, parity)


def _name_graph(dtype: str, dtypes: Sequence[str]) -> str:
    is_second = dtype == "float16" and "float32" in dtypes
    return FLOAT16_GRAPH_NAME if is_second else GRAPH_NAME
