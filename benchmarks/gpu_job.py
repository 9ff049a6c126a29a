"""What one row of benchmarks/gpu.py does: load a model, make a clip, and the same clip again.

    python -m benchmarks.gpu_job JOB

JOB is one JSON object. It runs in a process of its own, so that one library's memory, threads and
CUDA context are not another's. What it took is written to a file, since libraries print to stdout.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.base_schedule import find_base_scheduler
from benchmarks.gpu_device import measure_copies
from mutoscope.engines.options import TENSORRT_MODULES
from mutoscope.runtime import VideoPipeline
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.component_inputs import make_inputs
from mutoscope.runtime.errors import MutoscopeError
from mutoscope.runtime.noise import NoiseGenerator, make_noise_source
from mutoscope.runtime.row_plan import find_first_denoiser
from mutoscope.runtime.sampler import StepInfo
from mutoscope.runtime.settings import Settings, make_settings

U8 = NDArray[np.uint8]
# Off, so that a step is one pass of the denoiser in all of them.
GUIDANCE_SCALE: Final = 1.0
# Makes the clip: frames uint8 [F, H, W, 3], and the seconds of each step after the first.
MakeClip = Callable[[], tuple[U8, list[float]]]


def main(arguments: list[str] | None = None) -> int:
    """Do the job; what failed is the last line of stderr."""
    job = json.loads((sys.argv[1:] if arguments is None else arguments)[0])
    try:
        record = measure_clips(**job)
    except MutoscopeError as err:
        print(err, file=sys.stderr)
        return 1
    Path(job["output"], "record.json").write_text(json.dumps(record), encoding="utf-8")
    return 0


def measure_clips(
    bundle: str,
    num_inference_steps: int,
    prompt: str,
    seed: int,
    count: int,
    output: str,
    own: dict[str, Any] | None = None,
    peer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the seconds of loading, of each clip and of each step; the clip goes to a file.

    The first clip warms up, and is not among those that are timed.

    Args:
        bundle: Its folder, also of a peer: it has the sizes and the noise.
        num_inference_steps: Steps, 2 or more: a step is timed from the end of the one before.
        prompt: Of the clip; left out where the bundle takes an image alone.
        seed: Of the clip.
        count: Clips that are timed; with none the process does nothing but warm up.
        output: The folder for clip.npy.
        own: Arguments of `VideoPipeline.open`, for one of ours.
        peer: Those of `open_diffusers`, for one that runs the checkpoint.

    Raises:
        MutoscopeError: It cannot run here.
    """
    opened = Bundle.open(bundle)
    settings = make_settings(
        opened,
        seed=seed,
        scheduler=find_base_scheduler(opened),
        num_inference_steps=num_inference_steps,
        guidance_scale=GUIDANCE_SCALE,
    )
    properties: dict[str, str] = {}
    seconds_clip, seconds_step = [], []
    # What TensorRT for RTX compiles is kept when its engine is closed.
    with ExitStack() as closing:
        started = time.perf_counter()
        if peer is None:
            make_clip = open_own(opened, settings, prompt, own or {}, properties, closing)
        else:
            make_clip = open_diffusers(opened, settings, prompt, **peer)
        frames, _ = make_clip()
        seconds_first = time.perf_counter() - started
        for _ in range(count):
            started = time.perf_counter()
            _, steps = make_clip()
            seconds_clip.append(time.perf_counter() - started)
            seconds_step += steps
    np.save(Path(output, "clip.npy"), frames)
    is_tensorrt = own is not None and own.get("engine") in TENSORRT_MODULES
    return {
        "properties": properties,
        "seconds_copies": measure_step_copies(opened, settings) if is_tensorrt else None,
        "seconds_first_clip": seconds_first,
        "seconds_clip": seconds_clip,
        "seconds_step": seconds_step,
    }


def open_own(
    bundle: Bundle,
    settings: Settings,
    prompt: str,
    options: dict[str, Any],
    properties: dict[str, str],
    closing: ExitStack,
) -> MakeClip:
    """Return what makes the clip with a bundle.

    Args:
        bundle: The bundle.
        settings: Of the clip.
        prompt: Of the clip.
        options: Arguments of `VideoPipeline.open`, as JSON has them.
        properties: Gets those of the engine when the clip is made.
        closing: What closes the engines.
    """
    # JSON has no tuples.
    pairs = tuple((name, value) for name, value in options.get("provider_options", ()))
    pipeline = closing.enter_context(
        VideoPipeline(bundle, **{**options, "provider_options": pairs})
    )
    image = None
    if bundle.manifest.images:
        image = np.full((settings.height, settings.width, 3), 128, dtype=np.uint8)

    def make_clip() -> tuple[U8, list[float]]:
        ends: list[float] = []

        def on_step(info: StepInfo) -> None:
            ends.append(time.perf_counter())

        video = pipeline.generate(
            prompt if bundle.manifest.tokenizers else None,
            image=image,
            seed=settings.seed,
            scheduler=settings.scheduler,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            on_step=on_step,
        )
        properties.update(pipeline.engine_properties)
        return video.frames, np.diff(ends).tolist()

    return make_clip


def measure_step_copies(bundle: Bundle, settings: Settings) -> float:
    """Return what the copies of one pass of the denoiser take: inputs to the GPU, output back."""
    denoiser = find_first_denoiser(bundle.manifest)
    feeds = make_inputs(bundle, settings)[denoiser]
    return measure_copies(feeds.values(), [np.empty(settings.latents_shape, np.float32)])


def _draw_latents(bundle: Bundle, settings: Settings) -> NDArray[np.float32]:
    """The noise that a bundle starts from, float32 [1, C, F, H, W]."""
    frames_first = bundle.manifest.latents.start_noise_frames_first
    generator = NoiseGenerator(settings.seed)
    return make_noise_source(generator, settings.latents_shape, frames_first=frames_first)()


def open_diffusers(
    bundle: Bundle,
    settings: Settings,
    prompt: str,
    checkpoint: str,
    device: str,
    dtype: str,
    *,
    compiled: bool,
) -> MakeClip:
    """Return what makes the clip with diffusers, from the noise that a bundle starts from.

    Args:
        bundle: The bundle of the same checkpoint.
        settings: Of the clip.
        prompt: Of the clip.
        checkpoint: A folder in the layout of diffusers.
        device: "cuda" or "cpu".
        dtype: A name of torch's, for weights and computation.
        compiled: Run denoiser and decoder by torch.compile, which compiles in the first clip.

    Raises:
        MutoscopeError: This PyTorch does not run on the device.
    """
    import torch
    from diffusers import DiffusionPipeline

    if device == "cuda" and not torch.cuda.is_available():
        raise MutoscopeError(
            f"this PyTorch, {torch.__version__}, finds no GPU: install one for CUDA from "
            "https://pytorch.org"
        )
    pipeline = DiffusionPipeline.from_pretrained(checkpoint, torch_dtype=getattr(torch, dtype))
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    if compiled:
        pipeline.unet.compile()
        pipeline.vae.decoder.compile()
    # Drawn in float32: in float16 the generator of PyTorch gives other numbers.
    latents = torch.from_numpy(_draw_latents(bundle, settings)).to(device, getattr(torch, dtype))
    ends = record_steps(pipeline.scheduler, device)

    def make_clip() -> tuple[U8, list[float]]:
        ends.clear()
        output = pipeline(
            prompt,
            num_frames=settings.num_frames,
            height=settings.height,
            width=settings.width,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            latents=latents,
            output_type="np",
        )
        frames = np.rint(np.asarray(output.frames)[0] * 255.0).astype(np.uint8)
        return frames, list(itertools.starmap(_find_seconds, itertools.pairwise(ends)))

    return make_clip


def record_steps(scheduler: Any, device: str) -> list[Any]:
    """Let a scheduler of diffusers note the time after each step, in the list that is returned.

    On a GPU these are events in its queue: to wait for it after a step would delay the next one.
    """
    import torch

    ends: list[Any] = []
    step = scheduler.step

    # The pipelines look at the arguments that a scheduler's step has.
    @functools.wraps(step)
    def timed_step(*arguments: Any, **options: Any) -> Any:
        result = step(*arguments, **options)
        if device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            ends.append(event)
        else:
            ends.append(time.perf_counter())
        return result

    scheduler.step = timed_step
    return ends


def _find_seconds(before: Any, after: Any) -> float:
    if isinstance(before, float):
        return float(after - before)
    milliseconds: float = before.elapsed_time(after)
    return milliseconds / 1e3


if __name__ == "__main__":
    raise SystemExit(main())
