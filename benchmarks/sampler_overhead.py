"""Measures what the sampler itself costs: 25 steps without a model, against diffusers.

Both sides do all that a pipeline does between two denoiser calls: scale the model input, draw the
noise, update. They take turns in one process, and the first runs are dropped. Example:

    OMP_NUM_THREADS=1 python -m benchmarks.sampler_overhead --json

With --bundle it makes a clip as well and says what part of its time is not spent in graphs.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from mutoscope.export.schedule import trace_schedule
from mutoscope.runtime.benchmarks.machine import describe_machine
from mutoscope.runtime.noise import NoiseGenerator, make_noise_source
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.sampler import denoise
from mutoscope.runtime.schedule import ScheduleTable

F32 = NDArray[np.float32]

NUM_INFERENCE_STEPS: Final = 25
SHAPES: Final = ((1, 4, 16, 8, 8), (1, 4, 16, 64, 64))
SCHEDULERS: Final[dict[str, dict[str, Any]]] = {
    "DDIMScheduler": {"clip_sample": False},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "SASolverScheduler": {},
}
WARM_UPS: Final = 2
PROMPT: Final = "a red circle moves left"


def run_table(table: ScheduleTable, latents: F32, model_output: F32) -> F32:
    """The sampler over a model that costs nothing."""
    batch, channels, num_frames, height, width = latents.shape
    draw = make_noise_source(
        NoiseGenerator(0), (batch, channels, num_frames, height, width), frames_first=False
    )
    return denoise(
        latents,
        table,
        lambda _sample, _row: model_output,
        noise=lambda _step_index: draw(),
    )


def run_diffusers(scheduler: Any, latents: torch.Tensor, model_output: torch.Tensor) -> None:
    """The loop of a diffusers pipeline over a model that costs nothing."""
    scheduler.set_timesteps(NUM_INFERENCE_STEPS)
    generator = torch.Generator("cpu").manual_seed(0)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    kwargs = {"generator": generator} if takes_generator else {}
    latents = latents * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(model_output, timestep, latents, return_dict=False, **kwargs)[0]


def measure_pair(
    first: Callable[[], object], second: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of each run, the two sides taking turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(WARM_UPS + repeats):
        for side, run in enumerate((first, second)):
            start = time.perf_counter()
            run()
            if repeat >= WARM_UPS:
                seconds[side].append(time.perf_counter() - start)
    return seconds


def measure(name: str, shape: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """One scheduler at one size of latents."""
    scheduler = getattr(diffusers, name)(**SCHEDULERS[name])
    table = trace_schedule(scheduler, NUM_INFERENCE_STEPS)
    random = np.random.default_rng(0)
    latents = random.standard_normal(shape).astype(np.float32)
    model_output = random.standard_normal(shape).astype(np.float32)
    torch_latents, torch_output = torch.from_numpy(latents), torch.from_numpy(model_output)
    ours, theirs = measure_pair(
        lambda: run_table(table, latents, model_output),
        lambda: run_diffusers(scheduler, torch_latents, torch_output),
        repeats,
    )
    return {
        "scheduler": name,
        "latents_shape": list(shape),
        "num_inference_steps": NUM_INFERENCE_STEPS,
        "num_registers": table.num_registers,
        "max_terms_per_row": table.max_terms_per_row,
        "count": repeats,
        "seconds_median": statistics.median(ours),
        "seconds_minimum": min(ours),
        "diffusers_seconds_median": statistics.median(theirs),
        "diffusers_seconds_minimum": min(theirs),
        "ratio_median": statistics.median(theirs) / statistics.median(ours),
    }


def measure_clip(bundle: str, num_inference_steps: int) -> dict[str, Any]:
    """Where the time of one clip goes once all is loaded, at the bundle's own size and guidance."""
    with VideoPipeline.open(bundle) as pipeline, tempfile.TemporaryDirectory() as folder:
        warm_up = pipeline.generate(PROMPT, seed=0, num_inference_steps=1)
        warm_up.save(Path(folder) / "warm_up.mp4")
        video = pipeline.generate(PROMPT, seed=0, num_inference_steps=num_inference_steps)
        start = time.perf_counter()
        video.save(Path(folder) / "clip.mp4")
        seconds_save = time.perf_counter() - start
    seconds = {**dataclasses.asdict(video.timings), "seconds_save": seconds_save}
    seconds_all = seconds["seconds_total"] + seconds_save
    # What is measured in no part is the tokenizer, the checks of arguments and Python itself.
    parts = sum(seconds.values()) - seconds["seconds_total"]
    seconds["seconds_rest"] = seconds_all - parts
    outside = ("seconds_load", "seconds_sampler", "seconds_rest", "seconds_save")
    return {
        "bundle": Path(bundle).name,
        **video.describe(),
        "frames_shape": list(video.frames.shape),
        **seconds,
        "share_outside_graphs": sum(seconds[name] for name in outside) / seconds_all,
        "share_sampler": seconds["seconds_sampler"] / seconds_all,
    }


def print_table(results: list[dict[str, Any]]) -> None:
    """The results for people."""
    print(f"{'scheduler':34}{'latents':>18}{'table':>12}{'diffusers':>12}{'ratio':>8}")
    for result in results:
        shape = "x".join(map(str, result["latents_shape"]))
        ours, theirs = result["seconds_median"] * 1e3, result["diffusers_seconds_median"] * 1e3
        times = f"{ours:>9.2f} ms{theirs:>9.2f} ms{result['ratio_median']:>7.1f}x"
        print(f"{result['scheduler']:34}{shape:>18}{times}")


def print_clip(clip: dict[str, Any]) -> None:
    """The parts of a clip's time for people."""
    shape = "x".join(map(str, clip["frames_shape"]))
    print(f"{clip['bundle']}, frames {shape}, {clip['num_inference_steps']} steps:")
    for name, value in clip.items():
        if name.startswith("seconds_") and value:
            print(f"  {name:26}{value * 1e3:>12.2f} ms")
        elif name.startswith("share_"):
            print(f"  {name:26}{value:>14.3%}")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout."""
    parser = argparse.ArgumentParser(description="Time 25 steps of the sampler without a model.")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each side (default: 9)")
    parser.add_argument("--bundle", help="make a clip with this bundle too")
    parser.add_argument(
        "--num-inference-steps", type=int, default=4, help="steps of the clip (default: 4)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    with warnings.catch_warnings():
        # diffusers hands torch tensors to numpy in a way that numpy 2 warns about.
        warnings.simplefilter("ignore", DeprecationWarning)
        results = [measure(name, shape, options.repeats) for shape in SHAPES for name in SCHEDULERS]
    clip = measure_clip(options.bundle, options.num_inference_steps) if options.bundle else None
    if options.json:
        machine = {**describe_machine(), "torch_num_threads": torch.get_num_threads()}
        json.dump({"machine": machine, "results": results, "clip": clip}, sys.stdout, indent=1)
        print()
    else:
        print_table(results)
        if clip is not None:
            print_clip(clip)
    return 0


if __name__ == "__main__":
    sys.exit(main())
