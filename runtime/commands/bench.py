"""`mutoscope bench`: how fast a bundle's components are, and how much memory they take."""

from __future__ import annotations

import json
from typing import Any

import click

from mutoscope.engines.options import (
    DEFAULT_ENGINE,
    ENGINES,
    MEMORY_MODES,
    EngineOptions,
    Memory,
)
from mutoscope.runtime.benchmarks.benchmark import measure_bundle
from mutoscope.runtime.benchmarks.contestants import PEERS, make_own, make_peers, runs_checkpoint
from mutoscope.runtime.benchmarks.tables import format_results
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.commands.checkpoint_options import (
    check_needs_checkpoint,
    checkpoint_options,
)
from mutoscope.runtime.commands.options import (
    VARIANT_HELP,
    execution_provider_option,
    num_threads_option,
    read_names,
)
from mutoscope.runtime.errors import EngineError, ParameterError
from mutoscope.runtime.json_records import write_record
from mutoscope.runtime.settings import make_settings

_SEED = 0
_EPILOG = """\b
Examples:
  mutoscope bench bundle
  mutoscope bench bundle --engine onnxruntime,openvino:bf16 --component unet
  mutoscope bench bundle --variant float32,int8 --component unet
  mutoscope bench bundle --against diffusers,diffusers-compile,openvino
    --checkpoint checkpoint --json > results.json
"""


@click.command(epilog=_EPILOG)
@click.argument("bundle", required=False)
@click.option(
    "--engine",
    "engines",
    metavar="NAMES",
    callback=read_names,
    default=DEFAULT_ENGINE,
    show_default=True,
    help=f"What runs the graphs: {', '.join(ENGINES)}; several with commas.",
)
@click.option(
    "--variant",
    "variants",
    metavar="NAMES",
    callback=read_names,
    show_default="the bundle's",
    help=f"{VARIANT_HELP}; several with commas, each with every engine. A component that does not "
    "have one runs its default.",
)
@click.option(
    "--against",
    "peers",
    metavar="NAMES",
    callback=read_names,
    help=f"What to compare with, the first is the measure: {', '.join(PEERS)}. Those of diffusers "
    "need mutoscope[export] and --checkpoint.",
)
@click.option(
    "--checkpoint", metavar="DIR", help="What the bundle was exported from, for --against."
)
@click.option(
    "--component",
    "components",
    multiple=True,
    metavar="NAME",
    show_default="all",
    help="A component of the bundle, such as unet. May be given again.",
)
@click.option(
    "--num-frames",
    type=int,
    metavar="N",
    show_default="the bundle's",
    help="Frames of the clip.",
)
@click.option("--height", type=int, metavar="PIXELS", show_default="the bundle's", help="Height.")
@click.option("--width", type=int, metavar="PIXELS", show_default="the bundle's", help="Width.")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    default=5,
    show_default=True,
    help="Runs of each that count.",
)
@click.option(
    "--warm-ups",
    type=click.IntRange(min=1),
    metavar="N",
    default=2,
    show_default=True,
    help="Runs of each before them.",
)
@execution_provider_option
@num_threads_option
@click.option(
    "--memory",
    type=click.Choice(MEMORY_MODES),
    default="normal",
    show_default=True,
    help="As in mutoscope generate.",
)
@checkpoint_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def bench(
    bundle: str | None,
    engines: tuple[str, ...],
    variants: tuple[str, ...],
    peers: tuple[str, ...],
    checkpoint: str | None,
    components: tuple[str, ...],
    num_frames: int | None,
    height: int | None,
    width: int | None,
    count: int,
    warm_ups: int,
    execution_provider: str,
    num_threads: int | None,
    memory: Memory,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the time and the memory of a bundle's components.

    BUNDLE is its folder; left out, it is the bundle that ships with mutoscope. Each component is
    loaded and run in a process of its own, one pass over one clip; with several engines, variants
    or peers all run in turn. "load" is from the files to being ready, "error" the distance of the
    outputs from those of diffusers (or of the exported graph in onnxruntime) relative to their
    length, "speed" how many times as fast as the first peer. Memory is that of the process while it
    loads and runs, of it "anonymous" what the system cannot drop; it is measured on Linux only.
    Inputs are random, the same for all. The exit code is 1 if one fails; the others go on. The
    options from --motion-adapter on are those that the export was given, for --checkpoint.
    """
    if checkpoint and not runs_checkpoint(peers):
        raise click.UsageError("--checkpoint needs --against diffusers")
    check_needs_checkpoint(checkpoint, options)
    if not engines:
        raise ParameterError(f"--engine is empty: use {DEFAULT_ENGINE}")
    opened = Bundle.default() if bundle is None else Bundle.open(bundle)
    for name in components:
        opened.find_component(name)
    for variant in variants:
        opened.check_variant(variant)
    settings = make_settings(opened, seed=_SEED, num_frames=num_frames, height=height, width=width)
    # What is measured is one run of each component, so that there is nothing to cut into windows.
    opened.manifest.limits.num_frames.check("num_frames", settings.num_frames)
    rivals = make_peers(
        peers,
        opened.path,
        num_threads=num_threads,
        checkpoint=checkpoint,
        checkpoint_options=options,
    )
    choices = [EngineOptions(e, execution_provider, num_threads, memory) for e in engines]
    own = [
        make_own(opened.path, choice, variant)
        for choice in dict.fromkeys(choices)
        for variant in variants or (None,)
    ]
    results = measure_bundle(
        opened,
        settings,
        [*rivals, *own],
        components=components,
        num_threads=num_threads,
        # With low memory a batch of two is no choice: it takes twice the memory.
        compares_guidance=memory != "low",
        warm_ups=warm_ups,
        count=count,
        report=lambda line: click.echo(line, err=True),
    )
    if as_json:
        click.echo(json.dumps(write_record(results)))
    else:
        click.echo("\n".join(format_results(results)))
    if results.failures:
        raise EngineError("; ".join(f"{f.component}: {f.error}" for f in results.failures))
