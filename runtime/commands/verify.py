"""`mutoscope verify`: is a bundle whole, and does it work?"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mutoscope.engines.opening import check_available
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.commands.checkpoint_options import (
    check_needs_checkpoint,
    checkpoint_options,
)
from mutoscope.runtime.commands.options import engine_options, variant_option
from mutoscope.runtime.errors import BundleError, MutoscopeError
from mutoscope.runtime.verification import CheckResult, verify_bundle

_EPILOG = """\b
Examples:
  mutoscope verify bundle
  mutoscope verify bundle --checkpoint checkpoint
"""


@click.command(epilog=_EPILOG)
@click.argument("bundle", required=False)
@click.option(
    "--checkpoint",
    metavar="DIR",
    help="Compare each component with this checkpoint too, as the export does (needs "
    "mutoscope[export]).",
)
@checkpoint_options
@variant_option
@engine_options(default_memory="low")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def verify(
    bundle: str | None,
    checkpoint: str | None,
    variant: str | None,
    engine_options: EngineOptions,
    as_json: bool,
    **options: Any,
) -> None:
    """Check that a bundle is whole and works.

    BUNDLE is its folder; left out, it is the bundle that ships with mutoscope. Checked are: size
    and sha256 of every file, that the graphs of all variants load and are as the manifest says, the
    schedule tables, and a generation of the smallest size, on the engine that is named. With
    --engine tensorrt, tensorrt-rtx or auto, what was built is run on inputs of a generation and
    compared with onnxruntime on the CPU; what comes not close enough is never used. The exit code
    is 1 if anything fails. The options from --motion-adapter to --single-file-config are those
    that the export was given, for --checkpoint.
    """
    check_needs_checkpoint(checkpoint, options)
    check_available(engine_options)
    opened = Bundle.default() if bundle is None else Bundle.open(bundle)
    results = []
    for result in _run_all(opened, checkpoint, options, engine_options, variant):
        click.echo(format_result(result), err=True)
        results.append(result)
    failed = [result.name for result in results if not result.ok]
    if as_json:
        records = [dataclasses.asdict(result) | {"ok": result.ok} for result in results]
        click.echo(json.dumps({"bundle": str(opened.path), "ok": not failed, "checks": records}))
    elif not failed:
        click.echo(f"{opened.path} is whole and works ({len(results)} checks)")
    if failed:
        way_out = "" if engine_options.runs_plans else ": export again"
        raise BundleError(
            f"{len(failed)} of {len(results)} checks failed: {', '.join(failed)}{way_out}"
        )


def format_result(result: CheckResult) -> str:
    """Return a result as one line for people."""
    word = "ok    " if result.ok else "FAILED"
    detail = result.problem or result.note
    return f"{word} {result.name}" + (f": {detail}" if detail else "")


def _run_all(
    bundle: Bundle,
    checkpoint: str | None,
    options: dict[str, Any],
    engine_options: EngineOptions,
    variant: str | None,
) -> Iterator[CheckResult]:
    yield from verify_bundle(bundle, engine_options, variant)
    if checkpoint:
        yield from _compare_with_checkpoint(bundle.path, checkpoint, options)


def _compare_with_checkpoint(
    path: Path, checkpoint: str, options: dict[str, Any]
) -> Iterator[CheckResult]:
    # By name: the runtime may not depend on the export, which may not be installed.
    verification: Any = importlib.import_module("mutoscope.export.verification")
    try:
        parity = verification.compare_with_checkpoint(path, checkpoint, **options)
    except MutoscopeError as err:
        yield CheckResult("parity with the checkpoint", problem=str(err))
        return
    for name, records in parity.items():
        worst = min(records, key=lambda record: record.psnr_db)
        note = f"{worst.psnr_db:.1f} dB PSNR, largest error {worst.max_abs_error:.2g}"
        yield CheckResult(f"{name} equals the checkpoint", note=note)
