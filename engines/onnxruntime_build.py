"""Do once, in files, what onnxruntime does with a graph whenever it loads one.

A built graph is optimised, its weights are laid out for this processor, and they lie beside it as
onnxruntime wants them in memory: it loads in a third of the time, and the weights stay in their
file, from which they are mapped. It is good for one version of onnxruntime and one kind of
processor only, which `make_build_key` names; it must not be loaded under any other key.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mutoscope.engines.engine import Array, Tensors
from mutoscope.engines.errors import EngineError
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine, write_optimized

GRAPH_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
# Both sessions run the same kernels on the same weights; what this allows is another order of sums.
MAX_RELATIVE_ERROR = 1e-5

_CPUINFO = Path("/proc/cpuinfo")
_KEY_DIGITS = 8


@dataclass(frozen=True)
class BuildReport:
    """What building a graph gave.

    Attributes:
        seconds_load_before: Time to load the graph as it was, in seconds.
        seconds_load_after: Time to load the built one.
        max_relative_error: How far their outputs are apart, relative to the largest value.
    """

    seconds_load_before: float
    seconds_load_after: float
    max_relative_error: float


@functools.cache
def make_build_key() -> str:
    """Return where graphs that are built here are good: `onnxruntime-1.32.0-linux-x86_64-1a2b3c4d`.

    The last part stands for what the processor can do; where that cannot be read, for this
    computer.
    """
    import onnxruntime

    features = platform.processor() + platform.node()
    if _CPUINFO.is_file():
        lines = _CPUINFO.read_text(errors="replace").splitlines()
        # "flags" on x86, "Features" on Arm; the same for all cores that a program may run on.
        wanted = (line for line in lines if line.lower().startswith(("flags", "features")))
        features = next(wanted, features)
    digest = hashlib.sha256(features.encode()).hexdigest()[:_KEY_DIGITS]
    system, machine = platform.system().lower(), platform.machine().lower()
    return f"onnxruntime-{onnxruntime.__version__}-{system}-{machine}-{digest}"


def build_graph(source: Path, folder: Path, feeds: Mapping[str, Array]) -> BuildReport:
    """Write the graph at `source`, built for this machine, and prove that it does the same.

    Args:
        source: The ONNX file; its external data is found beside it.
        folder: An empty folder, which gets GRAPH_NAME and DATA_NAME; the data may be up to twice as
            large as the weights in float32.
        feeds: Inputs that both graphs are run on.

    Raises:
        EngineError: onnxruntime does not load or write the graph, or the results differ.
    """
    write_optimized(source, folder / GRAPH_NAME, DATA_NAME)
    seconds_before, expected = _load_and_run(source, feeds, is_built=False)
    seconds_after, actual = _load_and_run(folder / GRAPH_NAME, feeds, is_built=True)
    errors = (_find_relative_error(expected[name], actual[name]) for name in expected)
    report = BuildReport(seconds_before, seconds_after, max(errors, default=0.0))
    # Written so that it holds for NaN too.
    if not report.max_relative_error <= MAX_RELATIVE_ERROR:
        raise EngineError(
            f"{source.parent.name}/{source.name}: the built graph differs by "
            f"{report.max_relative_error:.2g} of the largest value, at most "
            f"{MAX_RELATIVE_ERROR:g} is allowed: use the graph as it is, and report this"
        )
    return report


def _load_and_run(
    path: Path, feeds: Mapping[str, Array], *, is_built: bool
) -> tuple[float, Tensors]:
    """The time that loading took, and the outputs."""
    start = time.perf_counter()
    engine = OnnxruntimeEngine(path, is_built=is_built)
    seconds = time.perf_counter() - start
    try:
        return seconds, engine.run(feeds)
    finally:
        engine.close()


def _find_relative_error(expected: Array, actual: Array) -> float:
    if expected.shape != actual.shape:
        return float("inf")
    difference = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    largest = np.abs(expected).max(initial=0)
    return (
        float(difference.max(initial=0) / largest) if largest else float(difference.max(initial=0))
    )
