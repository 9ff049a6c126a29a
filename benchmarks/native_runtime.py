"""Start-up and memory of libmutoscope beside the Python runtime, on the same bundle and clip.

    make native
    python -m benchmarks.native_runtime --json > benchmarks/results/native-runtime.json

Both sides are processes of their own, which take turns: mutoscope-c, and Python with VideoPipeline.
Times are from the start of the process: to the end of its first denoising step, and to its end.
Memory is the peak of the process. Files are in the system's cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mutoscope.runtime.benchmarks.machine import describe_machine, format_machine
from mutoscope.runtime.benchmarks.memory import PeakMemory, watch_memory
from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH, Bundle
from mutoscope.runtime.settings import make_settings

ROOT: Final = Path(__file__).resolve().parent.parent
PROGRAM: Final = ROOT / "build" / "native" / "mutoscope-c" / "mutoscope-c"
PROMPT: Final = "a red circle moves left on a gray background"
SEED: Final = 7
FIRST_STEP: Final = "denoising 1 of"
MODES: Final = ("normal", "low")
NATIVE: Final = "libmutoscope"
PYTHON: Final = "Python"
_MB: Final = 1e6
# What mutoscope-c does with --progress.
_SCRIPT: Final = """
import sys
from mutoscope.runtime import VideoPipeline

def on_step(info):
    print("denoising", info.step_index + 1, "of", info.num_steps, file=sys.stderr, flush=True)

bundle, prompt, seed, steps, memory = sys.argv[1:]
with VideoPipeline.open(bundle, memory=memory) as pipeline:
    video = pipeline.generate(
        prompt, seed=int(seed), num_inference_steps=int(steps), on_step=on_step
    )
sys.stdout.buffer.write(video.frames.tobytes())
"""


@dataclass(frozen=True)
class Taken:
    """What one process took: seconds since it was started, and bytes at most."""

    seconds_first_step: float
    seconds_total: float
    peak_rss_bytes: int
    peak_anonymous_bytes: int


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout."""
    parser = argparse.ArgumentParser(description="Start-up and memory of libmutoscope.")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE_PATH)
    parser.add_argument("--program", type=Path, default=PROGRAM, help="default: as make native")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps, default: 4")
    parser.add_argument("--count", type=int, default=9, help="processes of each kind, default: 9")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if not options.program.is_file():
        parser.error(f"{options.program} is not there: run make native")
    rows = measure(options.bundle, options.program, options.steps, options.count)
    bundle = Bundle.open(options.bundle)
    settings = make_settings(bundle, seed=SEED, num_inference_steps=options.steps)
    results = {
        "machine": describe_machine(),
        "bundle": bundle.manifest.name,
        "num_frames": settings.num_frames,
        "height": settings.height,
        "width": settings.width,
        "num_inference_steps": options.steps,
        "count": options.count,
        "rows": rows,
    }
    print(json.dumps(results, indent=1) if options.json else "\n".join(describe(results)))
    return 0


def measure(bundle: Path, program: Path, steps: int, count: int) -> list[dict[str, Any]]:
    """Return a row for each runtime and memory mode: the median and the minimum of each figure."""
    cases = [(memory, runtime) for memory in MODES for runtime in (NATIVE, PYTHON)]
    taken: dict[tuple[str, str], list[Taken]] = {case: [] for case in cases}
    for index in range(count + 1):
        for memory, runtime in cases:
            run = run_process(make_command(runtime, bundle, program, steps, memory))
            if index:  # the first run of each reads files that are in no cache yet
                taken[memory, runtime].append(run)
    return [
        {
            "memory": memory,
            "runtime": runtime,
            "figures": {
                "median": summarize(runs, statistics.median),
                "minimum": summarize(runs, min),
            },
        }
        for (memory, runtime), runs in taken.items()
    ]


def summarize(runs: list[Taken], choose: Callable[[list[float]], float]) -> dict[str, float]:
    """Return what `choose` makes of each figure of several processes."""
    records = [asdict(run) for run in runs]
    return {field: choose([record[field] for record in records]) for field in records[0]}


def make_command(runtime: str, bundle: Path, program: Path, steps: int, memory: str) -> list[str]:
    """Return what makes the clip, with its frames on stdout and its progress on stderr."""
    if runtime == PYTHON:
        return [sys.executable, "-c", _SCRIPT, str(bundle), PROMPT, str(SEED), str(steps), memory]
    return [
        *(str(program), str(bundle), PROMPT, "--seed", str(SEED)),
        *("--num-inference-steps", str(steps), "--memory", memory),
        *("--progress", "--format", "rgb", "-o", "-"),
    ]


def run_process(command: list[str]) -> Taken:
    """Run a process to its end; raises `subprocess.CalledProcessError` if it fails."""
    peak, seconds_first_step = PeakMemory(), None
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    with process, watch_memory(process.pid, peak):
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(FIRST_STEP):
                seconds_first_step = time.perf_counter() - started
        process.wait()
    seconds_total = time.perf_counter() - started
    if process.returncode or seconds_first_step is None:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Taken(
        seconds_first_step,
        seconds_total,
        peak.peak_rss_bytes or 0,
        peak.peak_anonymous_bytes or 0,
    )


def describe(results: dict[str, Any]) -> Iterator[str]:
    """Yield a table in Markdown, sizes in MB."""
    yield format_machine(results["machine"])
    yield ""
    yield (
        f"{results['bundle']}, {results['num_frames']} frames of {results['height']} x "
        f"{results['width']} pixels, {results['num_inference_steps']} steps; "
        f"{results['count']} processes of each kind"
    )
    yield ""
    yield "| memory | runtime | | first step | whole process | peak memory | of it anonymous |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: |"
    for row in results["rows"]:
        for name, figures in row["figures"].items():
            yield (
                f"| {row['memory']} | {row['runtime']} | {name} "
                f"| {figures['seconds_first_step']:.2f} s | {figures['seconds_total']:.2f} s "
                f"| {figures['peak_rss_bytes'] / _MB:.0f} MB "
                f"| {figures['peak_anonymous_bytes'] / _MB:.0f} MB |"
            )


if __name__ == "__main__":
    sys.exit(main())
