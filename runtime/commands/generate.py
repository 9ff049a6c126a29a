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

from mutoscope.engines.options import AUTO, EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.commands.options import (
    engine_options,
    memory_limit_option,
    variant_option,
)
from mutoscope.runtime.decoder import make_decode_plan
from mutoscope.runtime.decoding import DecodeProgress
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.guidance import GUIDANCE_PASSES
from mutoscope.runtime.latents_files import check_latents_output, save_latents
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.preview import OnPreview, PreviewKind, TerminalPreview, open_preview
from mutoscope.runtime.progress import ProgressBar
from mutoscope.runtime.sampler import StepInfo
from mutoscope.runtime.settings import SEED_MAX, Settings, make_settings
from mutoscope.runtime.video import Video
from mutoscope.runtime.video_files import Clip, check_output, find_ending

_NAME_CHARACTERS = 60
_FROM_BUNDLE = "from the bundle"

_EPILOG = """\b
Examples:
  mutoscope generate "a red circle moves left" -o out.mp4
  mutoscope generate "a red circle moves left" --seed 7 --num-frames 1 -o image.png
  mutoscope generate "a red circle moves left" --num-videos 4 --seed 0 -o circle.webp
  mutoscope generate --bundle svd --image photo.jpg --condition motion_bucket_id=60 -o photo.mp4
"""


def parse_conditions(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> dict[str, float]:
    """Return `NAME=X` options as a mapping."""
    conditions: dict[str, float] = {}
    for text in value:
        name, _, number = text.partition("=")
        try:
            conditions[name.strip()] = float(number)
        except ValueError as err:
            raise click.BadParameter(
                f"{text!r} is not NAME=NUMBER: use motion_bucket_id=127"
            ) from err
    return conditions


@click.command(epilog=_EPILOG)
@click.argument("prompt", required=False)
@click.option(
    "--image",
    metavar="FILE",
    help="The picture that the video starts from, for a bundle that takes one.",
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
    show_default="PROMPT with dashes or the image's name, .mp4 or .png",
    help="Where to write. The ending chooses the format: .mp4 .webm .gif .webp .apng .png .npy, or "
    "no ending for a folder of PNG files.",
)
@click.option(
    "--seed",
    type=int,
    metavar="N",
    show_default="random",
    help="Start of the random numbers, 0 to 2^64 - 1; the same seed gives the same video.",
)
@click.option(
    "--num-inference-steps",
    type=int,
    metavar="N",
    show_default=_FROM_BUNDLE,
    help="Denoising steps, one of the counts that the bundle has a schedule table for.",
)
@click.option(
    "--guidance-scale",
    type=float,
    metavar="X",
    show_default=_FROM_BUNDLE,
    help="Weight of the prompt, at least 1; 1 turns guidance off, in half the time.",
)
@click.option(
    "--min-guidance-scale",
    type=float,
    metavar="X",
    show_default=_FROM_BUNDLE,
    help="Guidance of the first frame, at least 1; it rises to the guidance scale at the last.",
)
@click.option(
    "--negative-prompt",
    metavar="TEXT",
    show_default=_FROM_BUNDLE,
    help="What to guide away from; needs a guidance scale above 1.",
)
@click.option(
    "--num-frames",
    type=int,
    metavar="N",
    show_default=_FROM_BUNDLE,
    help="Length in frames; 1 makes an image.",
)
@click.option("--height", type=int, metavar="N", show_default=_FROM_BUNDLE, help="Pixels.")
@click.option("--width", type=int, metavar="N", show_default=_FROM_BUNDLE, help="Pixels.")
@click.option(
    "--frame-rate",
    type=float,
    metavar="X",
    show_default=_FROM_BUNDLE,
    help="Frames per second of the file; some models are told.",
)
@click.option(
    "--condition",
    "conditions",
    multiple=True,
    metavar="NAME=X",
    callback=parse_conditions,
    help="A number that the bundle's model takes, e.g. motion_bucket_id=127; inspect lists them. "
    "May be given again.",
)
@click.option(
    "--scheduler",
    metavar="NAME",
    show_default=_FROM_BUNDLE,
    help="One of the bundle's schedulers, e.g. ddim, euler-ancestral.",
)
@click.option(
    "--guidance-passes",
    type=click.Choice(GUIDANCE_PASSES),
    default="separate",
    show_default=True,
    help="How the model runs where guidance is on: with the prompt and the negative prompt one "
    "after the other, or batched, with both at once. That takes twice the memory and is faster on "
    "some devices.",
)
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
    inputs = {
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
        if output is None:
            subject = prompt if prompt is not None else Path(image or "").stem
            output = make_output_name(subject, settings.num_frames)
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
        results = []
        for target in targets:
            options["seed"] = target.seed
            video = _generate_one(pipeline, inputs, settings, options, target, num_decodes)
            results.append(_save(pipeline, video, target, force=force))
        engines = pipeline.describe_engines()
    if as_json:
        made_with = {
            "bundle": str(pipeline.bundle.path),
            "variants": pipeline.variants,
            "engine": pipeline.engine_properties,
            "engines": engines,
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
    clip = Clip(settings.num_frames, settings.height, settings.width, settings.frame_rate)
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


def _save(pipeline: VideoPipeline, video: Video, target: _Target, *, force: bool) -> dict[str, Any]:
    """Write a video, and its latents if they are wanted; return it as a JSON object."""
    path = video.save(target.output, force=force)
    click.echo(f"{path}: seed {video.seed}, {video.timings.seconds_total:.1f} s", err=True)
    result = _describe(video, path)
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


def _describe(video: Video, path: Path) -> dict[str, Any]:
    """One video as a JSON object."""
    num_frames, height, width, _ = video.frames.shape
    return {
        "path": str(path),
        **video.describe(),
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "frame_rate": video.frame_rate,
        **dataclasses.asdict(video.timings),
    }
