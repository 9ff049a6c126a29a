"""Find how a component becomes int8: by which ranges, and which of its layers stay in float."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx_ir

from mutoscope.calibration.choice import (
    DYNAMIC,
    RESTORED,
    SLOWER,
    SLOWER_TOGETHER,
    Candidate,
    Choice,
    make_candidate,
)
from mutoscope.calibration.fixed_layers import find_fixed_layers
from mutoscope.calibration.layer_timing import GroupTiming, measure_groups, race
from mutoscope.calibration.layers import Layer, find_layers
from mutoscope.calibration.observers import ComponentStatistics
from mutoscope.calibration.quantized_graphs import (
    LayerQuantization,
    make_int8_graph_for_processors,
    make_int8_graph_for_tensorrt,
    save_graph,
)
from mutoscope.calibration.sensitivity import (
    find_fewest,
    measure_sensitivity,
    order_for_float,
)
from mutoscope.calibration.smoothing import find_smoothing
from mutoscope.calibration.table import CalibrationTable
from mutoscope.calibration.trajectory import TrajectoryJudge
from mutoscope.engines.engine import Engine, Tensors
from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle_writer import explain_write_errors

# What is being done, how much of it is done, of how much.
OnProgress = Callable[[str, int, int], None]
Quantizations = Mapping[str, LayerQuantization]


@dataclass(frozen=True)
class Graphs:
    """The float graphs of a component that int8 is made of.

    Attributes:
        processors: Float32, what processors run.
        plain: Float16 if the bundle has it, what TensorRT reads.
        feeds: Inputs of a pass over a clip of the bundle's size.
    """

    processors: Path
    plain: Path
    feeds: Tensors


class CandidateSearch:
    """Tries ways to make one component int8, judged by whole trajectories."""

    def __init__(
        self,
        component: str,
        graphs: Graphs,
        judge: TrajectoryJudge,
        options: EngineOptions,
        *,
        table: CalibrationTable | None,
        statistics: ComponentStatistics | None,
        on_progress: OnProgress,
    ) -> None:
        """Prepare; nothing is run yet.

        Args:
            component: Its name in the manifest.
            graphs: Its float graphs.
            judge: With its reference made.
            options: The engine by which times are judged.
            table: The ranges of its layers; None finds ranges at run time, of linear layers only.
            statistics: What the table was made of; None if there is no table.
            on_progress: Called as the search goes on.

        Raises:
            CalibrationError: A layer is not in the table.
        """
        self._component, self._graphs, self._judge = component, graphs, judge
        self._options, self._table, self._statistics = options, table, statistics
        self._on_progress = on_progress
        self._errors: list[float] | None = None
        model = onnx_ir.load(graphs.processors)
        self._layers = {layer.name: layer for layer in find_layers(model)}
        if table is None:
            others = [n for n, layer in self._layers.items() if layer.kind != "linear"]
            self._fixed = dict.fromkeys(others, "no linear layer")
        else:
            self._fixed = find_fixed_layers(model, list(self._layers.values()))
            table.check_covers(self._possible)

    @property
    def _possible(self) -> list[str]:
        return [name for name in self._layers if name not in self._fixed]

    @cached_property
    def timings(self) -> list[GroupTiming]:
        """How long each group of layers takes, in float and in int8."""
        self._on_progress(f"{self._component}: timing layers", 0, 1)
        names = set(self._possible)
        found = measure_groups(
            self._graphs.processors, names, self._graphs.feeds, self._options,
            is_dynamic=self._table is None,
        )  # fmt: skip
        self._on_progress(f"{self._component}: timing layers", 1, 1)
        return found

    def quantize(
        self, method: str, names: Collection[str], *, smoothed: bool = False
    ) -> dict[str, LayerQuantization]:
        """Return how layers become int8; raises `CalibrationError` for one without a range."""
        if self._table is None or self._statistics is None:
            return {name: LayerQuantization(None) for name in names}
        ranges = self._table.find_ranges(method)
        found = {name: LayerQuantization(*ranges[name]) for name in names}
        if smoothed:
            layers: list[Layer] = [self._layers[name] for name in names]
            statistics = self._statistics
            factors = find_smoothing(layers, statistics.input_channel_maximum)
            for name, factor in factors.items():
                limits = statistics.find_scaled_range(name, 1.0 / factor)
                found[name] = replace(found[name], input=limits, smoothing=factor)
        return found

    def search(
        self,
        methods: tuple[str, ...],
        *,
        tries_smoothing: bool,
        measures_layers: bool,
        min_psnr_db: float,
    ) -> Choice:
        """Return the best way that is fast and good enough; see `Preset` for the arguments."""
        slower = {n for g in self.timings if g.seconds_saved <= 0 for n in g.layers}
        names = [name for name in self._possible if name not in slower]
        reasons = {**self._fixed, **dict.fromkeys(sorted(slower), SLOWER)}
        if not names:
            reason = "none of its layers can be int8"
            if slower:
                reason = f"no layer is faster in int8 with {self._options.engine}"
            return self._keep(reasons, reason)
        tried = [
            self._try(method, self.quantize(method, names))
            for method in (methods if self._table is not None else (DYNAMIC,))
        ]
        best = max(tried, key=lambda candidate: candidate.mean_psnr_db)
        if tries_smoothing and self._table is not None:
            layers = self.quantize(best.method, names, smoothed=True)
            tried.append(self._try(best.method, layers, smoothed=True))
            best = max(tried, key=lambda candidate: candidate.mean_psnr_db)
        if measures_layers:
            self._measure_errors(self._quantize_as(best)(self._possible))
        return self._fit(tried, best, names, reasons, min_psnr_db)

    def _fit(
        self,
        tried: list[Candidate],
        best: Candidate,
        names: list[str],
        reasons: dict[str, str],
        min_psnr_db: float,
    ) -> Choice:
        """Put layers back to float until the clips are good enough; judge both graphs."""
        quantize = self._quantize_as(best)
        chosen, kept = self._restore(best, names, quantize, min_psnr_db, for_tensorrt=False)
        restored = sorted(set(names) - set(kept))
        reasons = {**reasons, **dict.fromkeys(restored, RESTORED)}
        if not kept:
            reason = f"its clips are below {min_psnr_db:g} dB with any layer in int8"
            return self._keep(reasons, reason, tuple(tried), best)
        with self._open(quantize(kept)) as int8, self._open({}) as plain:
            seconds_float, seconds_int8 = race([plain, int8], self._graphs.feeds)
        if seconds_int8 >= seconds_float:
            reason = f"int8 takes {seconds_int8:.3g} s for a pass, float {seconds_float:.3g} s"
            reasons = {**reasons, **dict.fromkeys(kept, SLOWER_TOGETHER)}
            return self._keep(reasons, reason, tuple(tried), best)
        possible = [name for name in self._possible if name not in set(restored)]
        first = self._try(best.method, quantize(possible), best.smoothed, for_tensorrt=True)
        tensorrt, on_gpu = self._restore(first, possible, quantize, min_psnr_db, for_tensorrt=True)
        return Choice(
            tuple(tried), chosen, tensorrt, tuple(kept), tuple(on_gpu), reasons, self._groups,
            seconds_float, seconds_int8,
        )  # fmt: skip

    def _restore(
        self,
        start: Candidate,
        names: list[str],
        quantize: Callable[[Collection[str]], dict[str, LayerQuantization]],
        min_psnr_db: float,
        *,
        for_tensorrt: bool,
    ) -> tuple[Candidate, list[str]]:
        """The candidate that is good enough with the fewest groups put back, and its layers."""
        if start.median_psnr_db >= min_psnr_db:
            return start, names
        errors = self._measure_errors(quantize(self._possible))
        ranked = order_for_float(self.timings, errors)
        order = [group for group in ranked if set(group.layers) & set(names)]
        results: dict[int, Candidate] = {0: start}

        def left(count: int) -> list[str]:
            gone = {name for group in order[:count] for name in group.layers}
            return [name for name in names if name not in gone]

        def suffices(count: int) -> bool:
            if count not in results:
                layers = quantize(left(count))
                results[count] = self._try(
                    start.method, layers, start.smoothed, for_tensorrt=for_tensorrt
                )
            return results[count].median_psnr_db >= min_psnr_db

        count = find_fewest(len(order) - 1, suffices)
        return (start, []) if count is None else (results[count], left(count))

    def _quantize_as(
        self, candidate: Candidate
    ) -> Callable[[Collection[str]], dict[str, LayerQuantization]]:
        """What tells how layers become int8 as a candidate has it."""
        return functools.partial(self.quantize, candidate.method, smoothed=candidate.smoothed)

    @property
    def _groups(self) -> tuple[GroupTiming, ...]:
        if self._errors is None:
            return tuple(self.timings)
        pairs = zip(self.timings, self._errors, strict=True)
        return tuple(replace(group, error=error) for group, error in pairs)

    def _measure_errors(self, layers: Quantizations) -> list[float]:
        """The errors of a pass with each group alone in int8; measured once."""
        if self._errors is not None:
            return self._errors
        label = f"{self._component}: sensitivity of layers"
        feeds = self._graphs.feeds
        if self._component == self._judge.denoiser:
            feeds = self._judge.passes[len(self._judge.passes) // 2].inputs
        self._errors = measure_sensitivity(
            self._graphs.processors, self.timings, layers, [feeds],
            lambda done, total: self._on_progress(label, done, total), self._options.num_threads,
        )  # fmt: skip
        return self._errors

    def _try(
        self,
        method: str,
        layers: Quantizations,
        smoothed: bool = False,
        *,
        for_tensorrt: bool = False,
    ) -> Candidate:
        """Make the judged clips with these layers in int8."""
        form = "for TensorRT, on the CPU" if for_tensorrt else method
        label = f"{self._component}: {form}{', smoothed' if smoothed else ''}"
        options = EngineOptions(num_threads=self._options.num_threads)
        with self._open(layers, for_tensorrt=for_tensorrt, options=options) as engine:
            result = self._judge.measure(
                {self._component: engine},
                on_progress=lambda at: self._on_progress(label, at.done, at.total),
            )
        return make_candidate(method, smoothed, result)

    def open_chosen(self, choice: Choice) -> AbstractContextManager[Engine]:
        """Return an engine of the int8 graph for processors that was chosen, for a `with`."""
        chosen, layers = choice.chosen, choice.processors_layers
        how = self.quantize(chosen.method, layers, smoothed=chosen.smoothed)
        return self._open(how, options=EngineOptions(num_threads=self._options.num_threads))

    @contextmanager
    def _open(
        self,
        layers: Quantizations,
        *,
        for_tensorrt: bool = False,
        options: EngineOptions | None = None,
    ) -> Iterator[Engine]:
        """An engine of the component with these layers in int8, for a while."""
        with tempfile.TemporaryDirectory(prefix="mutoscope-") as folder:
            path = Path(folder) / self._component / "model.onnx"
            path.parent.mkdir()
            with explain_write_errors(path):
                self.write(path, layers, for_tensorrt=for_tensorrt)
            engine = open_engine(path, options or self._options)
            try:
                yield engine
            finally:
                engine.close()

    def write(self, path: Path, layers: Quantizations, *, for_tensorrt: bool) -> int:
        """Write the component with these layers in int8; return the bytes of its files."""
        if for_tensorrt:
            return save_graph(make_int8_graph_for_tensorrt(self._graphs.plain, layers), path)
        return save_graph(make_int8_graph_for_processors(self._graphs.processors, layers), path)

    def _keep(
        self,
        reasons: dict[str, str],
        reason: str,
        tried: tuple[Candidate, ...] = (),
        best: Candidate | None = None,
    ) -> Choice:
        """The choice to leave the component as it is."""
        nothing = best or Candidate("none", False, 0.0, 0.0, 0.0, 0.0)
        return Choice(
            tried, nothing, None, (), (), reasons, self._groups, 0.0, 0.0, kept_in_float=reason
        )
