"""Compare ways to calibrate a denoiser, by the clips that come out.

    python -m benchmarks.int8_methods --bundle BUNDLE

All ways see the same samples of the float model, in one collection: every method on all steps; the
first, a middle or the last step alone; outliers moved into weights; two sets of ranges, one for the
noisy half of the steps and one for the other, each with its graph. Each makes the same clips as the
float model, with other prompts and seeds than were sampled. All layers that can be are in int8.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx_ir

from mutoscope.calibration.fixed_layers import find_fixed_layers
from mutoscope.calibration.layers import Layer, find_layers
from mutoscope.calibration.observed_engine import ObservedEngine
from mutoscope.calibration.observed_graph import ObservedGraph, make_observed_graph
from mutoscope.calibration.observers import ComponentStatistics
from mutoscope.calibration.quantized_graphs import (
    LayerQuantization,
    make_int8_graph_for_processors,
    make_int8_graph_for_tensorrt,
    save_graph,
)
from mutoscope.calibration.ranges import METHODS, find_ranges
from mutoscope.calibration.samples import (
    FLOAT,
    CalibrationSample,
    SamplingOptions,
    generate_sample,
    load_default_prompts,
    load_tokenizers,
    make_samples,
    open_float_pipeline,
    read_prompts,
)
from mutoscope.calibration.smoothing import find_smoothing
from mutoscope.calibration.trajectory import TrajectoryJudge
from mutoscope.engines.engine import Array, Engine, Tensors
from mutoscope.engines.forwarding_engine import ForwardingEngine
from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.benchmarks.machine import describe_machine, format_machine
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.manifest import TIMESTEP
from mutoscope.runtime.row_plan import find_first_denoiser

BEST_METHOD: Final = "minmax"
BASE_SCHEDULER: Final = "ddim"
"""Of the base model, whose clips of any number of steps can be compared."""
Quantizations = Mapping[str, LayerQuantization]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout."""
    parser = argparse.ArgumentParser(description="Compare ways to calibrate.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, help="one on each line; default: the bundle's")
    parser.add_argument("--num-samples", type=int, default=8)
    parser.add_argument("--num-clips", type=int, default=16, help="clips to judge by")
    parser.add_argument("--num-inference-steps", default="25,4", help="2 or more, with commas")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    bundle = Bundle.open(options.bundle)
    prompts = (
        read_prompts(options.prompts, load_tokenizers(bundle))
        if options.prompts
        else load_default_prompts(bundle)
    )
    rows = []
    for count in map(int, options.num_inference_steps.split(",")):
        sampling = SamplingOptions(count, BASE_SCHEDULER)
        samples = make_samples(bundle, prompts, (), options.num_samples, 0, sampling)
        judged = make_samples(bundle, prompts, (), options.num_clips, 1, sampling)
        rows += compare(bundle, samples, judged, sampling)
    record = {
        "machine": describe_machine(),
        "bundle": bundle.manifest.name,
        "num_samples": options.num_samples,
        "num_clips": options.num_clips,
        "rows": rows,
    }
    print(json.dumps(record, indent=1) if options.json else "\n".join(describe(record)))
    return 0


@dataclass(frozen=True)
class Denoiser:
    """The denoiser of a bundle, and which of its layers can be int8."""

    name: str
    processors: Path
    plain: Path
    layers: list[Layer]
    timestep: str

    @classmethod
    def open(cls, bundle: Bundle) -> Denoiser:
        """Return that of a bundle."""
        name = find_first_denoiser(bundle.manifest)
        component = bundle.find_component(name)
        processors = bundle.load_graph(name, FLOAT, for_cpu=True)
        model = onnx_ir.load(processors)
        layers = find_layers(model)
        fixed = find_fixed_layers(model, layers)
        timestep = next(n for n, i in component.inputs.items() if i.source == TIMESTEP)
        possible = [layer for layer in layers if layer.name not in fixed]
        return cls(name, processors, bundle.load_graph(name, FLOAT), possible, timestep)

    def quantize(
        self, statistics: ComponentStatistics, method: str, *, smoothed: bool = False
    ) -> dict[str, LayerQuantization]:
        """How its layers become int8."""
        ranges = find_ranges(method, statistics.values).tolist()
        inputs = {n: r for p, r in zip(statistics.points, ranges, strict=True) for n in p.inputs_of}
        outs = {n: r for p, r in zip(statistics.points, ranges, strict=True) for n in p.outputs_of}
        factors = {}
        if smoothed:
            factors = find_smoothing(self.layers, statistics.input_channel_maximum)
        found = {}
        for layer in self.layers:
            name = layer.name
            limits = tuple(inputs[name])
            if name in factors:
                limits = statistics.find_scaled_range(name, 1.0 / factors[name])
            output = tuple(outs[name]) if layer.kind == "convolution" else None
            found[name] = LayerQuantization(limits, output, factors.get(name))
        return found


class _PartialStatistics(ComponentStatistics):
    """Statistics that pass on what they see to others, of those steps that these want."""

    def __init__(self, graph: ObservedGraph, parts: Mapping[str, Callable[[float], bool]]) -> None:
        super().__init__(graph.points)
        self.parts = {label: ComponentStatistics(graph.points) for label in parts}
        self._wants = parts

    def update(self, step: float, outputs: Mapping[str, Any]) -> None:
        super().update(step, outputs)
        for label, wants in self._wants.items():
            if wants(step):
                self.parts[label].update(step, outputs)


class _StepSwitch(ForwardingEngine):
    """Two engines, one for the steps from a timestep up and one for those below."""

    def __init__(self, noisy: Engine, clean: Engine, timestep: str, boundary: float) -> None:
        super().__init__(noisy)
        self._noisy, self._clean = noisy, clean
        self._timestep, self._boundary = timestep, boundary

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> Tensors:
        is_noisy = float(feeds[self._timestep].reshape(-1)[0]) >= self._boundary
        return (self._noisy if is_noisy else self._clean).run(feeds, outputs, wanted)


def compare(
    bundle: Bundle,
    samples: tuple[CalibrationSample, ...],
    judged: tuple[CalibrationSample, ...],
    options: SamplingOptions,
) -> list[dict[str, Any]]:
    """Return a row for each way to calibrate."""
    denoiser = Denoiser.open(bundle)
    settings = options.resolve(bundle, samples[0])
    table = bundle.load_schedule(settings.scheduler, settings.num_inference_steps)
    steps = [float(row.timestep) for row in table.rows]
    middle = steps[len(steps) // 2]
    parts: dict[str, Callable[[float], bool]] = {
        "the first step alone": lambda step: step == steps[0],
        "a middle step alone": lambda step: step == middle,
        "the last step alone": lambda step: step == steps[-1],
        "noisy": lambda step: step > middle,
        "clean": lambda step: step <= middle,
    }
    statistics = collect(bundle, denoiser, samples, options, parts)
    ways: dict[str, Quantizations] = {
        f"{method}, all steps": denoiser.quantize(statistics, method) for method in METHODS
    }
    for label in list(parts)[:3]:
        for method in (BEST_METHOD, "mse"):
            ways[f"{method}, {label}"] = denoiser.quantize(statistics.parts[label], method)
    for method in (BEST_METHOD, "mse"):
        ways[f"{method}, all steps, outliers moved into weights"] = denoiser.quantize(
            statistics, method, smoothed=True
        )
    rows = []
    with TrajectoryJudge(bundle, judged, options) as judge, ExitStack() as stack:
        judge.make_reference()

        def add(label: str, make_engine: Callable[[], Engine]) -> None:
            engine = make_engine()
            result = judge.measure({denoiser.name: engine})
            one_pass = float(judge.measure_one_pass(engine).mean())
            engine.close()
            rows.append(
                {
                    "way": label,
                    "num_inference_steps": settings.num_inference_steps,
                    "median_psnr_db": result.median_psnr_db,
                    "minimum_psnr_db": result.minimum_psnr_db,
                    "latents_error": result.median_latents_error,
                    "one_pass_error": one_pass,
                }
            )
            print(f"{label}: {result.median_psnr_db:.1f} dB", file=sys.stderr)

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for label, layers in ways.items():
            add(label, functools.partial(open_int8, denoiser, layers, folder))
        halves = [denoiser.quantize(statistics.parts[p], BEST_METHOD) for p in ("noisy", "clean")]
        add(
            f"{BEST_METHOD}, ranges for each half of the steps",
            lambda: _StepSwitch(
                open_int8(denoiser, halves[0], folder / "noisy"),
                open_int8(denoiser, halves[1], folder / "clean"),
                denoiser.timestep,
                middle + 1e-3,
            ),
        )
        add(
            f"{BEST_METHOD}, all steps, the graph for TensorRT on the CPU",
            lambda: open_int8(
                denoiser, ways[f"{BEST_METHOD}, all steps"], folder, for_tensorrt=True
            ),
        )
    return rows


def collect(
    bundle: Bundle,
    denoiser: Denoiser,
    samples: tuple[CalibrationSample, ...],
    options: SamplingOptions,
    parts: Mapping[str, Callable[[float], bool]],
) -> _PartialStatistics:
    """Sample the float model once, for all ways."""
    graph = make_observed_graph(denoiser.processors)
    statistics = _PartialStatistics(graph, parts)
    with open_float_pipeline(bundle) as pipeline:
        component = bundle.find_component(denoiser.name)
        pipeline.replace_engine(denoiser.name, ObservedEngine(graph, statistics, component))
        for index, sample in enumerate(samples):
            generate_sample(pipeline, sample, options)
            print(f"sample {index + 1} of {len(samples)}", file=sys.stderr)
    return statistics


def open_int8(
    denoiser: Denoiser, layers: Quantizations, folder: Path, *, for_tensorrt: bool = False
) -> Engine:
    """An engine of the denoiser in int8."""
    folder.mkdir(exist_ok=True)
    if for_tensorrt:
        model = make_int8_graph_for_tensorrt(denoiser.plain, layers)
    else:
        model = make_int8_graph_for_processors(denoiser.processors, layers)
    save_graph(model, folder / "model.onnx")
    return open_engine(folder / "model.onnx", EngineOptions())


def describe(record: dict[str, Any]) -> Iterator[str]:
    """Yield tables in Markdown, one for each number of steps."""
    yield format_machine(record["machine"])
    yield ""
    yield (
        f"{record['bundle']}: ranges of {record['num_samples']} clips, judged by "
        f"{record['num_clips']} others. Errors are relative (L2): of the clean latents (median), "
        "and of one pass of the denoiser (mean)."
    )
    for count in dict.fromkeys(row["num_inference_steps"] for row in record["rows"]):
        yield ""
        yield f"| {count} steps | PSNR, median | PSNR, worst | latents | one pass |"
        yield "| --- | ---: | ---: | ---: | ---: |"
        for row in record["rows"]:
            if row["num_inference_steps"] == count:
                yield (
                    f"| {row['way']} | {row['median_psnr_db']:.1f} dB | "
                    f"{row['minimum_psnr_db']:.1f} dB | {row['latents_error']:.4f} | "
                    f"{row['one_pass_error']:.4f} |"
                )


if __name__ == "__main__":
    raise SystemExit(main())
