"""What became of a component in a calibration: what was tried, what was taken, and why."""

from __future__ import annotations

from dataclasses import dataclass

from mutoscope.calibration.layer_timing import GroupTiming
from mutoscope.calibration.trajectory import TrajectoryResult

SLOWER = "not faster in int8 here"
SLOWER_TOGETHER = "not faster in int8 together"
RESTORED = "put back for quality"
DYNAMIC = "dynamic"


@dataclass(frozen=True)
class Candidate:
    """One way to make a component int8, and how its clips came out.

    Attributes:
        method: How ranges are found: one of METHODS, or "dynamic".
        smoothed: Whether outliers were moved into weights.
        mean_psnr_db: Of the frames of the judged clips, as are `median_psnr_db` and
            `minimum_psnr_db`. By it the best candidate is chosen: some have a better median, and
            clips that came out badly.
        latents_error: Relative (L2), of the clean latents, the median.
    """

    method: str
    smoothed: bool
    mean_psnr_db: float
    median_psnr_db: float
    minimum_psnr_db: float
    latents_error: float


@dataclass(frozen=True)
class Choice:
    """What became of a component.

    Attributes:
        candidates: What was tried, with all layers that may be int8.
        chosen: Which of them was taken, with its figures after layers were put back.
        tensorrt: The same of the graph for TensorRT, run by onnxruntime on the CPU.
        processors_layers: The layers that are int8 in the graph for processors.
        tensorrt_layers: Those in the graph for TensorRT.
        float_layers: Why the others of the graph for processors are not.
        groups: What each group of layers costs.
        seconds_float: Of one pass of the component; as is `seconds_int8`.
        kept_in_float: Why the whole component stays in float; None if it does not.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    tensorrt: Candidate | None
    processors_layers: tuple[str, ...]
    tensorrt_layers: tuple[str, ...]
    float_layers: dict[str, str]
    groups: tuple[GroupTiming, ...]
    seconds_float: float
    seconds_int8: float
    kept_in_float: str | None = None


def make_candidate(method: str, smoothed: bool, result: TrajectoryResult) -> Candidate:
    """Return a candidate with the figures of its clips."""
    return Candidate(
        method,
        smoothed,
        round(result.mean_psnr_db, 2),
        round(result.median_psnr_db, 2),
        round(result.minimum_psnr_db, 2),
        float(f"{result.median_latents_error:.4g}"),
    )
