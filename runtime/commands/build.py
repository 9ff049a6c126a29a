"""`mutoscope build`: do once what loading a bundle's graphs takes, for this machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import click

from mutoscope.engines.options import DEFAULT_ENGINE
from mutoscope.runtime.built_engines import (
    BuiltEngine,
    build_component,
    find_built,
    load_record,
    remove_built,
)
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.commands.inspect import format_bytes
from mutoscope.runtime.commands.options import variant_option
from mutoscope.runtime.component_inputs import make_inputs
from mutoscope.runtime.progress import ProgressBar
from mutoscope.runtime.settings import make_settings

BUILT_ENGINES = (DEFAULT_ENGINE,)

_SEED = 0
_EPILOG = """\b
Examples:
  mutoscope build bundle
  mutoscope build bundle --component unet --force
  mutoscope build bundle --remove
"""


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
@variant_option
@click.option("--force", is_flag=True, help="Build again what is there already.")
@click.option("--remove", is_flag=True, help="Remove what was built, for other machines too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def build(
    bundle: str | None,
    engine: str,
    components: tuple[str, ...],
    variant: str | None,
    force: bool,
    remove: bool,
    as_json: bool,
) -> None:
    """Build a bundle's graphs for this machine, so that they load faster.

    BUNDLE is its folder; left out, it is the bundle that ships with mutoscope. For onnxruntime, the
    graphs are optimised and their weights laid out for this processor, in files that are mapped
    into memory as they are; that takes half as much disk again as the weights in float32. They
    are compared with the graphs that they were made of. The other commands then use them on their
    own, on the CPU, until the bundle, the processor or the version of onnxruntime is another one.
    They lie under engines/ in the bundle, or in the user's cache (~/.cache/mutoscope or
    XDG_CACHE_HOME) if the bundle cannot be written or is the one that ships with mutoscope.
    """
    if force and remove:
        raise click.UsageError("--force builds and --remove removes: use one of them")
    opened = Bundle.default() if bundle is None else Bundle.open(bundle)
    opened.check_variant(variant)
    for name in components:
        opened.find_component(name)
    names = [name for name in opened.manifest.components if name in (components or (name,))]
    head = {"bundle": str(opened.path), "engine": engine}
    if remove:
        removed = list(_remove_all(opened, names, variant))
        if as_json:
            click.echo(json.dumps({**head, "removed": removed}))
        else:
            click.echo("\n".join([f"removed {path}" for path in removed] or ["nothing was built"]))
        return
    built = _build_all(opened, names, variant, force=force)
    if as_json:
        click.echo(json.dumps({**head, "built": [_make_record(engine) for engine in built]}))
    else:
        click.echo("\n".join(_describe(built)))


def _remove_all(bundle: Bundle, names: list[str], variant: str | None) -> Iterator[str]:
    for name in names:
        for built in find_built(bundle, name, variant):
            remove_built(built)
            yield str(built.folder)


def _build_all(
    bundle: Bundle, names: list[str], variant: str | None, *, force: bool
) -> list[BuiltEngine]:
    """Build what is not there yet, and return all."""
    there = {} if force else {name: _find_fitting(bundle, name, variant) for name in names}
    missing = [name for name in names if there.get(name) is None]
    if not missing:
        return [engine for engine in there.values() if engine is not None]
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
        for done, name in enumerate(missing, start=1):
            there[name] = build_component(bundle, name, inputs[name], variant)
            bar.update(done)
    return [engine for name in names if (engine := there[name]) is not None]


def _find_fitting(bundle: Bundle, name: str, variant: str | None) -> BuiltEngine | None:
    all_built = find_built(bundle, name, bundle.find_component(name).choose_variant(variant))
    return next((built for built in all_built if built.problem is None), None)


def _make_record(built: BuiltEngine) -> dict[str, Any]:
    record = dataclasses.asdict(load_record(built.folder))
    return {
        **record,
        "variant": built.variant,
        "folder": str(built.folder),
        "size_bytes": built.size_bytes,
    }


def _describe(built: list[BuiltEngine]) -> Iterator[str]:
    """Yield a table."""
    yield f"{'component':<16}{'variant':<10}{'size':>10}{'load before':>14}{'after':>10}  folder"
    for engine in built:
        record = load_record(engine.folder)
        before, after = record.seconds_load_before, record.seconds_load_after
        yield (
            f"{engine.component:<16}{engine.variant:<10}{format_bytes(engine.size_bytes):>10}"
            f"{before:>12.2f} s{after:>8.2f} s  {engine.folder}"
        )
