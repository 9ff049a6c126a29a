"""What benchmarks/gpu.py measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_device import format_gpu
from mutoscope.runtime.benchmarks.machine import format_machine
from mutoscope.runtime.benchmarks.tables import format_seconds

_MIB = 2**20
_COLUMNS = (
    "what runs",
    "in",
    "a step, median",
    "minimum",
    "speed",
    "copies",
    "a clip, median",
    "minimum",
    "first clip",
    "build",
    "GPU memory",
    "host memory",
    "PSNR",
)


def describe(record: dict[str, Any]) -> Iterator[str]:
    """Yield the machine, what all made, a table of the rows that ran, and why others did not."""
    yield format_machine(record["machine"])
    yield ""
    yield format_gpu(record["gpu"])
    yield ""
    yield (
        f"{record['bundle']}: {record['num_frames']} frames of {record['height']} x "
        f"{record['width']} pixels in {record['num_inference_steps']} steps, without guidance. "
        f"Rounds in turn: {record['rounds']}, of {record['clips']} clips each after one that is "
        "dropped."
    )
    yield ""
    if record["rows"]:
        yield f"| {' | '.join(_COLUMNS)} |"
        yield "| --- | --- |" + " ---: |" * (len(_COLUMNS) - 2)
        for row in record["rows"]:
            yield _format_row(row, record["rows"][0])
    else:
        yield "Nothing could run here."
    if record["not_run"]:
        yield ""
        yield "Not run here:"
        yield ""
        dtypes: dict[tuple[str, str], list[str]] = {}
        for row in record["not_run"]:
            dtypes.setdefault((row["name"], row["reason"]), []).append(row["dtype"])
        for (name, reason), listed in dtypes.items():
            yield f"- {name} in {', '.join(listed)}: {reason}"


def _format_row(row: dict[str, Any], first: dict[str, Any]) -> str:
    step, clip, copies = row["seconds_step"], row["seconds_clip"], row["seconds_copies"]
    cells = (
        row["name"],
        row["dtype"],
        format_seconds(step["median"]),
        format_seconds(step["minimum"]),
        f"{first['seconds_step']['median'] / step['median']:.2f} x",
        "-" if copies is None else f"{copies / step['median']:.1%}",
        format_seconds(clip["median"]),
        format_seconds(clip["minimum"]),
        format_seconds(row["seconds_first_clip"]),
        format_seconds(row["seconds_build"]),
        _format_memory(row["peak_device_bytes"]),
        _format_memory(row["peak_rss_bytes"]),
        f"{row['psnr_db']:.1f} dB",
    )
    return f"| {' | '.join(cells)} |"


def _format_memory(count: int | None) -> str:
    return "-" if count is None else f"{count / _MIB:.0f} MiB"
