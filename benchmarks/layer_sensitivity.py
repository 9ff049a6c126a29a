"""What int8 in one group of layers alone does: to a pass of the denoiser, and to the final video.

    python -m benchmarks.layer_sensitivity --bundle BUNDLE

The groups are those of `mutoscope calibrate`: layers that take one value. It says whether the error
of a pass, by which calibrate orders the groups, ranks them as the frames of a clip do.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.int8_methods import BASE_SCHEDULER, BEST_METHOD, Denoiser, collect, open_int8
from mutoscope.calibration.layer_timing import group_layers
from mutoscope.calibration.samples import SamplingOptions, load_default_prompts, make_samples
from mutoscope.calibration.trajectory import TrajectoryJudge
from mutoscope.runtime.benchmarks.machine import describe_machine, format_machine
from mutoscope.runtime.bundle import Bundle

_SHOWN: Final = 12


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout."""
    parser = argparse.ArgumentParser(description="Measure the effect of each group of layers.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--num-samples", type=int, default=4)
    parser.add_argument("--num-clips", type=int, default=1, help="clips to judge by")
    parser.add_argument("--num-inference-steps", type=int, default=25)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    bundle = Bundle.open(options.bundle)
    prompts = load_default_prompts(bundle)
    sampling = SamplingOptions(options.num_inference_steps, BASE_SCHEDULER)
    denoiser = Denoiser.open(bundle)
    samples = make_samples(bundle, prompts, (), options.num_samples, 0, sampling)
    statistics = collect(bundle, denoiser, samples, sampling, {})
    layers = denoiser.quantize(statistics, BEST_METHOD)
    groups = [[layer.name for layer in group] for group in group_layers(denoiser.layers)]
    rows = []
    judged = make_samples(bundle, prompts, (), options.num_clips, 1, sampling)
    with (
        TrajectoryJudge(bundle, judged, sampling, num_passes=2) as judge,
        tempfile.TemporaryDirectory() as folder,
    ):
        judge.make_reference()
        for index, names in enumerate(groups):
            engine = open_int8(denoiser, {name: layers[name] for name in names}, Path(folder))
            result = judge.measure({denoiser.name: engine})
            error = float(judge.measure_one_pass(engine).mean())
            engine.close()
            psnr = result.median_psnr_db
            rows.append({"layers": names, "one_pass_error": error, "psnr_db": psnr})
            print(f"{index + 1} of {len(groups)}: {names[0]} {psnr:.1f} dB", file=sys.stderr)
    record = {"machine": describe_machine(), "bundle": bundle.manifest.name, "rows": rows}
    record |= {"num_clips": options.num_clips, "num_inference_steps": options.num_inference_steps}
    print(json.dumps(record, indent=1) if options.json else "\n".join(describe(record)))
    return 0


def correlate_ranks(first: list[float], second: list[float]) -> float:
    """Return Spearman's rank correlation of two lists without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def describe(record: dict[str, Any]) -> Iterator[str]:
    """Yield a table in Markdown of the groups that matter most."""
    rows = sorted(record["rows"], key=lambda row: row["psnr_db"])
    ranked = correlate_ranks(
        [row["one_pass_error"] for row in rows], [-row["psnr_db"] for row in rows]
    )
    yield format_machine(record["machine"])
    yield ""
    yield (
        f"{record['bundle']}, {len(rows)} groups, clips of {record['num_inference_steps']} steps "
        f"judged: {record['num_clips']}. Rank correlation of the two figures: {ranked:.2f}."
    )
    yield ""
    yield "| the group alone in int8 | layers | one pass | PSNR of the clip |"
    yield "| --- | ---: | ---: | ---: |"
    for row in rows[:_SHOWN]:
        yield (
            f"| `{row['layers'][0]}` | {len(row['layers'])} | {row['one_pass_error']:.4f} | "
            f"{row['psnr_db']:.1f} dB |"
        )
    median = float(np.median([row["psnr_db"] for row in rows]))
    yield f"| median of all | | | {median:.1f} dB |"


if __name__ == "__main__":
    raise SystemExit(main())
