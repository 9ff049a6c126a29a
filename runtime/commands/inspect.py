"""`mutoscope inspect`: what a bundle is and what it allows."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import click

from mutoscope.runtime.baked_prompts import load_baked_prompts
from mutoscope.runtime.built_engines import BuiltEngine, find_built
from mutoscope.runtime.bundle import Bundle, describe_counts, find_external_data
from mutoscope.runtime.manifest import (
    ComponentRecord,
    DefaultsRecord,
    LimitRecord,
    Manifest,
    TensorRecord,
)
from mutoscope.runtime.windows import can_have_windows

_LABEL_WIDTH = 14
_TEXT_WIDTH = 84

_EPILOG = """\b
Examples:
  mutoscope inspect bundle
  mutoscope inspect bundle --json
"""


@click.command(epilog=_EPILOG)
@click.argument("bundle", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as one JSON object.")
def inspect(bundle: str | None, as_json: bool) -> None:
    """Show what a bundle is and what it allows.

    BUNDLE is its folder; left out, it is the bundle that ships with mutoscope. Sizes of files are
    checked, their content is not: for that there is mutoscope verify.
    """
    opened = Bundle.default() if bundle is None else Bundle.open(bundle)
    if as_json:
        click.echo(json.dumps(opened.manifest.to_json()))
    else:
        click.echo("\n".join(describe_bundle(opened)))


def describe_bundle(bundle: Bundle) -> Iterator[str]:
    """Yield the lines of a summary for people."""
    manifest = bundle.manifest
    total = sum(file.size_bytes for file in manifest.files.values())
    yield f"{manifest.name}: {manifest.family}, {len(manifest.files)} files, {format_bytes(total)}"
    yield ""
    yield "components"
    for name, component in manifest.components.items():
        yield from _describe_component(manifest, name, component)
        yield from _describe_built(bundle, name)
    yield ""
    yield "limits"
    for name in ("height", "width", "num_frames"):
        yield _line(name, describe_limit(manifest, name))
    yield from _describe_conditions(bundle)
    yield ""
    yield "defaults"
    defaults = manifest.defaults
    steps = f"{defaults.scheduler}, {defaults.num_inference_steps} steps"
    yield _line("scheduler", steps)
    yield _line("guidance scale", _describe_guidance(defaults))
    size = f"{defaults.num_frames} frames of {defaults.height} x {defaults.width} pixels"
    yield _line("clip", f"{size} at {defaults.frame_rate:g} frames per second")
    if defaults.negative_prompt:
        yield _line("negative", repr(defaults.negative_prompt))
    yield ""
    yield "schedulers (steps)"
    for name, tables in manifest.schedules.items():
        counts = describe_counts(sorted(int(count) for count in tables))
        yield f"  {name}: {counts}"
    if manifest.provenance:
        yield ""
        yield "provenance"
        yield from _describe_provenance(manifest.provenance)


def _describe_conditions(bundle: Bundle) -> Iterator[str]:
    manifest, baked = bundle.manifest, load_baked_prompts(bundle)
    count = 0 if baked is None else len(baked.texts)
    if manifest.tokenizers:
        length = min(record.max_length for record in manifest.tokenizers.values())
        more = f"; {count} baked" if count else ""
        yield _line("prompt", f"up to {length} tokens, with those the tokenizer adds{more}")
    else:
        yield _line("prompt", f"one of {count} baked, without a text encoder" if count else "none")
    yield _line("image", "one, which the video starts from" if manifest.images else "none")
    yield _line("guidance", "yes" if manifest.guidance else "no")
    for name, record in manifest.conditions.items():
        reach = f"{record.minimum:g} to {record.maximum:g}, {record.default:g} if not given"
        yield _line(name, f"{reach}: {record.description}" if record.description else reach)


def _describe_guidance(defaults: DefaultsRecord) -> str:
    if defaults.min_guidance_scale is None:
        return f"{defaults.guidance_scale:g}"
    return (
        f"{defaults.min_guidance_scale:g} at the first frame, rising to "
        f"{defaults.guidance_scale:g} at the last"
    )


def describe_limit(manifest: Manifest, name: str) -> str:
    """Return the values that `height`, `width` or `num_frames` may take, in words."""
    limit: LimitRecord = getattr(manifest.limits, name)
    reach = f"{limit.minimum} to {limit.maximum}" if limit.maximum else f"{limit.minimum} and more"
    if name == "num_frames" and limit.maximum and can_have_windows(manifest):
        reach += " at once, longer in windows"
    if limit.multiple == 1:
        return reach
    rule = f"multiples of {limit.multiple}" + (f" plus {limit.offset}" if limit.offset else "")
    return f"{reach}, {rule}"


def format_bytes(count: int) -> str:
    """Return a size for people: `3.4 MB`."""
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _describe_component(manifest: Manifest, name: str, component: ComponentRecord) -> Iterator[str]:
    yield f"  {name}"
    for variant, graph in component.variants.items():
        default = ", the default" if variant == component.default_variant else ""
        yield f"    {variant}: {graph}, {_describe_size(manifest, component, graph)}{default}"
        cpu_graph = component.find_cpu_graph(variant)
        if cpu_graph != graph:
            size = _describe_size(manifest, component, cpu_graph, graph)
            yield f"    {variant} for processors: {cpu_graph}, {size}"
    for kind, tensors in (("takes", component.inputs), ("returns", component.outputs)):
        for tensor_name, tensor in tensors.items():
            yield f"    {kind} {tensor_name}: {_describe_tensor(tensor)}"
    if component.parity:
        worst = min(component.parity, key=lambda record: record.psnr_db)
        yield (
            f"    parity with the checkpoint: {worst.psnr_db:.1f} dB PSNR, largest error "
            f"{max(record.max_abs_error for record in component.parity):.2g}, at worst of "
            f"{len(component.parity)} sets of shapes"
        )


def _describe_size(
    manifest: Manifest, component: ComponentRecord, graph: str, beside: str | None = None
) -> str:
    """The size of a graph with its data, which it may share with the one that it lies beside."""
    if component.weights_of is not None:
        size = format_bytes(manifest.files[graph].size_bytes)
        return f"{size} beside the weights of {component.weights_of}"
    data = find_external_data(manifest, component, graph)
    is_shared = (
        bool(data)
        and beside is not None
        and data == find_external_data(manifest, component, beside)
    )
    files = [graph] if is_shared else [graph, *data]
    size = format_bytes(sum(manifest.files[file].size_bytes for file in files))
    return f"{size} beside the same weights" if is_shared else size


def _describe_built(bundle: Bundle, name: str) -> Iterator[str]:
    for built in find_built(bundle, name):
        use = f"not used ({built.problem})" if built.problem else _describe_use(built)
        source = f" of {built.variant}" if built.variant else ""
        yield f"    built: {format_bytes(built.size_bytes)}{source}, {use}, {built.folder}"


def _describe_use(built: BuiltEngine) -> str:
    """Where a built engine is used, and how fast it was there."""
    if built.proof is None:
        return "used on this machine's CPU"
    return f"used with --engine {built.engine}, {1e3 * built.proof.seconds_run:.2f} ms a run"


def _describe_tensor(tensor: TensorRecord) -> str:
    return f"{tensor.dtype} [{', '.join(str(length) for length in tensor.shape)}]"


def _describe_provenance(provenance: dict[str, Any]) -> Iterator[str]:
    for name, value in provenance.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        yield _line(
            name, textwrap.shorten(str(value), _TEXT_WIDTH, placeholder=" ... (see --json)")
        )


def _line(label: str, text: str) -> str:
    return f"  {label:<{_LABEL_WIDTH}} {text}"
