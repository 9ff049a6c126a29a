"""How much memory the collection of ranges takes beside plain sampling, and whether it grows.

    python -m benchmarks.calibration_memory --bundle BUNDLE

Each row is a process of its own: sampling with the plain denoiser, then collecting ranges of one
clip, and of several.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.process_memory import run_measured
from mutoscope.runtime.benchmarks.machine import describe_machine, format_machine
from mutoscope.runtime.bundle import Bundle

_MIB: Final = 2**20
_PLAIN: Final = "sampling alone"
_CODE: Final = """
import sys
from pathlib import Path
from mutoscope.calibration.collection import collect
from mutoscope.calibration.observed_graph import make_observed_graph
from mutoscope.calibration.samples import *
bundle, observes, count, steps = Bundle.open(sys.argv[1]), *map(int, sys.argv[2:])
sampling = SamplingOptions(num_inference_steps=steps)
samples = make_samples(bundle, load_default_prompts(bundle), (), count, 0, sampling)
graphs = {}
if observes:
    graphs["unet"] = make_observed_graph(bundle.load_graph("unet", "float32", for_cpu=True))
collect(bundle, graphs, samples, sampling)
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout."""
    parser = argparse.ArgumentParser(description="Measure the memory of a collection.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--num-inference-steps", type=int, default=4)
    parser.add_argument("--num-samples", type=int, default=6, help="in the last row")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    rows = []
    for label, observes, count in (
        (_PLAIN, 0, 1),
        ("ranges of 1 clip", 1, 1),
        (f"ranges of {options.num_samples} clips", 1, options.num_samples),
    ):
        numbers = map(str, (observes, count, options.num_inference_steps))
        memory = run_measured([sys.executable, "-c", _CODE, str(options.bundle), *numbers])
        rows.append(
            {
                "what": label,
                "num_samples": count,
                "peak_rss_bytes": memory.peak_rss_bytes,
                "peak_anonymous_bytes": memory.peak_anonymous_bytes,
                "seconds": memory.seconds,
            }
        )
    name = Bundle.open(options.bundle).manifest.name
    record = {"machine": describe_machine(), "bundle": name, "rows": rows}
    print(json.dumps(record, indent=1) if options.json else "\n".join(describe(record)))
    return 0


def describe(record: dict[str, Any]) -> Iterator[str]:
    """Yield a table in Markdown."""
    yield format_machine(record["machine"])
    yield ""
    yield f"{record['bundle']}, the UNet observed:"
    yield ""
    yield "| | peak memory | anonymous | seconds |"
    yield "| --- | ---: | ---: | ---: |"
    for row in record["rows"]:
        cells = (
            "-" if row[name] is None else f"{row[name] / _MIB:.0f} MiB"
            for name in ("peak_rss_bytes", "peak_anonymous_bytes")
        )
        yield f"| {row['what']} | {' | '.join(cells)} | {row['seconds']:.0f} |"


if __name__ == "__main__":
    raise SystemExit(main())
