"""Build the graphs of a bundle for onnxruntime on this machine."""

from __future__ import annotations

from pathlib import Path

from mutoscope.engines.engine import Array
from mutoscope.engines.onnxruntime_build import build_graph, make_build_key
from mutoscope.engines.options import DEFAULT_ENGINE
from mutoscope.runtime.built_engines import (
    BuildRecord,
    BuiltEngine,
    load_record,
    write_built,
)
from mutoscope.runtime.bundle import Bundle


def build_for_onnxruntime(
    bundle: Bundle, name: str, feeds: dict[str, Array], variant: str | None = None
) -> BuiltEngine:
    """Build a component for the CPU of this machine, again if need be, and return it.

    Args:
        bundle: The bundle.
        name: A key of its components.
        feeds: Inputs that the graph and what is built of it are compared with.
        variant: The variant to build, if the component has it; its default variant if not.

    Raises:
        BundleError: A file of the component is damaged.
        EngineError: The graph cannot be built, or what was built gives other results.
        OutputError: There is no space or permission.
        ParameterError: The bundle has no such component.
    """
    component = bundle.find_component(name)
    variant = component.choose_variant(variant)
    graph = component.find_cpu_graph(variant)
    source = bundle.load_graph(name, variant, for_cpu=True)

    def make(folder: Path) -> BuildRecord:
        report = build_graph(source, folder, feeds)
        return BuildRecord(DEFAULT_ENGINE, name, graph, {}, load=report)

    folder = write_built(bundle, name, graph, make_build_key(), make)
    return BuiltEngine(folder, name, variant, load_record(folder))
