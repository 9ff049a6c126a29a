"""`mutoscope export`: make a bundle from a checkpoint."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mutoscope.runtime.commands.checkpoint_options import checkpoint_options
from mutoscope.runtime.commands.inspect import format_bytes
from mutoscope.runtime.progress import format_seconds

if TYPE_CHECKING:
    from mutoscope.export.bundle_export import ExportProgress, ExportReport

_EPILOG = """\b
Examples:
  mutoscope export checkpoint -o bundle
  mutoscope export stable-diffusion --motion-adapter adapter -o bundle
  mutoscope export checkpoint -o bundle --scheduler unipc --num-inference-steps 4,8,20-30
  mutoscope export sd15 --motion-adapter lightning.safetensors --preset lightning-4 -o bundle
  mutoscope export checkpoint --few-step-lora lcm.safetensors --few-step-counts 4,8 -o bundle
  mutoscope export checkpoint --lora style.safetensors:0.8 --preview-vae taesd -o bundle
  mutoscope export checkpoint --bake-prompts prompts.txt --drop-text-encoder -o bundle
  mutoscope export checkpoint -o bundle --dtype float32,float16
  mutoscope export checkpoint -o bundle --dtype float16 --add
"""
_FLOAT16_NOTE = (
    "note: on a CPU float16 graphs are no faster than float32 ones, often slower: onnxruntime "
    "converts their values and computes in float32; they are for GPUs and TensorRT"
)
# What does not concern the graphs that are added to a bundle.
_OF_BUNDLE = {
    "name": "--name",
    "schedulers": "--scheduler",
    "num_inference_steps": "--num-inference-steps",
    "few_step_scheduler": "--few-step-scheduler",
    "few_step_counts": "--few-step-counts",
    "weights": "--weights",
    "cpu_rewrites": "--cpu-rewrites",
    "reuse_layers": "--reuse-layers",
    "bake_prompts": "--bake-prompts",
    "drop_text_encoder": "--drop-text-encoder",
}
_NAME_WIDTH = 14
_COUNTS = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


def parse_step_counts(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Return numbers and ranges of numbers, such as `1,2,4-8`, as a tuple."""
    if value is None:
        return None
    counts: list[int] = []
    for part in value.split(","):
        match = _COUNTS.fullmatch(part.strip())
        if match is None:
            raise click.BadParameter(f"{part.strip()!r} is not a count or a range: use 1,2,4-8")
        counts.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(counts)


def parse_rewrites(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    """Return names as a tuple, an empty one for `none`; whether they exist is checked later."""
    if value is None:
        return None
    return () if value == "none" else tuple(name.strip() for name in value.split(","))


@click.command(epilog=_EPILOG)
@click.argument("checkpoint")
@click.option("-o", "--output", required=True, metavar="BUNDLE", help="The folder to write.")
@checkpoint_options
@click.option(
    "--dtype",
    metavar="NAMES",
    default="float32",
    show_default=True,
    help="What the graphs compute in: float32, float16, or both with a comma, the default variant "
    "first. float16 is for GPUs and TensorRT: weights and compute in float16, with norms and "
    "softmax in float32; a CPU gains nothing by it.",
)
@click.option(
    "--add",
    is_flag=True,
    help="Add float16 graphs (--dtype float16) to BUNDLE, which was made of this checkpoint.",
)
@click.option(
    "--weights",
    type=click.Choice(["float32", "float16"]),
    help="How weights are stored. float16 halves a float32 bundle that still computes in float32, "
    "and is refused where it would change a value; --dtype float16 implies it, with rounding.  "
    "[default: as --dtype]",
)
@click.option(
    "--scheduler",
    "schedulers",
    multiple=True,
    metavar="NAME",
    help="One more scheduler beside the checkpoint's own: a class name of diffusers, or a short "
    "name such as ddim, euler, dpm++2m, unipc, lcm. May be given again.",
)
@click.option(
    "--num-inference-steps",
    callback=parse_step_counts,
    show_default="1-50, or those of the preset",
    metavar="COUNTS",
    help="The numbers of denoising steps to make schedule tables for, as 1,2,4-8. The bundle's "
    "default is the one nearest to the checkpoint's.",
)
@click.option(
    "--few-step-scheduler",
    metavar="NAME",
    show_default="lcm",
    help="What the denoiser of --few-step-lora is sampled with, named as for --scheduler.",
)
@click.option(
    "--few-step-counts",
    callback=parse_step_counts,
    metavar="COUNTS",
    show_default="1,2,4",
    help="The numbers of steps that --few-step-lora was made for; the largest becomes the bundle's "
    "default.",
)
@click.option(
    "--cpu-rewrites",
    callback=parse_rewrites,
    metavar="NAMES",
    show_default="all",
    help="What to rewrite in the float32 graphs for processors, which lie beside the plain ones: "
    "fused-attention, shared-text, merged-transposes, temporal-convolutions, joined-norms, or "
    "none. They give the same results, faster.",
)
@click.option(
    "--reuse-layers",
    type=int,
    metavar="N",
    show_default="1",
    help="How many layers of the UNet's last up block run in steps that reuse the deep features of "
    "an earlier step (mutoscope tune chooses such steps). Their graphs read the weights of the "
    "UNet's; 0 leaves them out.",
)
@click.option(
    "--bake-prompts",
    metavar="FILE",
    help="Put what the text encoder makes of some prompts into the bundle, of a text file with one "
    "prompt on each line; the default negative prompt is always added.",
)
@click.option(
    "--drop-text-encoder",
    is_flag=True,
    help="With --bake-prompts: leave the text encoder and the tokenizer out of the bundle, which "
    "then takes these prompts alone.",
)
@click.option("--name", help="The bundle's name, for people.  [default: the checkpoint's]")
@click.option("--force", is_flag=True, help="Replace the bundle if there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def export(
    checkpoint: str,
    output: str,
    dtype: str,
    add: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a bundle from a checkpoint.

    CHECKPOINT is a folder in diffusers layout, or the id of one on the Hugging Face hub, of
    AnimateDiff (or Stable Diffusion 1.5 or XL with --motion-adapter), ModelScope and Zeroscope,
    Stable Video Diffusion, I2VGen-XL. Only safetensors are read. Every component is compared with
    the checkpoint at other sizes before the bundle is there. With --add, the float32 graphs of the
    bundle are compared with it too, and the bundle gets all new graphs or stays as it was.
    """
    of_bundle = {name: options.pop(name) for name in _OF_BUNDLE}
    given = [option for name, option in _OF_BUNDLE.items() if _is_given(of_bundle[name])]
    if add and dtype != "float16":
        raise click.UsageError("--add needs --dtype float16; the export makes float32 graphs")
    if add and given:
        raise click.UsageError(f"--add adds graphs and nothing else: leave out {', '.join(given)}")
    # Late, so that --help works without torch; the command line turns a missing module into a hint.
    click.echo("loading torch and diffusers", err=True)
    common = {**options, "force": force, "on_progress": _show_progress}
    if add:
        from mutoscope.export.variant_export import add_float16

        report = add_float16(checkpoint, output, **common)
    else:
        if dtype.partition(",")[0].strip() == "float16":
            click.echo(_FLOAT16_NOTE, err=True)
        from mutoscope.export.bundle_export import export_checkpoint

        report = export_checkpoint(checkpoint, output, dtype=dtype, **of_bundle, **common)
    if as_json:
        click.echo(json.dumps(_make_json(report)))
    else:
        click.echo("\n".join(_describe_report(report)))


def _is_given(value: Any) -> bool:
    """Whether an option has another value than none."""
    return value is not None and value is not False and value != ()


def _show_progress(progress: ExportProgress) -> None:
    """Write a line for each step; on a terminal from its start, in a log at its end."""
    text = f"[{progress.step}/{progress.num_steps}] {progress.name:<{_NAME_WIDTH}}"
    terminal = sys.stderr.isatty()
    if progress.seconds is not None:
        click.echo(
            ("\r" if terminal else "") + f"{text} {format_seconds(progress.seconds)}", err=True
        )
    elif terminal:
        click.echo(f"{text} ...", nl=False, err=True)


def _describe_report(report: ExportReport) -> Iterator[str]:
    """Yield the closing table."""
    yield f"{'component':<{_NAME_WIDTH}} {'nodes':>6} {'size':>10} {'worst PSNR':>11} {'time':>8}"
    for name, component in report.components.items():
        worst = min(record.psnr_db for record in component.parity)
        yield (
            f"{name:<{_NAME_WIDTH}} {component.nodes:>6} {format_bytes(component.size_bytes):>10} "
            f"{worst:>8.1f} dB {format_seconds(component.seconds):>8}"
        )
    tables = sum(len(counts) for counts in report.manifest.schedules.values())
    yield (
        f"{report.bundle}: {format_bytes(report.size_bytes)} with {tables} schedule tables, "
        f"in {format_seconds(report.seconds)}"
    )


def _make_json(report: ExportReport) -> dict[str, Any]:
    """Return the report as a JSON object; the parity figures are those of the manifest."""
    manifest = report.manifest.to_json()
    return {
        "bundle": str(report.bundle),
        "name": report.manifest.name,
        "family": report.manifest.family,
        "size_bytes": report.size_bytes,
        "seconds": round(report.seconds, 3),
        "components": {
            name: {
                "nodes": component.nodes,
                "cpu_rewrites": component.cpu_rewrites,
                "size_bytes": component.size_bytes,
                "seconds": round(component.seconds, 3),
                "parity": manifest["components"][name]["parity"],
            }
            for name, component in report.components.items()
        },
        "schedulers": {
            name: sorted(map(int, counts)) for name, counts in report.manifest.schedules.items()
        },
    }
