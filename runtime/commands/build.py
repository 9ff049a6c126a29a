"""`mutoscope build`: do once what running a bundle's graphs takes, for one machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from mutoscope.engines.options import DEFAULT_ENGINE, TENSORRT_MODULES, EngineOptions
from mutoscope.engines.tensorrt_build import CURRENT, TensorrtBuildOptions
from mutoscope.runtime.built_engines import BuiltEngine, find_built, remove_built
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.commands.build_report import describe_built, make_built_record
from mutoscope.runtime.commands.options import VARIANT_HELP, read_bytes_option
from mutoscope.runtime.component_inputs import make_inputs
from mutoscope.runtime.engine_proof import EngineProver
from mutoscope.runtime.guidance import GUIDANCE_PASSES, GuidancePasses
from mutoscope.runtime.onnxruntime_engines import build_for_onnxruntime
from mutoscope.runtime.progress import ProgressBar
from mutoscope.runtime.settings import make_settings
from mutoscope.runtime.shape_ranges import ClipRange, parse_clip_range
from mutoscope.runtime.tensorrt_engines import build_for_tensorrt, find_same

BUILT_ENGINES = (DEFAULT_ENGINE, *TENSORRT_MODULES)

_SEED = 0
_EPILOG = """\b
Examples:
  mutoscope build bundle
  mutoscope build bundle --component unet --force
  mutoscope build bundle --engine tensorrt --variant float16 --variant int8
  mutoscope build bundle --engine tensorrt --shapes 256x256x8,512x512x16,768x768x16
  mutoscope build bundle --engine tensorrt-rtx --target sm89 --variant float16
  mutoscope build bundle --remove
"""


def _tensorrt_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of builds for TensorRT, named as the fields of `TensorrtBuildOptions`."""
    flags = (
        ("--refit", "Let the weights be replaced later; a bit slower."),
        (
            "--strip-weights",
            "Leave the weights out; they are taken from the bundle when the engine is loaded.",
        ),
        (
            "--weight-streaming",
            "Let weights stay in the memory of the processor; see generate --weight-budget.",
        ),
        (
            "--version-compatible",
            "Make engines that newer versions of TensorRT run too, up to the next major one.",
        ),
        ("--hardware-compatible", "Make engines that newer GPUs run too; slower."),
    )
    for name, text in reversed(flags):
        command = click.option(name, is_flag=True, help=f"TensorRT: {text}")(command)
    command = click.option(
        "--workspace",
        "workspace_bytes",
        metavar="SIZE",
        callback=read_bytes_option,
        show_default="all",
        help="TensorRT: Device memory that a layer may take for its own use, e.g. 2GiB.",
    )(command)
    command = click.option(
        "--builder-level",
        "optimization_level",
        type=click.IntRange(0, 5),
        metavar="N",
        show_default="TensorRT's",
        help="TensorRT: From 0, built fast, to 5, searched longest for what runs fast.",
    )(command)
    return click.option(
        "--target",
        metavar="GPU",
        default=CURRENT,
        show_default=True,
        help="TensorRT: The GPU to build for: current, or with tensorrt-rtx one that need not be "
        "here: sm75, sm80, sm86, sm89, sm120.",
    )(command)


@click.command(epilog=_EPILOG)
@click.argument("bundle", required=False)
@click.option(
    "--engine",
    type=click.Choice(BUILT_ENGINES),
    default=DEFAULT_ENGINE,
    show_default=True,
    help="What to build for.",
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
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME",
    show_default="the bundle's",
    help=f"{VARIANT_HELP}. Components that do not have it build their default. May be given again.",
)
@click.option(
    "--shapes",
    metavar="SIZES",
    default="fixed",
    show_default=True,
    help="TensorRT: The clips that the engines take: fixed is the bundle's usual size alone; sizes "
    "is height and width from half to one and a half times of it; any is up to twice of it and all "
    "numbers of frames; or one WIDTHxHEIGHTxFRAMES, or three: least, usual, greatest.",
)
@click.option(
    "--guidance-passes",
    type=click.Choice(GUIDANCE_PASSES),
    default="separate",
    show_default=True,
    help="TensorRT: As it will be with generate: batched builds a denoiser for two clips at once.",
)
@_tensorrt_options
@click.option("--force", is_flag=True, help="Build again what is there already.")
@click.option("--remove", is_flag=True, help="Remove what was built, for other machines too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.pass_context
def build(
    context: click.Context,
    /,
    bundle: str | None,
    engine: str,
    components: tuple[str, ...],
    variants: tuple[str, ...],
    shapes: str,
    guidance_passes: GuidancePasses,
    force: bool,
    remove: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Build a bundle's graphs for one machine, so that they load or run faster.

    BUNDLE is its folder; left out, it is the bundle that ships with mutoscope. For onnxruntime, the
    graphs are optimised and their weights laid out for this processor, in files that are mapped
    into memory as they are; that takes half as much disk again as the weights in float32. They
    are compared with the graphs that they were made of. The other commands then use them on their
    own, on the CPU, until the bundle, the processor or the version of onnxruntime is another one.

    For TensorRT (tensorrt, tensorrt-rtx), each graph is compiled for one kind of GPU and one range
    of sizes. What is built for the GPU of this machine is run at once and compared with onnxruntime
    on the CPU; what comes not close enough is never used. Of several variants generate takes the
    fastest, with --engine tensorrt, tensorrt-rtx or auto.

    What is built lies under engines/ in the bundle, or in the user's cache (~/.cache/mutoscope or
    XDG_CACHE_HOME) if the bundle cannot be written or is the one that ships with mutoscope.
    """
    if force and remove:
        raise click.UsageError("--force builds and --remove removes: use one of them")
    _check_options(context, engine, remove=remove)
    opened = Bundle.default() if bundle is None else Bundle.open(bundle)
    pairs = _list_pairs(opened, components, variants)
    head: dict[str, Any] = {"bundle": str(opened.path), "engine": engine}
    if remove:
        chosen = engine if "engine" in _list_given(context) else None
        head["engine"] = chosen
        names = dict.fromkeys(name for name, _ in pairs)
        removed = list(_remove_all(opened, list(names), variants, chosen))
        if as_json:
            click.echo(json.dumps({**head, "removed": removed}))
        else:
            click.echo("\n".join([f"removed {path}" for path in removed] or ["nothing was built"]))
        return
    if engine == DEFAULT_ENGINE:
        built = _build_for_onnxruntime(opened, pairs, force=force)
    else:
        batch = 2 if guidance_passes == "batched" else 1
        clips = parse_clip_range(opened, shapes, batch)
        how = TensorrtBuildOptions(**options)
        built = _build_for_tensorrt(opened, pairs, engine, clips, how, force=force)
    if as_json:
        click.echo(json.dumps({**head, "built": [make_built_record(one) for one in built]}))
    else:
        click.echo("\n".join(describe_built(built)))


def _list_given(context: click.Context) -> list[str]:
    """The names of the options that were given."""
    default = click.core.ParameterSource.DEFAULT
    return [name for name in context.params if context.get_parameter_source(name) != default]


def _check_options(context: click.Context, engine: str, *, remove: bool) -> None:
    """Raise `click.UsageError` for options of TensorRT where they would do nothing."""
    if engine in TENSORRT_MODULES and not remove:
        return
    names = {*TensorrtBuildOptions.__dataclass_fields__, "shapes", "guidance_passes"}
    for parameter in context.command.params:
        if parameter.name in names and parameter.name in _list_given(context):
            raise click.UsageError(
                f"{parameter.opts[0]} is for building for TensorRT: use it with --engine "
                f"{' or '.join(TENSORRT_MODULES)}, without --remove"
            )


def _list_pairs(
    bundle: Bundle, components: Sequence[str], variants: Sequence[str]
) -> list[tuple[str, str]]:
    """The components to build, each with the variants that are asked for, none twice."""
    for variant in variants:
        bundle.check_variant(variant)
    for name in components:
        bundle.find_component(name)
    pairs = [
        (name, record.choose_variant(variant))
        for name, record in bundle.manifest.components.items()
        for variant in variants or (None,)
        if name in (components or (name,))
    ]
    return list(dict.fromkeys(pairs))


def _remove_all(
    bundle: Bundle, names: list[str], variants: Sequence[str], engine: str | None
) -> Iterator[str]:
    """Remove what was built of these variants, or of all if there are none, and yield where."""
    for name in names:
        for built in find_built(bundle, name, engine=engine):
            if not variants or built.variant in variants:
                remove_built(built)
                yield str(built.folder)


def _build_for_onnxruntime(
    bundle: Bundle, pairs: list[tuple[str, str]], *, force: bool
) -> list[BuiltEngine]:
    """Build what is not there yet, and return all."""
    there = {}
    for name, variant in pairs if not force else ():
        all_built = find_built(bundle, name, variant, DEFAULT_ENGINE)
        found = next((built for built in all_built if built.problem is None), None)
        if found is not None:
            there[name, variant] = found
    missing = [pair for pair in pairs if pair not in there]
    if missing:
        limits = bundle.manifest.limits
        # What is built is compared on the smallest clip.
        settings = make_settings(
            bundle,
            seed=_SEED,
            num_frames=limits.num_frames.minimum,
            height=limits.height.minimum,
            width=limits.width.minimum,
        )
        with ProgressBar("building", len(missing)) as bar:
            inputs = make_inputs(bundle, settings)
            for done, (name, variant) in enumerate(missing, start=1):
                there[name, variant] = build_for_onnxruntime(bundle, name, inputs[name], variant)
                bar.update(done)
    return [there[pair] for pair in pairs]


def _build_for_tensorrt(
    bundle: Bundle,
    pairs: list[tuple[str, str]],
    engine: str,
    clips: ClipRange,
    options: TensorrtBuildOptions,
    *,
    force: bool,
) -> list[BuiltEngine]:
    """Build what is not there yet, compare what this machine runs, and return all."""
    all_built = []
    prover = EngineProver(bundle, EngineOptions(engine=engine))
    for name, variant in pairs:
        built, reason = find_same(bundle, name, variant, engine, clips, options)
        if reason and built is None:
            click.echo(f"what was built of {name} ({variant}) does not do: {reason}", err=True)
        if built is None or force:
            with ProgressBar(f"building {name} ({variant})", 1) as bar:

                def show(phase: str, done: int, total: int, bar: ProgressBar = bar) -> None:
                    bar.update(done, total)

                built = build_for_tensorrt(bundle, name, variant, engine, clips, options, show)
        if built.misfit is None and (built.proof is None or force):
            prover.prove(built)
            built, _ = find_same(bundle, name, variant, engine, clips, options)
        all_built.append(built)
    return [built for built in all_built if built is not None]
