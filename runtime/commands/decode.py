"""`mutoscope decode`: saved latents become a video file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import click

from mutoscope.engines.opening import check_available
from mutoscope.engines.options import AUTO, EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.commands.options import (
    engine_options,
    memory_limit_option,
    variant_option,
)
from mutoscope.runtime.commands.timed_output import open_timed_file
from mutoscope.runtime.components import Components
from mutoscope.runtime.decoder import decode_in_chunks, make_decode_plan
from mutoscope.runtime.decoding import DecodePlan
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.latents_files import SavedLatents, load_latents
from mutoscope.runtime.manifest import VAE_DECODER
from mutoscope.runtime.progress import ProgressBar
from mutoscope.runtime.timings import Timings
from mutoscope.runtime.video import Video
from mutoscope.runtime.video_files import Clip, check_output

_EPILOG = """\b
Examples:
  mutoscope decode clip.npz -o clip.mp4
  mutoscope decode clip.npz --bundle bundle --memory low --memory-limit 1GiB -o clip.mp4
"""


@click.command(epilog=_EPILOG)
@click.argument("latents")
@click.option(
    "--bundle",
    metavar="DIR",
    help="Folder of the bundle that made the latents.",
    default=None,
    show_default="the bundle that ships with mutoscope",
)
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    default=None,
    show_default="LATENTS with .mp4 or .png",
    help="Where to write; the ending chooses the format, as for mutoscope generate.",
)
@click.option(
    "--frame-rate",
    type=click.FloatRange(min=0, max=1000, min_open=True),
    metavar="X",
    show_default="from LATENTS, else from the bundle",
    help="Frames per second of the file.",
)
@variant_option
@engine_options()
@memory_limit_option
@click.option("--force", is_flag=True, help="Replace what is at OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def decode(
    latents: str,
    bundle: str | None,
    output: str | None,
    frame_rate: float | None,
    variant: str | None,
    engine_options: EngineOptions,
    memory_limit_bytes: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Make a video of saved latents.

    LATENTS is a file that mutoscope generate --save-latents wrote, .npz or .npy. The video is the
    one that generate made.
    """
    opened = Bundle.default() if bundle is None else Bundle.open(bundle)
    check_available(engine_options)
    components = Components(opened, engine_options, variant)
    saved = load_latents(latents, num_channels=opened.manifest.latents.channels)
    _check_bundle(opened, saved, latents)
    plan = make_decode_plan(opened, saved.latents.shape, memory_limit_bytes)
    clip = _make_clip(opened, saved, frame_rate)
    if output is None:
        output = str(Path(latents).with_suffix(".png" if clip.num_frames == 1 else ".mp4"))
    check_output(output, clip, force=force)
    if engine_options.engine == AUTO:
        click.echo(f"{VAE_DECODER}: {components.describe(VAE_DECODER)}", err=True)
    timings = Timings()
    with (
        timings.measure("seconds_total"),
        open_timed_file(output, clip, timings, force=force) as add,
    ):
        _decode(components, saved, plan, clip, timings, Path(output).name, add)
    timings.seconds_total -= timings.seconds_output
    click.echo(f"{Path(output)}: {timings.seconds_total:.1f} s, {plan.describe()}", err=True)
    if as_json:
        result = {
            "bundle": str(opened.path),
            "path": str(Path(output)),
            "info": saved.info,
            **dataclasses.asdict(clip),
            "frames_per_chunk": plan.frames_per_chunk,
            "tile_height": plan.tile_height,
            **dataclasses.asdict(timings),
            "engine": components.engine_properties,
        }
        click.echo(json.dumps(result))


def _check_bundle(bundle: Bundle, saved: SavedLatents, path: str) -> None:
    """Raise `ParameterError` for latents that say that another bundle made them."""
    made_by, name = saved.info.get("bundle"), bundle.manifest.name
    if made_by is not None and made_by != name:
        raise ParameterError(
            f"{path} was made with the bundle {made_by!r}, and this one is {name!r}, which would "
            "decode it to something else: name its folder with --bundle DIR"
        )


def _make_clip(bundle: Bundle, saved: SavedLatents, frame_rate: float | None) -> Clip:
    """The clip that the latents make."""
    manifest = bundle.manifest
    _, _, num_frames, height, width = saved.latents.shape
    listed = saved.info.get("frame_rate")
    if not isinstance(listed, int | float) or not 0 < listed <= 1000:
        listed = manifest.defaults.frame_rate
    scale = manifest.latents.vae_scale_factor_spatial
    return Clip(
        (num_frames - 1) * manifest.latents.vae_scale_factor_temporal + 1,
        height * scale,
        width * scale,
        float(listed if frame_rate is None else frame_rate),
    )


def _decode(
    components: Components,
    saved: SavedLatents,
    plan: DecodePlan,
    clip: Clip,
    timings: Timings,
    label: str,
    add: Callable[[Video], object],
) -> None:
    """Decode with a progress bar, and hand over the parts as they are there."""
    prompt, negative_prompt = (saved.info.get(name) for name in ("prompt", "negative_prompt"))
    with ProgressBar(label, plan.count_runs(saved.latents.shape)) as bar:
        chunks = decode_in_chunks(
            components,
            saved.latents,
            plan,
            timings,
            on_run=lambda progress: bar.update(progress.num_runs_done),
        )
        with closing(chunks):
            for frames in chunks:
                part = Video(
                    frames=frames,
                    frame_rate=clip.frame_rate,
                    prompt=prompt if isinstance(prompt, str) else None,
                    negative_prompt=negative_prompt if isinstance(negative_prompt, str) else None,
                )
                add(part)
