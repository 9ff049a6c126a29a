"""Write the tables of documents from the figures in benchmarks/results/.

    python -m benchmarks.document

Each table stands between `<!-- results: NAME -->` and `<!-- end -->`, where NAME is a file there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks import (
    calibration_memory,
    cpu_rewrites,
    engine_overhead,
    gpu_table,
    int8_methods,
    layer_sensitivity,
    long_clips,
    native_runtime,
    operator_profile,
    session_start,
    speed_table,
    variant_quality,
)
from mutoscope.runtime.benchmarks.machine import format_machine
from mutoscope.runtime.benchmarks.records import Results
from mutoscope.runtime.benchmarks.tables import format_results, format_seconds
from mutoscope.runtime.json_records import read_record

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "benchmarks" / "results"
DOCUMENTS: Final = tuple(
    ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "quantization", "speed")
)
_PART: Final = re.compile(r"(<!-- results: ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MIB: Final = 2**20


def fill_document(text: str) -> str:
    """Return the document with its tables made anew; those without figures stay empty."""

    def fill(match: re.Match[str]) -> str:
        path = RESULTS / f"{match[2]}.json"
        if not path.is_file():
            return f"{match[1]}{match[3]}"
        record = json.loads(path.read_text(encoding="utf-8"))
        kind = next(kind for kind in FORMATS if match[2].startswith(kind))
        return "\n".join((match[1], *FORMATS[kind](record), "", match[3]))

    return _PART.sub(fill, text)


def write_documents() -> None:
    """Bring the documents up to date."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        document.write_text(fill_document(text), encoding="utf-8")


def _format_against_peers(record: dict[str, Any]) -> Iterator[str]:
    yield from format_results(read_record(Results, record, "results"))


def _format_scaling(record: dict[str, Any]) -> Iterator[str]:
    yield format_machine(record["machine"])
    yield ""
    processes = f"median of {record['count']} processes" if record["count"] > 1 else "one process"
    yield f"{record['bundle']} with {record['engine']}, without guidance, {processes} a point"
    for varied in ("num_inference_steps", "num_frames", "height"):
        yield ""
        yield "| steps | frames | pixels | denoiser | whole clip | peak memory | anonymous |"
        yield "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
        for point in record["points"]:
            if point["varied"] == varied:
                yield _format_point(point)
    yield ""
    fits = record["fits"]
    for varied, label in (("num_inference_steps", "step"), ("num_frames", "frame")):
        fit = fits[varied]
        yield (
            f"- A {label} more takes {format_seconds(fit['slope'])} more in the denoiser; the "
            f"points are within {fit['largest_deviation']:.1%} of a straight line."
        )
    yield (
        f"- Time in the denoiser grows with the pixels to the power of "
        f"{fits['height']['exponent']:.2f}."
    )


def _format_point(point: dict[str, Any]) -> str:
    cells = (
        point["num_inference_steps"],
        point["num_frames"],
        f"{point['height']} x {point['width']}",
        format_seconds(point["seconds_denoiser"]),
        format_seconds(point["seconds_total"]),
        *(
            "-" if point[name] is None else f"{point[name] / _MIB:.0f} MiB"
            for name in ("peak_rss_bytes", "peak_anonymous_bytes")
        ),
    )
    return f"| {' | '.join(map(str, cells))} |"


FORMATS: Final[dict[str, Callable[[dict[str, Any]], Iterator[str]]]] = {
    "against-peers": _format_against_peers,
    "scaling": _format_scaling,
    "session-start": session_start.describe,
    "cpu-rewrites": cpu_rewrites.describe,
    "operator-profile": operator_profile.describe,
    "int8-speed": _format_against_peers,
    "int8-methods": int8_methods.describe,
    "layer-sensitivity": layer_sensitivity.describe,
    "variant-quality": variant_quality.describe,
    "calibration-memory": calibration_memory.describe,
    "engine-overhead": engine_overhead.describe,
    "gpu": gpu_table.describe,
    "native-runtime": native_runtime.describe,
    "speed": speed_table.describe,
    "long-clips": long_clips.describe,
}

if __name__ == "__main__":
    write_documents()
