"""Record how time and memory grow with the steps, the frames and the resolution of a clip.

    python -m benchmarks.scaling --folder FOLDER

Each point is a `mutoscope generate` in a process of its own, without guidance, so that its peak
memory is that of the point; rounds over all points are repeated, and medians kept. The figures go
to benchmarks/results/ and docs/benchmarks.md, the plot to docs/images/. It takes about a quarter of
an hour; the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.against_peers import RANDOM, SHIPPED, find_model, save_result
from benchmarks.base_schedule import find_base_scheduler
from benchmarks.document import ROOT, write_documents
from benchmarks.process_memory import run_measured
from mutoscope.runtime.benchmarks.machine import describe_machine
from mutoscope.runtime.bundle import Bundle

STEPS: Final = (1, 2, 4, 8, 16, 25)
FRAMES: Final = (4, 8, 12, 16, 24, 32)
SIDES: Final = (1 / 2, 3 / 4, 1, 5 / 4, 3 / 2)
# Of the points where something else varies.
BASE_STEPS: Final = 8
PROMPT: Final = "a red circle moves left on a gray background"
# What is kept of each point, with its label in the plot.
FIGURES: Final = {
    "seconds_denoiser": "denoiser",
    "seconds_total": "whole clip",
    "peak_rss_bytes": "peak memory",
    "peak_anonymous_bytes": "of it anonymous",
}

Point = dict[str, Any]


def list_points(bundle: Bundle) -> list[Point]:
    """Return the sizes to measure, within the bundle's limits, with what varies in each."""
    defaults, limits = bundle.manifest.defaults, bundle.manifest.limits
    base = {
        "num_inference_steps": BASE_STEPS,
        "num_frames": defaults.num_frames,
        "height": defaults.height,
        "width": defaults.width,
    }
    most = limits.num_frames.maximum or max(FRAMES)
    multiples = [round(defaults.height * side / limits.height.multiple) for side in SIDES]
    sides = [count * limits.height.multiple for count in dict.fromkeys(multiples)]
    steps = [n for n in STEPS if str(n) in bundle.manifest.schedules[find_base_scheduler(bundle)]]
    points = [{**base, "varied": "num_inference_steps", "num_inference_steps": n} for n in steps]
    points += [{**base, "varied": "num_frames", "num_frames": n} for n in FRAMES if n <= most]
    points += [{**base, "varied": "height", "height": n, "width": n} for n in sides]
    return points


def measure_point(bundle: Bundle, point: Point, engine: str, output: Path) -> dict[str, Any]:
    """Generate one clip in a process of its own and return its figures."""
    arguments = ["generate", "--bundle", str(bundle.path), "--engine", engine, "--seed", "0"]
    if bundle.manifest.tokenizers:
        arguments.insert(1, PROMPT)
    for name in ("num_inference_steps", "num_frames", "height", "width"):
        arguments += [f"--{name.replace('_', '-')}", str(point[name])]
    arguments += [
        "--scheduler",
        find_base_scheduler(bundle),
        "--guidance-scale",
        "1",
        "-o",
        str(output),
        "--force",
        "--json",
    ]
    code = "from mutoscope.runtime.main import main; main()"
    measured = run_measured([sys.executable, "-c", code, *arguments])
    (video,) = json.loads(measured.stdout)["videos"]
    return {
        "seconds_denoiser": video["seconds_denoiser"],
        "seconds_total": video["seconds_total"],
        "peak_rss_bytes": measured.peak_rss_bytes,
        "peak_anonymous_bytes": measured.peak_anonymous_bytes,
    }


def summarize(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure; what is not measured is None."""
    return {
        name: None if runs[0][name] is None else statistics.median(run[name] for run in runs)
        for name in FIGURES
    }


def fit_line(lengths: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Return the straight line through points, and how far the farthest is from it, relative."""
    slope, start = np.polyfit(lengths, seconds, 1, w=1 / np.asarray(seconds))
    deviations = np.abs((np.asarray(lengths) * slope + start) / seconds - 1)
    return {
        "slope": float(slope),
        "start": float(start),
        "largest_deviation": float(deviations.max()),
    }


def fit_power(lengths: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Return the power of the length that the time grows with."""
    exponent, _ = np.polyfit(np.log(lengths), np.log(seconds), 1)
    return {"exponent": float(exponent)}


def fit_points(points: Sequence[Point]) -> dict[str, dict[str, float]]:
    """Return what the time in the denoiser does as steps, frames and pixels grow."""

    def select(varied: str) -> tuple[list[float], list[float]]:
        found = [point for point in points if point["varied"] == varied]
        area = varied == "height"
        lengths = [p["height"] * p["width"] if area else p[varied] for p in found]
        return lengths, [point["seconds_denoiser"] for point in found]

    return {
        "num_inference_steps": fit_line(*select("num_inference_steps")),
        "num_frames": fit_line(*select("num_frames")),
        "height": fit_power(*select("height")),
    }


def plot_points(points: Sequence[Point], path: Path) -> None:
    """Draw time and memory against each of steps, frames and resolution."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The same figures make the same file.
    matplotlib.rcParams["svg.hashsalt"] = "mutoscope"
    figure, axes = pyplot.subplots(2, 3, figsize=(11, 6), sharey="row", layout="constrained")
    names = list(FIGURES)
    labels = {"num_inference_steps": "steps", "num_frames": "frames", "height": "1000 pixels"}
    for column, (varied, label) in enumerate(labels.items()):
        found = [point for point in points if point["varied"] == varied]
        area = varied == "height"
        lengths = [p["height"] * p["width"] / 1e3 if area else p[varied] for p in found]
        for row, part in enumerate((names[:2], names[2:])):
            for name in part:
                scale = 1 if row == 0 else 2**-30
                values = [point[name] * scale for point in found if point[name] is not None]
                if values:
                    axes[row, column].plot(lengths, values, "o-", label=FIGURES[name])
            axes[row, column].set_xlabel(label)
            axes[row, column].set_xlim(left=0)
            axes[row, column].grid(alpha=0.3)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("GiB")
    for row in range(2):
        axes[row, 0].set_ylim(bottom=0)  # of the whole row
        axes[row, 0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Measure, record and draw; progress goes to stderr."""
    parser = argparse.ArgumentParser(description="Record how time and memory grow.")
    parser.add_argument("--folder", type=Path, required=True, help="where the random models are")
    parser.add_argument("--model", choices=(*RANDOM, SHIPPED), default=RANDOM[0])
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--count", type=int, default=3, help="processes a point (default: 3)")
    options = parser.parse_args(arguments)
    bundle = Bundle.open(find_model(options.model, options.folder)[1])
    points = list_points(bundle)
    runs: list[list[dict[str, Any]]] = [[] for _ in points]
    with tempfile.TemporaryDirectory(prefix="mutoscope-") as folder:
        for round_index in range(options.count):
            for point, found in zip(points, runs, strict=True):
                print(f"round {round_index + 1} of {options.count}: {point}", file=sys.stderr)
                found.append(
                    measure_point(bundle, point, options.engine, Path(folder) / "clip.npy")
                )
    points = [{**point, **summarize(found)} for point, found in zip(points, runs, strict=True)]
    record = {
        "machine": describe_machine(),
        "bundle": bundle.manifest.name,
        "engine": options.engine,
        "count": options.count,
        "points": points,
        "fits": fit_points(points),
    }
    save_result("scaling", options.model, record)
    plot_points(points, ROOT / "docs" / "images" / f"scaling-{options.model}.svg")
    write_documents()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
