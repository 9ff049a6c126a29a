"""The GPUs of this machine, and the versions of their driver and of CUDA.

Nothing imports `cuda` at start; without a driver its functions return errors, which become
`EngineError` in one line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mutoscope.engines.errors import EngineError

if TYPE_CHECKING:
    from cuda.bindings.runtime import cudaError_t

CUDA_INSTALL_HINT = (
    "pip install cuda-bindings, of the driver's major CUDA version or older (on JetPack 6: "
    "pip install 'cuda-bindings>=12.6,<13')"
)
# The kernel module says its version here, on desktops and on Jetsons.
_DRIVER_VERSION = Path("/sys/module/nvidia/version")


@dataclass(frozen=True)
class GpuRecord:
    """One GPU.

    Attributes:
        name: As its driver calls it, "NVIDIA GeForce RTX 3060".
        compute_capability: What it can run, "sm86".
        memory_bytes: All of its memory; that of the whole machine if it is integrated.
        is_integrated: Whether it shares the memory of the processor, as on a Jetson.
        driver_version: "580.65.06"; empty where the driver does not say.
    """

    name: str
    compute_capability: str
    memory_bytes: int
    is_integrated: bool
    driver_version: str


@dataclass(frozen=True)
class CudaVersions:
    """The newest CUDA that the driver runs, and the one that cuda-bindings was made for.

    Attributes:
        driver: "13.0"; None without a driver.
        runtime: "12.9".
    """

    driver: str | None
    runtime: str


def list_gpus() -> tuple[GpuRecord, ...]:
    """Return the GPUs of this machine, the one that engines run on first.

    Raises:
        EngineError: There is none, or no driver, or cuda-bindings is not installed.
    """
    check_cuda_is_installed()
    from cuda.bindings import runtime

    error, count = runtime.cudaGetDeviceCount()
    versions = find_cuda_versions()
    if versions.driver is None:
        raise EngineError(
            "no NVIDIA driver was found in this machine: install it, or use engine 'onnxruntime'"
        )
    if error == runtime.cudaError_t.cudaErrorInsufficientDriver:
        raise EngineError(
            f"the NVIDIA driver is for CUDA {versions.driver}, cuda-bindings for CUDA "
            f"{versions.runtime}: update the driver, or {CUDA_INSTALL_HINT}"
        )
    if error != runtime.cudaError_t.cudaSuccess or not count:
        raise EngineError(
            f"no NVIDIA GPU was found in this machine ({_describe(error)}): use engine "
            "'onnxruntime'"
        )
    driver_version = find_driver_version()
    return tuple(_read_gpu(index, driver_version) for index in range(count))


def find_cuda_versions() -> CudaVersions:
    """Return the versions of CUDA; raises `EngineError` without cuda-bindings."""
    check_cuda_is_installed()
    from cuda.bindings import runtime

    error, driver = runtime.cudaDriverGetVersion()
    check_cuda("asking for the driver's version", error)
    error, version = runtime.cudaRuntimeGetVersion()
    check_cuda("asking for the version of CUDA", error)
    # Without a driver its version is 0.
    return CudaVersions(_format_version(driver) if driver else None, _format_version(version))


def find_driver_version() -> str:
    """Return the version of the NVIDIA driver, "580.65.06"; empty if it is not known."""
    if _DRIVER_VERSION.is_file():
        return _DRIVER_VERSION.read_text().strip()
    try:
        import pynvml
    except ImportError:
        return ""
    try:
        pynvml.nvmlInit()
        version = str(pynvml.nvmlSystemGetDriverVersion())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return ""
    return version


def check_cuda_is_installed() -> None:
    """Raise `EngineError` if cuda-bindings is not installed."""
    try:
        from cuda.bindings import runtime  # noqa: F401
    except ImportError as err:
        raise EngineError(f"cuda.bindings cannot be imported ({err}): {CUDA_INSTALL_HINT}") from err


def check_cuda(action: str, error: cudaError_t) -> None:
    """Raise `EngineError` if a call of CUDA failed; `action` is what it was to do, "copying"."""
    from cuda.bindings import runtime

    if error != runtime.cudaError_t.cudaSuccess:
        raise EngineError(f"{action} failed: {_describe(error)}")


def _read_gpu(index: int, driver_version: str) -> GpuRecord:
    from cuda.bindings import runtime

    error, properties = runtime.cudaGetDeviceProperties(index)
    check_cuda(f"asking what GPU {index} is", error)
    return GpuRecord(
        name=properties.name.rstrip(b"\0").decode(),
        compute_capability=f"sm{properties.major}{properties.minor}",
        memory_bytes=properties.totalGlobalMem,
        is_integrated=bool(properties.integrated),
        driver_version=driver_version,
    )


def _describe(error: cudaError_t) -> str:
    from cuda.bindings import runtime

    _, text = runtime.cudaGetErrorString(error)
    return f"{text.decode()}, {error.name}"


def _format_version(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
