"""The results of a benchmark as Markdown, which reads well in a terminal too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mutoscope.runtime.benchmarks.machine import format_machine
from mutoscope.runtime.benchmarks.records import GuidanceRow, Results, Row

_MIB = 2**20
_NONE = "-"


def format_results(results: Results) -> Iterator[str]:
    """Yield the machine, and for each component a table and what was found of guidance."""
    yield format_machine(results.machine)
    yield ""
    yield (
        f"{results.bundle} ({results.family}), {results.num_frames} frames of {results.height} x "
        f"{results.width} pixels"
    )
    for component in dict.fromkeys(row.component for row in results.rows):
        rows = [row for row in results.rows if row.component == component]
        yield ""
        yield f"### {component}"
        yield ""
        yield from format_table(rows)
        guidance = [row for row in results.guidance if row.component == component]
        if guidance:
            yield ""
            yield from map(_describe_guidance, guidance)


def format_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table of one component."""
    has_errors = any(row.relative_l2_error is not None for row in rows)
    has_ratios = any(row.ratio is not None for row in rows)
    header = ["", "load", "first run", "run, median", "minimum", "peak memory", "anonymous"]
    header += ["error"] * has_errors + ["speed"] * has_ratios
    lines = [header]
    for row in rows:
        cells = [
            row.contestant,
            format_seconds(row.seconds_load.median),
            format_seconds(row.seconds_first_run),
            format_seconds(row.seconds_run.median),
            format_seconds(row.seconds_run.minimum),
            _format_memory(row.peak_rss_bytes),
            _format_memory(row.peak_anonymous_bytes),
        ]
        if has_errors:
            error = row.relative_l2_error
            cells.append(_NONE if error is None else f"{error:.1e}")
        if has_ratios:
            cells.append(_NONE if row.ratio is None else f"{row.ratio:.2f} x")
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    for line in lines:
        first, *rest = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        yield f"| {' | '.join(cells)} |"


def format_seconds(seconds: float) -> str:
    """Return a time with three digits: `1.31 s`, `43.1 ms`."""
    if seconds < 0.9995:
        return f"{seconds * 1e3:#.3g}".rstrip(".") + " ms"
    return f"{seconds:#.3g}".rstrip(".") + " s" if seconds < 100 else f"{seconds:.0f} s"


def _format_memory(count: int | None) -> str:
    return _NONE if count is None else f"{count / _MIB:.0f} MiB"


def _describe_guidance(row: GuidanceRow) -> str:
    separate, batched = row.seconds_separate.median, row.seconds_batched.median
    faster = "two passes are" if separate <= batched else "a batch of two is"
    gain = max(separate, batched) / min(separate, batched) - 1
    return (
        f"A step with guidance, {row.contestant}: two passes {format_seconds(separate)}, a batch "
        f"of two {format_seconds(batched)}: {faster} faster by {gain:.1%}."
    )
