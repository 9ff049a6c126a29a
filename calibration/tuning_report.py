"""What a tuning found, as people read it."""

from __future__ import annotations

from collections.abc import Iterator

from mutoscope.calibration.guidance_timing import GuidanceTiming
from mutoscope.calibration.tuning import TuningReport
from mutoscope.runtime.bundle import describe_counts
from mutoscope.runtime.commands.inspect import format_bytes
from mutoscope.runtime.progress import format_seconds


def format_report(report: TuningReport) -> Iterator[str]:
    """Yield the lines of a report."""
    yield (
        f"{report.bundle}: {report.name} is a plan for {report.scheduler} with "
        f"{report.num_inference_steps} steps in {report.variant}; {report.num_samples} samples, "
        f"at least {report.min_psnr_db:g} dB"
    )
    yield f"  rows that reuse features: {_describe_rows(report.reused_rows, report.num_rows)}"
    yield f"  rows without guidance: {_describe_rows(report.unguided_rows, report.num_rows)}"
    yield (
        f"  PSNR against {report.scheduler}: {report.median_psnr_db:.1f} dB (median), "
        f"{report.minimum_psnr_db:.1f} dB (worst clip)"
    )
    yield (
        f"  a clip: {report.seconds_before:.2f} -> {report.seconds_after:.2f} s "
        f"({report.seconds_before / report.seconds_after:.2f} x)"
    )
    passes = f"  a pass of the denoiser: {report.seconds_denoiser * 1e3:.1f} ms"
    if report.seconds_shallow:
        passes += f", with reused features {report.seconds_shallow * 1e3:.1f} ms"
    yield passes
    yield f"  guidance: {_describe_guidance(report)}"
    yield f"  found with {report.num_clips:g} clips in {format_seconds(report.seconds_total)}"
    variant = f" --variant {report.variant}" if report.chose_variant else ""
    yield (
        f'run it: mutoscope generate "..." --bundle {report.bundle} --scheduler {report.name} '
        f"--num-inference-steps {report.num_inference_steps}{variant} -o out.mp4"
    )


def _describe_rows(rows: tuple[int, ...], num_rows: int) -> str:
    where = f" ({describe_counts(list(rows))})" if rows else ""
    return f"{len(rows)} of {num_rows}{where}"


def _describe_guidance(report: TuningReport) -> str:
    timing = report.guidance_timing
    if timing is None:
        return f"{report.guidance_passes} passes, as before (not measured)"
    more = "" if timing.extra_bytes is None else f" and {format_bytes(timing.extra_bytes)} more"
    return (
        f"a row takes {timing.seconds_separate * 1e3:.1f} ms in separate passes, "
        f"{timing.seconds_batched * 1e3:.1f} ms{more} in a batch"
        f"{_explain_separate(report, timing)}; the bundle's default is {report.guidance_passes}"
    )


def _explain_separate(report: TuningReport, timing: GuidanceTiming) -> str:
    """Why passes are separate though a batch is faster."""
    if report.guidance_passes == "batched" or not timing.is_faster:
        return ""
    if timing.is_large:
        return ", which takes too much memory"
    return f", in which the plan does not reach {report.min_psnr_db:g} dB"
