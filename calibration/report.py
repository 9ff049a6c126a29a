"""What a calibration found, as people read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from mutoscope.calibration.calibrate import CalibratedComponent, CalibrationReport
from mutoscope.calibration.choice import Candidate
from mutoscope.runtime.commands.inspect import format_bytes


def format_report(report: CalibrationReport) -> Iterator[str]:
    """Yield the lines of a report."""
    yield (
        f"{report.bundle}: clips of {report.num_inference_steps} steps, {report.num_samples} "
        f"sampled and {report.num_judged} others judged; at least {report.min_psnr_db:g} dB"
    )
    for name, component in report.components.items():
        yield ""
        yield from _format_component(name, component)
    yield ""
    if report.together is None:
        yield "nothing is in int8: the bundle runs as before"
        return
    median, minimum = report.together
    yield f"all together: {median:.1f} dB (median), {minimum:.1f} dB (worst clip)"
    schedule = ""
    if report.scheduler is not None:
        schedule = f"--scheduler {report.scheduler} "
        schedule += f"--num-inference-steps {report.num_inference_steps} "
    yield (
        f'run it: mutoscope generate "..." --bundle {report.bundle} {schedule}--variant int8 '
        "-o out.mp4"
    )


def _format_component(name: str, component: CalibratedComponent) -> Iterator[str]:
    choice = component.choice
    if choice.kept_in_float is not None:
        yield f"{name}: stays in float ({choice.kept_in_float})"
    else:
        ratio = choice.seconds_float / choice.seconds_int8
        yield (
            f"{name}: {_describe(choice.chosen)}, "
            f"{choice.seconds_float * 1e3:.1f} -> {choice.seconds_int8 * 1e3:.1f} ms for a pass "
            f"({ratio:.2f} x), {format_bytes(component.size_float_bytes)} -> "
            f"{format_bytes(component.size_int8_bytes)}"
        )
        yield f"  in int8: {len(choice.processors_layers)} layers"
        if choice.tensorrt is not None:
            yield (
                f"  for TensorRT: {len(choice.tensorrt_layers)} layers, "
                f"{_describe(choice.tensorrt)} (run on the CPU; its speed was not measured)"
            )
    for reason, count in Counter(choice.float_layers.values()).most_common():
        yield f"  in float: {count} ({reason})"
    for candidate in choice.candidates:
        yield f"  tried {_describe(candidate)}, worst clip {candidate.minimum_psnr_db:.1f} dB"
    if component.reused:
        yield "  its calibration table was in the bundle already"


def _describe(candidate: Candidate) -> str:
    smoothed = " with outliers moved" if candidate.smoothed else ""
    return f"{candidate.method}{smoothed} {candidate.median_psnr_db:.1f} dB"
