"""The GPU that benchmarks/gpu.py runs on: what it is, and how much of its memory is taken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Final

from mutoscope.engines.cuda_device import check_cuda, find_cuda_versions, list_gpus
from mutoscope.engines.cuda_memory import CudaStream, DeviceBuffer
from mutoscope.engines.engine import Array
from mutoscope.engines.options import TENSORRT_MODULES
from mutoscope.engines.tensorrt_module import TITLES, find_version
from mutoscope.runtime.errors import EngineError

_NUM_COPIES: Final = 50


def describe_gpu() -> dict[str, Any]:
    """Return the first GPU and the versions of what runs on it, as JSON can hold them.

    Raises:
        EngineError: There is no GPU, no driver, or cuda-bindings is not installed.
    """
    gpu, versions = list_gpus()[0], find_cuda_versions()
    return {
        **asdict(gpu),
        "cuda_driver": versions.driver,
        "cuda_runtime": versions.runtime,
        **{name: _find_version(name) for name in TENSORRT_MODULES},
    }


def format_gpu(gpu: dict[str, Any] | None) -> str:
    """Return a GPU of `describe_gpu` as one line for people; None is that there is none."""
    if gpu is None:
        return "No GPU: a trial of the command on the CPU."
    libraries = ", ".join(
        f"{TITLES[name]} {gpu[name]}" if gpu[name] else f"no {TITLES[name]}"
        for name in TENSORRT_MODULES
    )
    shared = " shared with the processor" if gpu["is_integrated"] else ""
    return (
        f"{gpu['name']} ({gpu['compute_capability']}), {gpu['memory_bytes'] / 2**30:.0f} GiB"
        f"{shared}; driver {gpu['driver_version'] or 'of unknown version'} for CUDA "
        f"{gpu['cuda_driver']}, {libraries}"
    )


def read_device_memory() -> int:
    """Return the bytes that are taken on the first GPU, by whatever process."""
    from cuda.bindings import runtime

    error, free, total = runtime.cudaMemGetInfo()
    check_cuda("asking for the memory of the GPU", error)
    return int(total - free)


def measure_copies(inputs: Iterable[Array], outputs: Iterable[Array]) -> float:
    """Return the median seconds that our TensorRT engine takes to copy these arrays, alone.

    Args:
        inputs: What a graph is fed, to the GPU.
        outputs: What it returns, from there; overwritten.
    """
    stream = CudaStream()
    copies = []
    for arrays, name in ((inputs, "copy_from"), (outputs, "copy_to")):
        for array in arrays:
            buffer = DeviceBuffer(stream)
            buffer.grow(array.nbytes)
            copies.append((getattr(buffer, name), array))
    seconds = []
    for _ in range(_NUM_COPIES):
        started = time.perf_counter()
        for copy, array in copies:
            copy(array)
        stream.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _find_version(engine_name: str) -> str | None:
    """The version of a TensorRT, None where it is not installed."""
    try:
        return find_version(engine_name)
    except EngineError:
        return None
