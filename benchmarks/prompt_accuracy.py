"""Measures how well generated clips follow prompts that training never saw.

Generates the held-out combinations of colour, shape, motion and background and reads each clip
back with `benchmarks.clip_reader`. Two routes make the clips: a diffusers checkpoint (torch), or
an exported bundle (onnxruntime). How steady the clips are over time is measured as by
`mutoscope evaluate`. Example:

    python -m benchmarks.prompt_accuracy --checkpoint checkpoints/moving-shapes --json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.clip_consistency import score_consistency
from benchmarks.clip_reader import ClipReading, read_clip
from training.clips import (
    NUM_FRAMES,
    PILLAR_MOTIONS,
    SIZE,
    ClipAttributes,
    list_held_out_attributes,
    list_training_attributes,
)

U8 = NDArray[np.uint8]
Generate = Callable[[list[str], list[int]], Iterator[U8]]
"""Takes prompts and their seeds, yields each clip, uint8 [F, H, W, 3]."""

FIELDS: Final = ("colour", "shape", "motion", "background")
BATCH: Final = 16
DEFAULT_GUIDANCE_SCALE: Final = 2.0
TRAINING_PROMPT_COUNT: Final = 128


def list_prompts(kind: str) -> list[ClipAttributes]:
    """Return what to ask for: "held-out", "pillar" (held out too) or "training" combinations."""
    if kind == "training":
        allowed = list_training_attributes()
        order = np.random.default_rng(9).permutation(len(allowed))
        return [allowed[index] for index in order[:TRAINING_PROMPT_COUNT]]
    held_out = list_held_out_attributes()
    if kind == "pillar":
        return [replace(a, pillar=True) for a in held_out if a.motion in PILLAR_MOTIONS]
    return list(held_out)


def open_checkpoint(
    path: Path, num_inference_steps: int, guidance_scale: float, *, exact: bool
) -> Generate:
    """Return the route through diffusers.

    Args:
        path: Checkpoint folder.
        num_inference_steps: Denoising steps.
        guidance_scale: Classifier-free guidance, 1 for none.
        exact: Compute in float32; otherwise in bfloat16 where autocast allows it.
    """
    import torch
    from diffusers import AnimateDiffPipeline

    pipeline = AnimateDiffPipeline.from_pretrained(path, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def generate(prompts: list[str], seeds: list[int]) -> Iterator[U8]:
        for first in range(0, len(prompts), BATCH):
            chosen = slice(first, first + BATCH)
            with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
                output = pipeline(
                    prompts[chosen],
                    num_frames=NUM_FRAMES,
                    height=SIZE,
                    width=SIZE,
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds[chosen]],
                    output_type="np",
                )
            yield from np.rint(np.asarray(output.frames) * 255.0).astype(np.uint8)

    return generate


def open_bundle(
    path: Path,
    num_inference_steps: int,
    guidance_scale: float | None,
    variant: str | None = None,
    scheduler: str | None = None,
) -> Generate:
    """Return the route through the exported bundle.

    Arguments are those of `VideoPipeline.open` and `VideoPipeline.generate`.
    """
    from mutoscope.runtime import VideoPipeline

    pipeline = VideoPipeline.open(path, variant=variant)

    def generate(prompts: list[str], seeds: list[int]) -> Iterator[U8]:
        for prompt, seed in zip(prompts, seeds, strict=True):
            yield pipeline.generate(
                prompt,
                seed=seed,
                scheduler=scheduler,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
            ).frames

    return generate


def score_readings(
    wanted: list[ClipAttributes], readings: list[ClipReading]
) -> dict[str, float | int]:
    """Return the fraction of clips that are right, for each field, and for all fields at once.

    `reappears` is there when the prompts name the pillar: the object comes out on the other side
    with the colour and the shape it had.
    """
    right = {
        field: [
            getattr(a, field) == getattr(r, field) for a, r in zip(wanted, readings, strict=True)
        ]
        for field in FIELDS
    }
    scores: dict[str, float | int] = {name: float(np.mean(hits)) for name, hits in right.items()}
    scores["all"] = float(np.all(list(right.values()), axis=0).mean())
    if any(attributes.pillar for attributes in wanted):
        scores["pillar"] = float(np.mean([reading.pillar for reading in readings]))
        scores["reappears"] = float(np.mean([reading.reappears for reading in readings]))
    scores["clips"] = len(readings)
    return scores


def measure_accuracy(generate: Generate, wanted: list[ClipAttributes], seed: int) -> dict[str, Any]:
    """Generate one clip for each entry; return the scores, how steady they are, and each miss."""
    prompts = [attributes.caption() for attributes in wanted]
    begin = time.perf_counter()
    clips = list(generate(prompts, [seed + index for index in range(len(prompts))]))
    seconds = time.perf_counter() - begin
    readings = [read_clip(frames) for frames in clips]
    misses = [
        {"prompt": attributes.caption(), **vars(reading)}
        for attributes, reading in zip(wanted, readings, strict=True)
        if any(getattr(attributes, field) != getattr(reading, field) for field in FIELDS)
    ]
    return {
        **score_readings(wanted, readings),
        "consistency": score_consistency(wanted, clips),
        "seconds": round(seconds, 1),
        "misses": misses,
    }


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prompt_accuracy")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="diffusers folder (needs torch)")
    source.add_argument("--bundle", type=Path, help="exported bundle (needs onnxruntime)")
    parser.add_argument("--prompts", choices=["held-out", "pillar", "training"], default="held-out")
    parser.add_argument("--num-inference-steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, help="default: the bundle's, or 2")
    parser.add_argument("--scheduler", help="of the bundle")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first prompt; then + 1")
    parser.add_argument("--limit", type=int, help="use only the first N prompts")
    parser.add_argument("--exact", action="store_true", help="float32 throughout (checkpoint only)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, misses too")
    return parser


def main() -> None:
    """Measure and print."""
    args = make_parser().parse_args()
    wanted = list_prompts(args.prompts)[: args.limit]
    steps, guidance = args.num_inference_steps, args.guidance_scale
    if args.bundle:
        generate = open_bundle(args.bundle, steps, guidance, scheduler=args.scheduler)
    else:
        guidance = DEFAULT_GUIDANCE_SCALE if guidance is None else guidance
        generate = open_checkpoint(args.checkpoint, steps, guidance, exact=args.exact)
    result = measure_accuracy(generate, wanted, args.seed)
    result |= {"num_inference_steps": steps, "guidance_scale": guidance, "prompts": args.prompts}
    if args.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    consistency = result.pop("consistency")
    for name, value in result.items():
        if isinstance(value, float) and name not in ("seconds", "guidance_scale"):
            print(f"{name:12s} {100 * value:5.1f} %")
        elif name != "misses":
            print(f"{name:12s} {value}")
    for name, value in consistency.items():
        print(f"{name:13s} {'-' if value is None else format(value, '.3g')}")


if __name__ == "__main__":
    main()
