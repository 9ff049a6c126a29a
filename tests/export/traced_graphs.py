"""Graphs that were traced before, for exports of the same weights.

To trace a component takes most of the time of its export. What is measured of the graph against the
checkpoint, rewritten and written is that of any export.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir
import pytest

from mutoscope.export import component_export
from mutoscope.export.families.contract import ComponentExport
from mutoscope.export.graph import make_graph


@contextmanager
def traces_from(bundle: Path, names: Collection[str]) -> Iterator[None]:
    """Let exports take the float32 graphs of some components from a bundle of their weights."""

    def trace(component: ComponentExport, dtype: str) -> onnx_ir.Model:
        if component.name not in names:
            return make_graph(component, dtype)
        assert dtype == "float32"
        return onnx_ir.load(bundle / component.name / "model.onnx")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(component_export, "make_graph", trace)
        yield
