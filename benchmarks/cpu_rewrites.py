"""What each rewrite of the graphs for processors gains: alone, and when it alone is left out.

    python -m benchmarks.cpu_rewrites --bundle BUNDLE

The graphs take turns in one process, on the same random inputs. A rewrite that gains nothing on any
model that it applies to does not belong into mutoscope.export.cpu_graphs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mutoscope.engines.engine import Tensors
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.export.cpu_graphs.rewriting import REWRITES, make_cpu_graph
from mutoscope.runtime.benchmarks.machine import describe_machine, format_machine
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.component_inputs import make_inputs
from mutoscope.runtime.manifest import ComponentRecord
from mutoscope.runtime.row_plan import find_first_denoiser
from mutoscope.runtime.settings import make_settings

PLAIN: Final = "plain"
ALL: Final = "all"
WARM_UPS: Final = 2


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout."""
    parser = argparse.ArgumentParser(description="Time each rewrite for processors.")
    parser.add_argument("--bundle", type=Path, required=True)
    add_size_arguments(parser)
    parser.add_argument("--count", type=int, default=7, help="timed runs of each graph")
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    bundle = Bundle.open(options.bundle)
    component, feeds = open_denoiser(bundle, options)
    graph = bundle.path / component.variants["float32"]
    with tempfile.TemporaryDirectory() as folder:
        for data in graph.parent.glob(f"{graph.name}*"):
            _link(data, Path(folder) / data.name)
        rows = measure(Path(folder) / graph.name, feeds, options.count, options.num_threads)
    record = {"machine": describe_machine(), "bundle": bundle.manifest.name, "rows": rows}
    print(json.dumps(record, indent=1) if options.json else "\n".join(describe(record)))
    return 0


def measure(
    graph: Path, feeds: Tensors, count: int, num_threads: int | None
) -> list[dict[str, Any]]:
    """Return the seconds of each choice of rewrites, run in turn."""
    choices = {PLAIN: [], ALL: list(REWRITES)}
    # What works on the result of another rewrite is measured beside that one.
    choices |= {f"only {name}": [*_needed(name), name] for name in REWRITES}
    choices |= {
        f"without {name}": [other for other in REWRITES if name not in (other, *_needed(other))]
        for name in REWRITES
    }
    engines, changed = {}, {}
    for number, (label, names) in enumerate(choices.items()):
        target = graph.with_name(f"{number}.onnx")
        changed[label] = make_cpu_graph(graph, target, names)
        path = target if changed[label] else graph
        engines[label] = OnnxruntimeEngine(path, num_threads=num_threads)
    seconds: dict[str, list[float]] = {label: [] for label in choices}
    for turn in range(WARM_UPS + count):
        for label, engine in engines.items():
            started = time.perf_counter()
            engine.run(feeds)
            if turn >= WARM_UPS:
                seconds[label].append(time.perf_counter() - started)
        print(f"turn {turn + 1} of {WARM_UPS + count}", file=sys.stderr)
    plain = statistics.median(seconds[PLAIN])
    return [
        {
            "graph": label,
            "changed": changed[label],
            "seconds_median": statistics.median(times),
            "seconds_minimum": min(times),
            "ratio_to_plain": plain / statistics.median(times),
            "count": count,
        }
        for label, times in seconds.items()
    ]


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --num-frames, --height and --width; the bundle's own are the default."""
    for name in ("--num-frames", "--height", "--width"):
        parser.add_argument(name, type=int)


def open_denoiser(bundle: Bundle, options: argparse.Namespace) -> tuple[ComponentRecord, Tensors]:
    """Return the record of a bundle's denoiser, and what it is fed with."""
    settings = make_settings(
        bundle, num_frames=options.num_frames, height=options.height, width=options.width
    )
    name = find_first_denoiser(bundle.manifest)
    return bundle.manifest.components[name], make_inputs(bundle, settings)[name]


def _needed(name: str) -> list[str]:
    return ["fused-attention"] if name == "shared-text" else []


def _link(source: Path, target: Path) -> None:
    """Make a file appear elsewhere; a copy where the file systems differ."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def describe(record: dict[str, Any]) -> Iterator[str]:
    """Yield a table in Markdown."""
    yield format_machine(record["machine"])
    yield ""
    yield f"The denoiser of {record['bundle']}, median of {record['rows'][0]['count']} runs."
    yield ""
    yield "| graph | places changed | run | minimum | times as fast as plain |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for row in record["rows"]:
        yield (
            f"| {row['graph']} | {sum(row['changed'].values())} | {row['seconds_median']:.3f} s | "
            f"{row['seconds_minimum']:.3f} s | {row['ratio_to_plain']:.3f} |"
        )


if __name__ == "__main__":
    raise SystemExit(main())
