"""What `mutoscope build` says of what it built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mutoscope.runtime.built_engines import BuiltEngine
from mutoscope.runtime.commands.inspect import format_bytes
from mutoscope.runtime.json_records import write_record


def make_built_record(built: BuiltEngine) -> dict[str, Any]:
    """Return what is known of a built engine, for JSON."""
    return {
        **write_record(built.record),
        "variant": built.variant,
        "folder": str(built.folder),
        "size_bytes": built.size_bytes,
        "proof": write_record(built.proof),
        "problem": built.problem,
    }


def describe_built(all_built: list[BuiltEngine]) -> Iterator[str]:
    """Yield a table, and what is to be done with what is in it."""
    if all(built.record is not None and built.record.load for built in all_built):
        yield from _describe_loads(all_built)
        return
    yield (
        f"{'component':<16}{'variant':<10}{'size':>10}{'built in':>11}{'against CPU':>13}"
        f"{'a run':>11}{'memory':>10}  folder"
    )
    for built in all_built:
        proof, record = built.proof, built.tensorrt
        closeness = f"{proof.psnr_db:.1f} dB" if proof else "-"
        time = f"{1e3 * proof.seconds_run:.2f} ms" if proof else "-"
        memory = format_bytes(sum(proof.memory_bytes.values())) if proof else "-"
        yield (
            f"{built.component:<16}{built.variant:<10}{format_bytes(built.size_bytes):>10}"
            f"{record.seconds_build if record else 0:>9.1f} s{closeness:>13}{time:>11}"
            f"{memory:>10}  {built.folder}"
        )
    yield from _describe_choices(all_built)
    for problem in dict.fromkeys(built.problem for built in all_built if built.problem):
        names = [f"{b.component} ({b.variant})" for b in all_built if b.problem == problem]
        yield f"not used here: {', '.join(names)}: {problem}"


def _describe_choices(all_built: list[BuiltEngine]) -> Iterator[str]:
    """Yield a line for each component of which several variants can be used."""
    for name in dict.fromkeys(built.component for built in all_built):
        usable = [b for b in all_built if b.component == name and b.proof and b.problem is None]
        times = {built.variant: built.proof.seconds_run for built in usable if built.proof}
        if len(times) > 1:
            fastest = min(times, key=lambda variant: times[variant])
            listed = ", ".join(f"{variant} {1e3 * s:.2f} ms" for variant, s in times.items())
            yield f"{name}: {listed}: generate --engine auto takes {fastest} of these"


def _describe_loads(all_built: list[BuiltEngine]) -> Iterator[str]:
    """Yield a table of what was built for onnxruntime."""
    yield f"{'component':<16}{'variant':<10}{'size':>10}{'load before':>14}{'after':>10}  folder"
    for built in all_built:
        load = built.record and built.record.load
        if load:
            before, after = load.seconds_load_before, load.seconds_load_after
            yield (
                f"{built.component:<16}{built.variant:<10}{format_bytes(built.size_bytes):>10}"
                f"{before:>12.2f} s{after:>8.2f} s  {built.folder}"
            )
