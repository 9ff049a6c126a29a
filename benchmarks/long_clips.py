"""Clips longer than the model was trained for: memory, and what changes at the joins of windows.

    python -m benchmarks.long_clips

Memory is that of `mutoscope generate` in processes of their own, for a clip of one window and for
the long one, in turn. Joins are the frames that windows start with, judged by the measures of
`mutoscope evaluate` over clips of several prompts; prompts of motions that can go on for ever
(bounces, orbits) are told apart from those that cannot (a shape that moves left leaves the frame).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.process_memory import ProcessMemory, run_measured
from benchmarks.prompt_accuracy import list_prompts
from mutoscope.runtime import VideoPipeline
from mutoscope.runtime.benchmarks.machine import describe_machine, format_machine
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.evaluation.consistency import measure_consistency
from mutoscope.runtime.evaluation.joins import JoinRatio, average_ratios, list_window_joins

ENDLESS_MOTIONS: Final = ("bounces", "orbits")
MEASURES: Final = {
    "flicker": "flicker",
    "warping_error": "warping error",
    "colour_step": "change of colour",
    "area_step": "change of area",
    "motion_jump": "jump of place",
}
_MIB: Final = 2**20


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_clips")
    parser.add_argument("--bundle", type=Path, help="default: the one that ships")
    parser.add_argument("--num-frames", type=int, default=128)
    parser.add_argument("--num-prompts", type=int, default=8, help="of each kind")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each length")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if min(options.num_prompts, options.rounds) < 1:
        parser.error("--num-prompts and --rounds must be 1 or more")
    opened = Bundle.default() if options.bundle is None else Bundle.open(options.bundle)
    at_once = opened.manifest.limits.num_frames.maximum
    if at_once is None or options.num_frames <= at_once:
        parser.error(
            f"--num-frames is {options.num_frames}; this bundle makes "
            + ("any number at once" if at_once is None else f"{at_once} at once: use more")
        )
    record = {
        "machine": describe_machine(),
        "memory": measure_memory(opened, options.num_frames, options.rounds),
        "joins": [
            measure_joins(opened, kind, options.num_frames, options.num_prompts)
            for kind in ("endless", "ending")
        ],
    }
    print(json.dumps(record, indent=1) if options.json else "\n".join(describe(record)))
    return 0


def measure_memory(bundle: Bundle, num_frames: int, rounds: int) -> list[dict[str, Any]]:
    """Return the medians of whole processes, for one window and for the long clip."""
    lengths = (bundle.manifest.defaults.num_frames, num_frames)
    with tempfile.TemporaryDirectory() as folder:
        taken: dict[int, list[ProcessMemory]] = {length: [] for length in lengths}
        for _ in range(rounds):
            for length in lengths:
                taken[length].append(_generate_apart(bundle.path, length, Path(folder)))
    return [
        {
            "num_frames": length,
            "seconds": statistics.median(run.seconds for run in runs),
            "peak_rss_bytes": _find_median(run.peak_rss_bytes for run in runs),
            "peak_anonymous_bytes": _find_median(run.peak_anonymous_bytes for run in runs),
        }
        for length, runs in taken.items()
    ]


def _generate_apart(bundle: Path, num_frames: int, folder: Path) -> ProcessMemory:
    prompt = list_prompts("held-out")[0].caption()
    arguments = ["generate", prompt, "--bundle", str(bundle), "--num-frames", str(num_frames)]
    arguments += ["--seed", "0", "-o", str(folder / "clip.mp4")]
    code = "from mutoscope.runtime.main import main; main()"
    measured = run_measured([sys.executable, "-c", code, *arguments])
    (folder / "clip.mp4").unlink()  # which must be there
    return measured


def _find_median(values: Iterator[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def measure_joins(bundle: Bundle, kind: str, num_frames: int, num_prompts: int) -> dict[str, Any]:
    """Return each measure at joins and elsewhere, over clips of prompts of one kind."""
    wanted = [
        attributes
        for attributes in list_prompts("held-out")
        if (attributes.motion in ENDLESS_MOTIONS) == (kind == "endless")
    ]
    wanted = wanted[:: max(1, len(wanted) // num_prompts)][:num_prompts]
    ratios: dict[str, list[JoinRatio]] = {name: [] for name in MEASURES}
    with VideoPipeline(bundle) as pipeline:
        for seed, attributes in enumerate(wanted):
            video = pipeline.generate(attributes.caption(), seed=seed, num_frames=num_frames)
            assert video.settings is not None  # only a clip of saved latents has none
            length, stride = video.settings.context_length, video.settings.context_stride
            assert length is not None  # a clip that is longer than the bundle makes at once
            assert stride is not None
            joins = list_window_joins(num_frames, length, stride)
            compared = measure_consistency(video.frames).compare_joins(joins)
            for name, found in ratios.items():
                found.append(compared[name])
    means = {name: average_ratios(found) for name, found in ratios.items()}
    return {
        "kind": kind,
        "num_prompts": len(wanted),
        "num_frames": num_frames,
        "context_length": length,
        "context_stride": stride,
        "measures": {name: vars(mean) for name, mean in means.items()},
    }


def describe(record: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a report of what was measured."""
    yield format_machine(record["machine"])
    yield ""
    yield "| frames | seconds | peak memory | anonymous |"
    yield "| ---: | ---: | ---: | ---: |"
    for row in record["memory"]:
        sizes = (
            "-" if row[name] is None else f"{row[name] / _MIB:.0f} MiB"
            for name in ("peak_rss_bytes", "peak_anonymous_bytes")
        )
        yield f"| {row['num_frames']} | {row['seconds']:.2f} | {' | '.join(sizes)} |"
    for group in record["joins"]:
        yield ""
        yield (
            f"{group['num_prompts']} prompts of motions that "
            + ("go on" if group["kind"] == "endless" else "come to an end")
            + f", {group['num_frames']} frames in windows of {group['context_length']} every "
            f"{group['context_stride']}:"
        )
        yield ""
        yield "| mean over pairs of frames | at joins | elsewhere | ratio |"
        yield "| --- | ---: | ---: | ---: |"
        for name, label in MEASURES.items():
            cells = (group["measures"][name][key] for key in ("at_joins", "elsewhere", "ratio"))
            numbers = ("-" if cell is None else f"{cell:.3g}" for cell in cells)
            yield f"| {label} | {' | '.join(numbers)} |"


if __name__ == "__main__":
    sys.exit(main())
