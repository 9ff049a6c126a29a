"""`mutoscope generate`: a prompt becomes a video file."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mutoscope.engines.onnxruntime_engine import DEFAULT_EXECUTION_PROVIDER, EXECUTION_PROVIDERS
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.progress import ProgressBar
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
"""


@click.command(epilog=_EPILOG)
@click.argument("prompt")
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
    show_default="PROMPT with dashes, .mp4 or .png",
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
    help="Frames per second of the file; the model does not see it.",
)
@click.option(
    "--scheduler",
    metavar="NAME",
    show_default=_FROM_BUNDLE,
    help="One of the bundle's schedulers, e.g. ddim, euler-ancestral.",
)
@click.option(
    "--execution-provider",
    metavar="NAME",
    default=DEFAULT_EXECUTION_PROVIDER,
    show_default=True,
    help=f"What onnxruntime runs on: {', '.join(EXECUTION_PROVIDERS)}.",
)
@click.option(
    "--num-threads",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="one for each core",
    help="Threads for one operator on the CPU.",
)
@click.option(
    "--low-memory",
    is_flag=True,
    help="Free each component when its part is done; each video then loads them again.",
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
    prompt: str,
    bundle: str | None,
    output: str | None,
    execution_provider: str,
    num_threads: int | None,
    low_memory: bool,
    num_videos: int,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a video from PROMPT.

    Everything is checked before the work starts: the options, the bundle, and that OUT can be
    written. What was made, with its seed, is said on stderr.
    """
    negative_prompt = options.pop("negative_prompt")
    pipeline = VideoPipeline.open(
        bundle,
        execution_provider=execution_provider,
        num_threads=num_threads,
        low_memory=low_memory,
    )
    with pipeline:
        settings = make_settings(pipeline.bundle, **options)
        if settings.seed > SEED_MAX - num_videos + 1:
            raise ParameterError(
                f"seed is {settings.seed}; {num_videos} videos need it to be at most "
                f"{SEED_MAX - num_videos + 1}"
            )
        if output is None:
            output = make_output_name(prompt, settings.num_frames)
        clip = Clip(settings.num_frames, settings.height, settings.width, settings.frame_rate)
        outputs = list(make_output_names(output, num_videos))
        for name in outputs:
            check_output(name, clip, force=force)
        results = []
        for index, name in enumerate(outputs):
            options["seed"] = settings.seed + index
            video = _generate_one(pipeline, prompt, negative_prompt, settings, options, name)
            path = video.save(name, force=force)
            click.echo(f"{path}: seed {video.seed}, {video.timings.seconds_total:.1f} s", err=True)
            results.append(_describe(video, path))
    if as_json:
        click.echo(json.dumps({"bundle": str(pipeline.bundle.path), "videos": results}))


def _generate_one(
    pipeline: VideoPipeline,
    prompt: str,
    negative_prompt: str | None,
    settings: Settings,
    options: dict[str, Any],
    name: str,
) -> Video:
    """Generate with a progress bar."""
    table = pipeline.bundle.load_schedule(settings.scheduler, settings.num_inference_steps)
    with ProgressBar(Path(name).name, len(table.rows)) as bar:
        return pipeline.generate(
            prompt,
            negative_prompt=negative_prompt,
            on_step=lambda info: bar.update(info.step_index + 1),
            **options,
        )


def make_output_name(prompt: str, num_frames: int) -> str:
    """Return a file name made from a prompt: `a-red-circle-moves-left.mp4`."""
    words = re.sub(r"[\W_]+", "-", prompt.casefold()).strip("-")
    stem = words[:_NAME_CHARACTERS].rstrip("-") or "video"
    return stem + (".png" if num_frames == 1 else ".mp4")


def make_output_names(output: str, num_videos: int) -> Iterator[str]:
    """Yield the name of each video: numbered from 1 if there are several."""
    if num_videos == 1:
        yield output
        return
    find_ending(output)
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
