"""`mutoscope calibrate`: add an int8 variant to a bundle, and show that it is the same model."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import click

from mutoscope.calibration.calibrate import (
    CalibrationOptions,
    calibrate_bundle,
)
from mutoscope.calibration.commands.progress_bars import ProgressBars
from mutoscope.calibration.commands.sample_options import images_option, prompts_option
from mutoscope.calibration.presets import DEFAULT_PRESET, PRESETS
from mutoscope.calibration.ranges import METHODS
from mutoscope.calibration.report import format_report
from mutoscope.calibration.samples import SamplingOptions
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.commands.options import engine_option, num_threads_option, read_names
from mutoscope.runtime.json_records import write_record
from mutoscope.runtime.main import EXIT_INTERRUPTED

_EPILOG = """\b
Examples:
  mutoscope calibrate bundle
  mutoscope calibrate bundle --prompts prompts.txt --preset quality
  mutoscope calibrate bundle --components vae_decoder --method minmax --min-psnr-db 35
  mutoscope calibrate bundle --components unet --scheduler ddim
  mutoscope generate "a red circle moves left" --bundle bundle --variant int8 -o out.mp4
"""


@click.command(epilog=_EPILOG)
@click.argument("bundle")
@prompts_option
@images_option
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default=DEFAULT_PRESET,
    show_default=True,
    help="How much is sampled and tried, and what is good enough: "
    + "; ".join(
        f"{name}: {p.num_samples} samples, {len(p.methods)} of the methods, {p.min_psnr_db:g} dB"
        for name, p in PRESETS.items()
    )
    + ". quality also tries to move outliers into weights.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    show_default="the best of the preset's",
    help="How ranges are found.",
)
@click.option(
    "--min-psnr-db",
    type=float,
    metavar="DB",
    show_default="the preset's",
    help="What the frames of the median clip must reach against float32; layers are put back into "
    "float until they do.",
)
@click.option(
    "--num-samples",
    type=int,
    metavar="N",
    show_default="the preset's",
    help="Clips to collect ranges of.",
)
@click.option(
    "--num-inference-steps",
    type=int,
    metavar="N",
    show_default="those of generate",
    help="Steps of each clip; ranges are collected at all of them.",
)
@click.option("--scheduler", metavar="NAME", show_default="the bundle's", help="Of each clip.")
@click.option("--num-frames", type=int, metavar="N", show_default="the bundle's", help="Frames.")
@click.option("--height", type=int, metavar="PIXELS", show_default="the bundle's", help="Height.")
@click.option("--width", type=int, metavar="PIXELS", show_default="the bundle's", help="Width.")
@click.option(
    "--components",
    metavar="NAMES",
    callback=read_names,
    show_default="the denoiser, vae_decoder and text encoders",
    help="Components to make int8, with commas.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the samples.")
@engine_option
@num_threads_option
@click.option(
    "--force",
    is_flag=True,
    help="Replace an int8 variant, and a calibration table that does not fit the graph any more.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def calibrate(
    bundle: str,
    prompts: Path | None,
    images: tuple[Path, ...],
    preset: str,
    method: str | None,
    min_psnr_db: float | None,
    num_samples: int | None,
    num_inference_steps: int | None,
    scheduler: str | None,
    num_frames: int | None,
    height: int | None,
    width: int | None,
    components: tuple[str, ...],
    seed: int,
    engine: str,
    num_threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Add an int8 variant to a bundle, of what is faster in it and as good.

    BUNDLE is its folder. The float model makes clips, and the ranges of its values at every step
    become a calibration table. The ways to find ranges are judged by other clips: the same ones in
    float32 and in int8, compared frame by frame. Layers that --engine does not run faster in int8
    stay in float, and so does a component that is not faster as a whole. One table makes two
    graphs: one for processors, and one for TensorRT. An interrupted calibration goes on where it
    was when the command is given again. The variant is run with --variant int8.
    """
    options = CalibrationOptions(
        components=components,
        preset=preset,
        method=method,
        min_psnr_db=min_psnr_db,
        num_samples=num_samples,
        prompts=prompts,
        images=images,
        seed=seed,
        sampling=SamplingOptions(num_inference_steps, scheduler, num_frames, height, width),
        engine=EngineOptions(engine, num_threads=num_threads),
        force=force,
    )
    try:
        with closing(ProgressBars()) as bars:
            report = calibrate_bundle(Bundle.open(bundle), options, bars.update)
    except KeyboardInterrupt as err:
        click.echo(
            "error: interrupted; what was collected is kept: give the command again to go on",
            err=True,
        )
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from err
    if as_json:
        click.echo(json.dumps({**write_record(report), "bundle": str(report.bundle)}))
    else:
        click.echo("\n".join(format_report(report)))
