"""What loading a component costs: its graph as exported, and as mutoscope build makes it.

    python -m benchmarks.session_start --bundle BUNDLE

Each row is the best of several processes, which take turns: the time to load, the memory that
loading and two runs add at most, and the CPU time of the second run. "anonymous" is what the system
cannot drop; the rest are pages of the weights' file. "one file" is the exported graph with its
weights inside, as exporters write it up to 2 GB. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mutoscope.engines.onnxruntime_build import GRAPH_NAME, build_graph
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.engines.onnxruntime_providers import list_execution_providers
from mutoscope.engines.options import MEMORY_MODES, Memory
from mutoscope.runtime.benchmarks.machine import describe_machine, format_machine
from mutoscope.runtime.benchmarks.memory import PeakMemory, read_status, watch_memory
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.component_inputs import make_inputs
from mutoscope.runtime.settings import make_settings

MIB = 2**20
ONE_FILE, EXPORTED, BUILT = "one file", "exported", "built"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout."""
    parser = argparse.ArgumentParser(description="Time and memory of loading a component.")
    parser.add_argument("--bundle", type=Path, help="default: the bundle that ships with mutoscope")
    parser.add_argument("--component", default="unet", help="default: unet")
    parser.add_argument("--count", type=int, default=5, help="processes for each row, default: 5")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job:
        print(json.dumps(run_job(**json.loads(options.job))))
        return 0
    bundle = Bundle.open(options.bundle) if options.bundle else Bundle.default()
    with tempfile.TemporaryDirectory(prefix="mutoscope-") as folder:
        rows = measure(bundle, options.component, Path(folder), options.count)
    results = {"machine": describe_machine(), "bundle": bundle.manifest.name, "rows": rows}
    print(json.dumps(results) if options.json else "\n".join(describe(results)))
    return 0


def measure(bundle: Bundle, component: str, folder: Path, count: int) -> list[dict[str, Any]]:
    """Return a row for each graph and memory mode."""
    feeds: dict[str, Any] = make_inputs(bundle, make_settings(bundle, seed=0))[component]
    np.savez(folder / "feeds.npz", **feeds)
    graph = bundle.load_graph(component, for_cpu=True)
    (folder / BUILT).mkdir()
    build_graph(graph, folder / BUILT, feeds)
    onnx.save(onnx.load(graph), folder / "one.onnx")
    graphs = {ONE_FILE: folder / "one.onnx", EXPORTED: graph, BUILT: folder / BUILT / GRAPH_NAME}
    cases = [(ONE_FILE, MEMORY_MODES[0])]
    cases += [(name, memory) for name in (EXPORTED, BUILT) for memory in MEMORY_MODES]
    taken: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(count):
        for name, memory in cases:
            job = {
                "graph": str(graphs[name]),
                "memory": memory,
                "is_built": name == BUILT,
                "feeds": str(folder / "feeds.npz"),
            }
            command = [sys.executable, "-m", "benchmarks.session_start", "--job", json.dumps(job)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            taken[name, memory].append(json.loads(done.stdout))
    return [
        {
            "graph": name,
            "memory": memory,
            **{field: min(run[field] for run in runs) for field in runs[0]},
        }
        for (name, memory), runs in taken.items()
    ]


def run_job(graph: str, memory: Memory, is_built: bool, feeds: str) -> dict[str, float]:
    """Load and run a graph in this process; return times in seconds and added memory in bytes."""
    with np.load(feeds) as archive:
        arrays = dict(archive)
    list_execution_providers()  # imports onnxruntime
    before = read_status("self")
    loading, running = PeakMemory(), PeakMemory()
    with watch_memory(os.getpid(), loading):
        started = time.perf_counter()
        engine = OnnxruntimeEngine(graph, memory=memory, is_built=is_built)
        seconds_load = time.perf_counter() - started
    loaded = read_status("self")
    with watch_memory(os.getpid(), running):
        engine.run(arrays)
        started = time.process_time()
        engine.run(arrays)
        cpu_seconds_run = time.process_time() - started
    return {
        "seconds_load": seconds_load,
        "load_peak_rss_bytes": (loading.peak_rss_bytes or 0) - before["VmRSS"],
        "load_peak_anonymous_bytes": (loading.peak_anonymous_bytes or 0) - before["RssAnon"],
        "loaded_anonymous_bytes": loaded["RssAnon"] - before["RssAnon"],
        "cpu_seconds_run": cpu_seconds_run,
        "run_peak_rss_bytes": (running.peak_rss_bytes or 0) - before["VmRSS"],
        "run_peak_anonymous_bytes": (running.peak_anonymous_bytes or 0) - before["RssAnon"],
        "ran_anonymous_bytes": read_status("self")["RssAnon"] - before["RssAnon"],
    }


def describe(results: dict[str, Any]) -> Iterator[str]:
    """Yield a table in Markdown, sizes in MiB, and what was built relative to the others."""
    yield format_machine(results["machine"])
    yield ""
    fields = [field for field in results["rows"][0] if field not in ("graph", "memory")]
    titles = [field.removesuffix("_bytes").replace("_", " ") for field in fields]
    yield f"| graph | memory | {' | '.join(titles)} |"
    yield "|---" * (2 + len(fields)) + "|"
    for row in results["rows"]:
        figures = [
            f"{row[field]:.2f} s" if "seconds" in field else f"{row[field] / MIB:.0f} MiB"
            for field in fields
        ]
        yield f"| {row['graph']} | {row['memory']} | {' | '.join(figures)} |"
    yield ""
    for built in (row for row in results["rows"] if row["graph"] == BUILT):
        for other in results["rows"]:
            if other["graph"] != BUILT and other["memory"] in (MEMORY_MODES[0], built["memory"]):
                ratios = [f"{built[field] / other[field]:.2f}" for field in fields]
                label = f"{BUILT} {built['memory']} / {other['graph']} {other['memory']}"
                yield f"| {label} | | {' | '.join(ratios)} |"


if __name__ == "__main__":
    raise SystemExit(main())
