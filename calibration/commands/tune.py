"""`mutoscope tune`: find the rows of a schedule that can do with less work, and add the plan."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import click

from mutoscope.calibration.commands.progress_bars import ProgressBars
from mutoscope.calibration.commands.sample_options import images_option, prompts_option
from mutoscope.calibration.tuning import TuningOptions, tune_bundle
from mutoscope.calibration.tuning_report import format_report
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.commands.options import engine_option, num_threads_option, variant_option
from mutoscope.runtime.json_records import write_record

_EPILOG = """\b
Examples:
  mutoscope tune bundle
  mutoscope tune bundle --scheduler ddim --steps 25 --min-psnr-db 35 --name ddim-fine
  mutoscope tune bundle --variant int8 --name ddim-reuse-int8
  mutoscope generate "a red circle moves left" --bundle bundle --scheduler ddim-reuse -o out.mp4
"""


@click.command(epilog=_EPILOG)
@click.argument("bundle")
@click.option(
    "--scheduler",
    metavar="NAME",
    show_default="the first with such a table",
    help="The schedule to tune: one of the bundle's schedulers.",
)
@click.option(
    "--num-inference-steps",
    "--steps",
    "num_inference_steps",
    type=int,
    metavar="N",
    show_default="25; with --scheduler those of generate",
    help="Its number of steps.",
)
@click.option(
    "--min-psnr-db",
    "--min-psnr",
    "min_psnr_db",
    type=float,
    metavar="DB",
    default=TuningOptions.min_psnr_db,
    show_default=True,
    help="What the frames of the median clip must reach against the schedule as it is.",
)
@click.option(
    "--num-samples",
    type=int,
    metavar="N",
    default=TuningOptions.num_samples,
    show_default=True,
    help="Clips to judge by.",
)
@prompts_option
@images_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the samples.")
@click.option(
    "--name",
    metavar="NAME",
    show_default="SCHEDULER-reuse, or SCHEDULER-interval without reuse",
    help="What the plan is called among the bundle's schedulers.",
)
@click.option(
    "--reuse/--no-reuse",
    "reuses_features",
    default=True,
    show_default=True,
    help="Whether steps may reuse the deep features of an earlier one.",
)
@click.option(
    "--guidance-interval/--no-guidance-interval",
    "drops_guidance",
    default=True,
    show_default=True,
    help="Whether steps may go without guidance.",
)
@click.option(
    "--guidance-passes/--no-guidance-passes",
    "times_guidance_passes",
    default=True,
    show_default=True,
    help="Whether to measure if guidance is faster in separate passes or in a batch of both, and "
    "make that the bundle's default.",
)
@variant_option
@engine_option
@num_threads_option
@click.option("--force", is_flag=True, help="Replace a plan of this name.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def tune(
    bundle: str,
    scheduler: str | None,
    num_inference_steps: int | None,
    min_psnr_db: float,
    num_samples: int,
    prompts: Path | None,
    images: tuple[Path, ...],
    seed: int,
    name: str | None,
    reuses_features: bool,
    drops_guidance: bool,
    times_guidance_passes: bool,
    variant: str | None,
    engine: str,
    num_threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Find the steps of a schedule that can do with less work, and add them as a plan.

    BUNDLE is its folder. Steps may reuse the deep features of an earlier step, or go without
    guidance. Which of them do is chosen by clips: those of the plan are compared with those of the
    schedule as it is, frame by frame. The plan becomes one more scheduler of the bundle, for
    --scheduler.
    """
    options = TuningOptions(
        scheduler=scheduler,
        num_inference_steps=num_inference_steps,
        min_psnr_db=min_psnr_db,
        num_samples=num_samples,
        prompts=prompts,
        images=images,
        seed=seed,
        name=name,
        reuses_features=reuses_features,
        drops_guidance=drops_guidance,
        times_guidance_passes=times_guidance_passes,
        variant=variant,
        engine=EngineOptions(engine, num_threads=num_threads),
        force=force,
    )
    with closing(ProgressBars()) as bars:
        report = tune_bundle(Bundle.open(bundle), options, bars.update)
    if as_json:
        click.echo(json.dumps({**write_record(report), "bundle": str(report.bundle)}))
    else:
        click.echo("\n".join(format_report(report)))
