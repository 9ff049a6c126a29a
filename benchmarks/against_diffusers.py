"""Compares a bundle with the checkpoint it came from, run by diffusers: frames and time.

Both make the same clips in turn, in one process and with the same number of threads, so that the
ratio of their times means something on a busy machine. Example:

    python -m benchmarks.against_diffusers --bundle BUNDLE --checkpoint checkpoints/moving-shapes
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mutoscope.runtime import VideoPipeline

U8 = NDArray[np.uint8]

PROMPT: Final = "a red circle moves left on a gray background"
SCHEDULER: Final = "ddim"
"""The checkpoint's own."""
STEPS: Final = (1, 4, 8, 25)
GUIDANCE_SCALES: Final = (1.0, 3.0)


def open_diffusers(path: Path, num_threads: int) -> Callable[..., U8]:
    """Return a function that makes frames uint8 [F, H, W, 3] with diffusers in float32."""
    import torch
    from diffusers import AnimateDiffPipeline

    torch.set_num_threads(num_threads)
    pipeline = AnimateDiffPipeline.from_pretrained(path, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def generate(
        seed: int,
        steps: int,
        guidance_scale: float,
        num_frames: int,
        height: int,
        width: int,
        prompt: str = PROMPT,
    ) -> U8:
        output = pipeline(
            prompt,
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="np",
        )
        return np.rint(np.asarray(output.frames)[0] * 255.0).astype(np.uint8)

    return generate


def compare(
    pipeline: VideoPipeline, reference: Callable[..., U8], steps: int, guidance: float, count: int
) -> dict[str, Any]:
    """Return the largest difference of the frames and the median seconds of both, in turn."""
    defaults = pipeline.bundle.manifest.defaults
    size = (defaults.num_frames, defaults.height, defaults.width)
    ours: list[float] = []
    theirs: list[float] = []
    difference = 0
    for seed in range(count + 1):
        begin = time.perf_counter()
        expected = reference(seed, steps, guidance, *size)
        between = time.perf_counter()
        video = pipeline.generate(
            PROMPT,
            seed=seed,
            scheduler=SCHEDULER,
            num_inference_steps=steps,
            guidance_scale=guidance,
        )
        end = time.perf_counter()
        difference = max(difference, int(np.abs(video.frames.astype(int) - expected).max()))
        if seed:  # the first round warms up
            theirs.append(between - begin)
            ours.append(end - between)
    return {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "max_abs_error": difference,
        "seconds_mutoscope": statistics.median(ours),
        "seconds_diffusers": statistics.median(theirs),
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "count": count,
    }


def main() -> None:
    """Measure and print a table, or one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against_diffusers")
    parser.add_argument("--bundle", type=Path, help="default: the bundle that ships")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--count", type=int, default=3, help="timed clips for each row")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    reference = open_diffusers(args.checkpoint, args.num_threads)
    rows = []
    with VideoPipeline.open(args.bundle, num_threads=args.num_threads) as pipeline:
        for steps in STEPS:
            for guidance_scale in GUIDANCE_SCALES:
                row = compare(pipeline, reference, steps, guidance_scale, args.count)
                rows.append(row)
                print(format_row(row), file=sys.stderr if args.json else sys.stdout, flush=True)
    if args.json:
        print(json.dumps({"num_threads": args.num_threads, "rows": rows}, indent=2))


def format_row(row: dict[str, Any]) -> str:
    """Return a row of the table in Markdown."""
    return (
        f"| {row['num_inference_steps']} | {row['guidance_scale']:g} | {row['max_abs_error']} | "
        f"{row['seconds_mutoscope']:.2f} | {row['seconds_diffusers']:.2f} | {row['ratio']:.2f} |"
    )


if __name__ == "__main__":
    main()
