"""Run a component as always, and collect what its layers see on the way."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir
import onnxruntime

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.graph_session import open_graph
from mutoscope.calibration.observed_graph import OFFSET, STATISTICS, ObservedGraph
from mutoscope.calibration.observers import ComponentStatistics
from mutoscope.engines.engine import Array, Tensors, TensorSpec, check_feeds
from mutoscope.engines.errors import EngineError
from mutoscope.engines.output_arrays import check_outputs, choose_outputs
from mutoscope.runtime.manifest import TIMESTEP, ComponentRecord

# Multiples of it, modulo 1, lie as evenly between 0 and 1 as any sequence can.
_GOLDEN_RATIO: Final = (5**0.5 - 1) / 2


class ObservedEngine:
    """An observed graph, as an engine of the component. See `mutoscope.engines.engine.Engine`."""

    def __init__(
        self,
        graph: ObservedGraph,
        statistics: ComponentStatistics,
        component: ComponentRecord,
        num_threads: int | None = None,
    ) -> None:
        """Load the graph.

        Args:
            graph: What `make_observed_graph` returned.
            statistics: Where each run is added; those of the same points.
            component: What the manifest says of the component.
            num_threads: Threads for one operator; None takes one for each core.

        Raises:
            CalibrationError: The statistics are of another graph, or onnxruntime does not load it.
        """
        if statistics.points != graph.points:
            raise CalibrationError(
                "what was collected is of another graph: remove it, and calibrate again"
            )
        self._name = f"the observed {graph.model.graph.name}"
        self._statistics = statistics
        sources = {record.source: name for name, record in component.inputs.items()}
        self._timestep = sources.get(TIMESTEP)
        self._session: Any = open_graph(graph.model, graph.data_folder, num_threads)
        self._inputs = _make_specs(graph.model.graph.inputs, without=(OFFSET,))
        self._outputs = _make_specs(graph.model.graph.outputs, without=STATISTICS)

    @property
    def device(self) -> str:
        """Observed graphs run on the processor."""
        return "cpu"

    @property
    def properties(self) -> Mapping[str, str]:
        """The engine, its version, its device."""
        return {
            "engine": "onnxruntime",
            "version": str(onnxruntime.__version__),
            "device": self.device,
            "precision": "as the graph",
        }

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs of the component by name."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """The outputs of the component by name, without the statistics."""
        return self._outputs

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """Nothing: it does not say."""
        return {}

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Nothing: a session takes all shapes alike."""

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> Tensors:
        """Return the wanted outputs; what the component's layers saw goes to the statistics.

        Raises:
            CalibrationError: A layer saw NaN or infinite values.
            EngineError: As `Engine.run`.
        """
        if self._session is None:
            raise EngineError(f"{self._name} is closed: open it again")
        check_feeds(self._name, self._inputs, feeds)
        check_outputs(self._name, self._outputs, feeds, outputs or {})
        wanted_names = choose_outputs(self._name, self._outputs, outputs or {}, wanted)
        offset = np.array([self._statistics.num_runs * _GOLDEN_RATIO % 1.0])
        names = [*wanted_names, *STATISTICS]
        try:
            arrays = self._session.run(names, {**feeds, OFFSET: offset})
        except Exception as err:  # onnxruntime's errors share no base but Exception
            line = (str(err).strip().splitlines() or [type(err).__name__])[0]
            raise EngineError(f"{self._name} failed: {line}") from err
        results = dict(zip(names, arrays, strict=True))
        step = 0.0 if self._timestep is None else float(np.ravel(feeds[self._timestep])[0])
        self._statistics.update(step, {name: results.pop(name) for name in STATISTICS})
        for name, array in (outputs or {}).items():
            np.copyto(array, results[name])
            results[name] = array
        return results

    def close(self) -> None:
        """Free the session and its memory."""
        self._session = None


def _make_specs(
    values: Iterable[onnx_ir.Value], *, without: Sequence[str]
) -> dict[str, TensorSpec]:
    """The inputs or outputs of a graph by name, less those that are of the statistics."""
    specs = {}
    for value in values:
        name = str(value.name)
        if name in without:
            continue
        assert value.dtype is not None
        assert value.shape is not None
        # An axis without a length and without a name is None.
        lengths = (n if isinstance(n, int) else n.value for n in value.shape)
        shape = tuple(f"{name}_{i}" if n is None else n for i, n in enumerate(lengths))
        specs[name] = TensorSpec(name, value.dtype.numpy().name, shape)
    return specs
