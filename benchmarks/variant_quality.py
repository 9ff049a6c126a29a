"""How good the variants of a bundle are: frames against float32, and prompts that are followed.

    python -m benchmarks.variant_quality --bundle BUNDLE

For the model that ships: it makes clips of prompts that training never saw, with the same seeds in
every variant, and reads them back with benchmarks.clip_reader.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.clip_reader import read_clip
from benchmarks.int8_methods import BASE_SCHEDULER
from benchmarks.prompt_accuracy import (
    DEFAULT_GUIDANCE_SCALE,
    FIELDS,
    list_prompts,
    open_bundle,
    score_readings,
)
from mutoscope.runtime.benchmarks.machine import describe_machine, format_machine
from mutoscope.runtime.bundle import Bundle, list_graph_files
from mutoscope.runtime.metrics import psnr_db

FLOAT: Final = "float32"
STEPS: Final = "25,4"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout."""
    parser = argparse.ArgumentParser(description="Compare the variants of a bundle.")
    parser.add_argument("--bundle", type=Path, required=True, help="calibrated")
    parser.add_argument("--variant", default="float32,float16,int8", help="with commas")
    parser.add_argument("--num-inference-steps", default=STEPS, help="with commas")
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    variants = list(dict.fromkeys([FLOAT, *options.variant.split(",")]))
    rows = []
    for count in map(int, options.num_inference_steps.split(",")):
        rows += measure(options.bundle, variants, count, options.num_prompts)
    record = {"machine": describe_machine(), "rows": rows}
    print(json.dumps(record, indent=1) if options.json else "\n".join(describe(record)))
    return 0


def measure(
    bundle: Path, variants: list[str], num_inference_steps: int, num_prompts: int
) -> list[dict[str, Any]]:
    """Return a row for each variant; they take turns, prompt by prompt."""
    # Every second one: the list goes through one colour after the other.
    wanted = list_prompts("held-out")[:: max(1, 128 // num_prompts)][:num_prompts]
    prompts = [attributes.caption() for attributes in wanted]
    clips = {
        variant: open_bundle(
            bundle, num_inference_steps, DEFAULT_GUIDANCE_SCALE, variant, BASE_SCHEDULER
        )(prompts, list(range(len(prompts))))
        for variant in variants
    }
    readings: dict[str, list[Any]] = {variant: [] for variant in variants}
    ratios: dict[str, list[float]] = {variant: [] for variant in variants}
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in prompts:
        reference = None
        for variant in variants:
            started = time.perf_counter()
            frames = next(clips[variant])
            seconds[variant].append(time.perf_counter() - started)
            reference = frames if reference is None else reference
            readings[variant].append(read_clip(frames))
            ratios[variant].append(psnr_db(reference, frames))
    return [
        {
            "variant": variant,
            "num_inference_steps": num_inference_steps,
            "size_bytes": measure_size(Bundle.open(bundle), variant),
            "seconds_median": statistics.median(seconds[variant]),
            "median_psnr_db": statistics.median(ratios[variant]),
            "minimum_psnr_db": min(ratios[variant]),
            **score_readings(wanted, readings[variant]),
        }
        for variant in variants
    ]


def measure_size(bundle: Bundle, variant: str) -> int:
    """Return the bytes of the graphs that processors run of a variant, with their weights."""
    files = set()
    for component in bundle.manifest.components.values():
        graph = component.find_cpu_graph(component.choose_variant(variant))
        files |= set(list_graph_files(bundle.manifest, component, graph))
    return sum(bundle.manifest.files[name].size_bytes for name in files)


def describe(record: dict[str, Any]) -> Iterator[str]:
    """Yield a table in Markdown."""
    yield format_machine(record["machine"])
    yield ""
    clips = record["rows"][0]["clips"]
    yield (
        f"{clips} prompts that training never saw, guidance {DEFAULT_GUIDANCE_SCALE:g}. "
        "Speed is that of whole clips against float32, all in turn."
    )
    yield ""
    yield (
        "| steps | variant | graphs | speed | PSNR, median | PSNR, worst | "
        f"{' | '.join(FIELDS)} | all |"
    )
    yield f"| ---: | --- | {'---: | ' * (5 + len(FIELDS))}"
    floats = {r["num_inference_steps"]: r for r in record["rows"] if r["variant"] == FLOAT}
    for row in record["rows"]:
        speed = floats[row["num_inference_steps"]]["seconds_median"] / row["seconds_median"]
        is_reference = row["variant"] == FLOAT
        scores = " | ".join(f"{row[field]:.1%}" for field in (*FIELDS, "all"))
        psnr = [
            "-" if is_reference else f"{row[name]:.1f} dB"
            for name in ("median_psnr_db", "minimum_psnr_db")
        ]
        yield (
            f"| {row['num_inference_steps']} | {row['variant']} | "
            f"{row['size_bytes'] / 1e6:.1f} MB | {speed:.2f} x | "
            f"{psnr[0]} | {psnr[1]} | {scores} |"
        )


if __name__ == "__main__":
    raise SystemExit(main())
