"""`mutoscope generate`: a prompt becomes a video file."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from mutoscope.engines.options import AUTO, EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.commands.generation_options import generation_options
from mutoscope.runtime.commands.options import (
    engine_options,
    memory_limit_option,
    variant_option,
)
from mutoscope.runtime.commands.timed_output import open_timed_file
from mutoscope.runtime.decoder import make_decode_plan
from mutoscope.runtime.decoding import DecodeProgress
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.latents_files import check_latents_output, save_latents
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.preview import OnPreview, PreviewKind, TerminalPreview, open_preview
from mutoscope.runtime.progress import ProgressBar
from mutoscope.runtime.row_plan import plan_rows
from mutoscope.runtime.sampler import StepInfo
from mutoscope.runtime.settings import SEED_MAX, Settings, make_settings
from mutoscope.runtime.timings import Timings
from mutoscope.runtime.video import Video
from mutoscope.runtime.video_files import Clip, check_output, find_ending

_NAME_CHARACTERS = 60

_EPILOG = """\b
Examples:
  mutoscope generate "a red circle moves left" -o out.mp4
  mutoscope generate "a red circle moves left" --seed 7 --num-frames 1 -o image.png
  mutoscope generate "a red circle moves left" --num-videos 4 --seed 0 -o circle.webp
  mutoscope generate --bundle svd --image photo.jpg --condition motion_bucket_id=60 -o photo.mp4
  mutoscope generate --bundle svd --continue photo.mp4 -o photo-2.mp4
"""


@click.command(epilog=_EPILOG)
@click.argument("prompt", required=False)
@click.option(
    "--image",
    metavar="FILE",
    help="The picture that the video starts from, for a bundle that takes one.",
)
@click.option(
    "--continue",
    "start_clip",
    metavar="CLIP",
    help="The same, with the last frame of a clip: a file or folder as mutoscope writes them, or "
    "another video.",
)
@click.option(
    "--bundle",
    metavar="DIR",
    help="Folder of the bundle.",
    default=None,
    show_default="the bundle that ships with mutoscope",
)
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    default=None,
    show_default="PROMPT with dashes, or the name of the image or clip, .mp4 or .png",
    help="Where to write. The ending chooses the format: .mp4 .webm .gif .webp .apng .png .npy, or "
    "no ending for a folder of PNG files.",
)
@generation_options
@variant_option
@engine_options()
@memory_limit_option
@click.option(
    "--save-latents",
    "latents",
    metavar="FILE",
    help="Write the latents too, .npz or .npy; mutoscope decode makes the video of them again.",
)
@click.option(
    "--preview",
    flag_value="file",
    help="Keep a picture of what the video is becoming, OUT.preview.png, replaced after each step. "
    "The bundle needs a preview decoder (mutoscope export --preview-vae).",
)
@click.option(
    "--preview-terminal",
    "preview",
    flag_value="terminal",
    help="The same, drawn on the terminal.",
)
@click.option(
    "--num-videos",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Videos to make, with the seeds SEED, SEED + 1, ...; their names are numbered.",
)
@click.option("--force", is_flag=True, help="Replace what is at OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def generate(
    prompt: str | None,
    image: str | None,
    start_clip: str | None,
    bundle: str | None,
    output: str | None,
    variant: str | None,
    engine_options: EngineOptions,
    memory_limit_bytes: int | None,
    latents: str | None,
    preview: PreviewKind | None,
    num_videos: int,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a video from PROMPT, an image or both.

    Everything is checked before the work starts: the options, the bundle, and that OUT can be
    written. What was made, with its seed, is said on stderr.
    """
    if image is not None and start_clip is not None:
        raise click.UsageError("--image and --continue both say what to start from: leave one out")
    inputs: dict[str, Any] = {
        "prompt": prompt,
        "image": image,
        **{name: options.pop(name) for name in ("negative_prompt", "guidance_passes")},
    }
    pipeline = VideoPipeline.open(
        bundle,
        **dataclasses.asdict(engine_options),
        memory_limit_bytes=memory_limit_bytes,
        variant=variant,
    )
    with pipeline:
        settings = make_settings(pipeline.bundle, **options)
        if start_clip is not None:
            inputs["image"] = load_last_frame(pipeline.bundle, start_clip)
        if output is None:
            start = (
                Path(image or "").stem if start_clip is None else f"{Path(start_clip).stem} next"
            )
            output = make_output_name(start if prompt is None else prompt, settings.num_frames)
        if engine_options.engine == AUTO:
            for name, runs in pipeline.describe_engines().items():
                click.echo(f"{name}: {runs}", err=True)
        if engine_options.uses_cpu_graphs and "float16" in pipeline.variants.values():
            click.echo(_describe_float16(pipeline.bundle), err=True)
        targets = _make_targets(output, latents, preview, settings, num_videos, force=force)
        plan = make_decode_plan(pipeline.bundle, settings.latents_shape, memory_limit_bytes)
        if plan.tile_height is not None:
            click.echo(f"decoding {plan.describe()}", err=True)
        num_decodes = plan.count_runs(settings.latents_shape)
        work = _describe_work(pipeline.bundle, settings)
        results = []
        for target in targets:
            options["seed"] = target.seed
            output_timings = Timings()
            clip = _make_clip(settings)
            with open_timed_file(target.output, clip, output_timings, force=force) as add:
                inputs["on_frames"] = add
                video = _generate_one(pipeline, inputs, settings, options, target, num_decodes)
            video.timings.seconds_output = output_timings.seconds_output
            results.append(_report(pipeline, video, target, work, force=force))
        engines = pipeline.describe_engines()
    if as_json:
        made_with = {
            "bundle": str(pipeline.bundle.path),
            "variants": pipeline.variants,
            "engine": pipeline.engine_properties,
            "engines": engines,
            **work,
        }
        click.echo(json.dumps({**made_with, "videos": results}))


@dataclass(frozen=True)
class _Target:
    """One video to make, and where it goes; all of it was checked to be writable."""

    seed: int
    output: str
    latents: str | None
    preview: OnPreview | None


def _make_targets(
    output: str,
    latents: str | None,
    preview: PreviewKind | None,
    settings: Settings,
    num_videos: int,
    *,
    force: bool,
) -> list[_Target]:
    """Return the videos to make; raises `OutputError` or `ParameterError` before any work."""
    if settings.seed > SEED_MAX - num_videos + 1:
        raise ParameterError(
            f"seed is {settings.seed}; {num_videos} videos need it to be at most "
            f"{SEED_MAX - num_videos + 1}"
        )
    find_ending(output)
    clip = _make_clip(settings)
    names = list(number_names(output, num_videos))
    latents_names = list(number_names(latents, num_videos)) if latents else [None] * num_videos
    targets = []
    for index, (name, latents_name) in enumerate(zip(names, latents_names, strict=True)):
        check_output(name, clip, force=force)
        if latents_name is not None:
            check_latents_output(latents_name, force=force)
        on_preview = open_preview(preview, name, force=force) if preview else None
        targets.append(_Target(settings.seed + index, name, latents_name, on_preview))
    return targets


def _generate_one(
    pipeline: VideoPipeline,
    inputs: dict[str, Any],
    settings: Settings,
    options: dict[str, Any],
    target: _Target,
    num_decodes: int,
) -> Video:
    """Generate with a progress bar, or with a preview on the terminal in its place."""
    if isinstance(target.preview, TerminalPreview):
        return pipeline.generate(on_preview=target.preview, **inputs, **options)
    table = pipeline.bundle.load_schedule(settings.scheduler, settings.num_inference_steps)
    with ProgressBar(Path(target.output).name, len(table.rows)) as bar:

        def show_step(info: StepInfo) -> None:
            bar.update(info.step_index + 1)
            if info.step_index + 1 == info.num_steps and num_decodes > 1:
                bar.begin_next("decoding", num_decodes)

        def show_decode(progress: DecodeProgress) -> None:
            if num_decodes > 1:
                bar.update(progress.num_runs_done)

        return pipeline.generate(
            on_step=show_step,
            on_preview=target.preview,
            on_decode=show_decode,
            **inputs,
            **options,
        )


def _describe_work(bundle: Bundle, settings: Settings) -> dict[str, Any]:
    """What the denoisers do for each video, as a JSON object."""
    scheduler, steps = settings.scheduler, settings.num_inference_steps
    plan = plan_rows(bundle.manifest, bundle.load_schedule(scheduler, steps))
    return {
        "scheduler": scheduler,
        "num_inference_steps": steps,
        "denoisers": plan.num_rows,
        "num_reused_rows": plan.num_reused,
        "num_windows": len(settings.windows) or 1,
    }


def _report(
    pipeline: VideoPipeline, video: Video, target: _Target, work: dict[str, Any], *, force: bool
) -> dict[str, Any]:
    """Write a video's latents, if they are wanted; say what was made, also as a JSON object."""
    path = Path(target.output)
    parts = [f"seed {video.seed}", "{scheduler}, {num_inference_steps} steps".format(**work)]
    if work["num_reused_rows"]:
        parts[-1] += " ({num_reused_rows} reused)".format(**work)
    if work["num_windows"] > 1:
        parts.append("{num_windows} windows".format(**work))
    parts.append(f"{video.timings.seconds_total:.1f} s")
    click.echo(f"{path}: {', '.join(parts)}", err=True)
    assert video.settings is not None
    result = {
        "path": str(path),
        **video.describe(),
        **dataclasses.asdict(_make_clip(video.settings)),
        **dataclasses.asdict(video.timings),
    }
    if target.latents is not None and video.latents is not None:
        info = {
            **video.describe(),
            "frame_rate": video.frame_rate,
            "bundle": pipeline.bundle.manifest.name,
            "variants": pipeline.variants,
        }
        result["latents"] = str(save_latents(target.latents, video.latents, info, force=force))
        click.echo(f"{result['latents']}: the latents of {path.name}", err=True)
    return result


def _describe_float16(bundle: Bundle) -> str:
    """A note for who runs float16 graphs on a CPU: what is faster there, and where to get it."""
    known = {name for c in bundle.manifest.components.values() for name in c.variants}
    faster = [name for name in ("float32", "int8") if name in known]
    way = f"use --variant {' or '.join(faster)}"
    if not faster:
        way = "use a bundle of mutoscope export CHECKPOINT -o BUNDLE --dtype float32"
    elif "int8" not in known:
        way += f", or make int8 graphs with mutoscope calibrate {bundle.path}"
    return f"note: float16 is not faster on a CPU: {way}"


def make_output_name(prompt: str, num_frames: int) -> str:
    """Return a file name made from a prompt or the name of an image: `a-red-circle.mp4`."""
    words = re.sub(r"[\W_]+", "-", prompt.casefold()).strip("-")
    stem = words[:_NAME_CHARACTERS].rstrip("-") or "video"
    return stem + (".png" if num_frames == 1 else ".mp4")


def number_names(output: str, num_videos: int) -> Iterator[str]:
    """Yield the name of each video: numbered from 1 if there are several."""
    if num_videos == 1:
        yield output
        return
    path = Path(output)
    width = len(str(num_videos))
    slash = "/" if output.endswith("/") else ""
    for number in range(1, num_videos + 1):
        yield str(path.with_name(f"{path.stem}-{number:0{width}d}{path.suffix}")) + slash


def _make_clip(settings: Settings) -> Clip:
    """The clip that settings make."""
    return Clip(settings.num_frames, settings.height, settings.width, settings.frame_rate)


def load_last_frame(bundle: Bundle, path: str) -> NDArray[np.uint8]:
    """Return what a video starts from that continues a clip: its last frame, uint8 [H, W, 3].

    Raises:
        ParameterError: The bundle takes no image, or the clip cannot be read.
    """
    if not bundle.manifest.images:
        raise ParameterError(
            f"continue is {path}, but this bundle makes a video of a prompt alone: leave "
            "--continue out, or use the bundle of an image-to-video model"
        )
    from mutoscope.runtime.clip_files import load_clip

    return load_clip(path)[-1]
