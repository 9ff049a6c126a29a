"""What there is on a machine: read by `reading`, judged by `findings` and `advice`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mutoscope.engines.cuda_device import GpuRecord
from mutoscope.runtime.doctor.jetson import Jetson

CUDA_BINDINGS = "cuda-bindings"
OPENVINO = "openvino"
TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"
# The first release that the TensorRT engines are written for, in JetPack from 6.1 on.
MIN_TENSORRT = (10, 3)
# What NVIDIA lists for TensorRT for RTX: neither Jetson Orin (sm87) nor data-centre GPUs (sm80,
# sm90, sm100).
RTX_COMPUTE_CAPABILITIES = ("sm75", "sm86", "sm89", "sm120", "sm121")
# TensorRT 11 and onnxruntime for CUDA 13 have no code for older GPUs.
_LEAST_COMPUTE_CAPABILITY = 75


@dataclass(frozen=True)
class System:
    """The machine itself; what is None or "" is not known.

    Attributes:
        name: Of the operating system, with its version.
        distribution: Its short names, the most particular first: ("ubuntu", "debian").
        machine: "x86_64", "aarch64", ...
        python: The version that runs.
        is_container: Whether this is inside of one.
        processor: Its name.
        instructions: Those that decide how fast matrices are multiplied.
        num_cores: As the system counts them.
        memory_bytes: In all.
        free_memory_bytes: What programs can still have.
        swap_bytes: On disk or compressed in memory.
        cache: Where engines go that cannot lie in their bundle.
        is_cache_writable: Whether it, or what it would be made in, can be written.
        free_disk_bytes: There.
    """

    name: str
    machine: str
    python: str
    cache: Path
    distribution: tuple[str, ...] = ()
    is_container: bool = False
    processor: str = ""
    instructions: tuple[str, ...] = ()
    num_cores: int | None = None
    memory_bytes: int | None = None
    free_memory_bytes: int | None = None
    swap_bytes: int | None = None
    is_cache_writable: bool = True
    free_disk_bytes: int | None = None


@dataclass(frozen=True)
class Graphics:
    """The NVIDIA GPUs.

    Attributes:
        gpus: Those that can be used, or that the system names.
        problem: Why there are none although there is something of them; "" otherwise.
        is_on_bus: Whether there is such a GPU, with or without a driver.
        driver_version: "" without a driver.
        driver_cuda: The highest version of CUDA that the driver takes, such as (12, 6), or (12,)
            where only that is known; () without a driver.
        cuda_problem: Why CUDA does not start although cuda-bindings is there; "" otherwise.
    """

    gpus: tuple[GpuRecord, ...] = ()
    problem: str = ""
    is_on_bus: bool = False
    driver_version: str = ""
    driver_cuda: tuple[int, ...] = ()
    cuda_problem: str = ""


@dataclass(frozen=True)
class Package:
    """A Python package.

    Attributes:
        version: "" if it is absent.
        problem: Why it is there and cannot be used, in one line; "" otherwise.
        cuda: The major version of CUDA that it was built for; None if it does not say.
    """

    version: str = ""
    problem: str = ""
    cuda: int | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it is there and can be used."""
        return bool(self.version) and not self.problem


@dataclass(frozen=True)
class Onnxruntime:
    """What fills the folder onnxruntime.

    Attributes:
        packages: The versions of the packages that do, by name; two get into each other's way.
        problem: Why it cannot be imported; "" if it can.
        execution_providers: The short names of those that can be asked for.
        plugins: The packages that bring more of them, by the short name of what they bring.
    """

    packages: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    execution_providers: tuple[str, ...] = ()
    plugins: Mapping[str, Package] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """All that was read.

    Attributes:
        system: The machine itself.
        jetson: None if it is none.
        graphics: Its NVIDIA GPUs.
        packages: CUDA_BINDINGS, TENSORRT, TENSORRT_RTX, OPENVINO.
        onnxruntime: What it can run on.
        precisions: What OpenVINO computes in here.
    """

    system: System
    jetson: Jetson | None = None
    graphics: Graphics = Graphics()
    packages: Mapping[str, Package] = field(default_factory=dict)
    onnxruntime: Onnxruntime = Onnxruntime()
    precisions: tuple[str, ...] = ()

    def find_package(self, name: str) -> Package:
        """Return what is known of a package."""
        return self.packages.get(name, Package())

    @property
    def compute_capability(self) -> str:
        """Of the GPU that engines run on, the first: "sm86"; "" if it is not known."""
        of_gpus = [gpu.compute_capability for gpu in self.graphics.gpus[:1]]
        chip = self.jetson.compute_capability if self.jetson else ""
        return next(filter(None, [*of_gpus, chip]), "")

    @property
    def takes_tensorrt(self) -> bool:
        """Whether TensorRT is for the GPU of this machine; so it is taken of one unknown."""
        number = self.compute_capability.removeprefix("sm")
        return self.has_gpu and (not number or int(number) >= _LEAST_COMPUTE_CAPABILITY)

    @property
    def takes_rtx(self) -> bool:
        """Whether TensorRT for RTX is for the GPU of this machine."""
        return self.jetson is None and self.compute_capability in RTX_COMPUTE_CAPABILITIES

    @property
    def has_gpu(self) -> bool:
        """Whether an NVIDIA GPU can be used here once the packages are there."""
        graphics = self.graphics
        return bool(graphics.gpus or graphics.driver_version) or self.jetson is not None
