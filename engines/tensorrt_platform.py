"""Where a TensorRT plan is good, and whether that is here.

A plan is machine code for one kind of GPU, laid out by one version of TensorRT. What does not match
must not be loaded: at best TensorRT refuses it, at worst it is slower or wrong.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from mutoscope.engines.cuda_device import list_gpus
from mutoscope.engines.errors import EngineError
from mutoscope.engines.tensorrt_build import CURRENT, TensorrtBuildOptions
from mutoscope.engines.tensorrt_module import TENSORRT_RTX, TITLES, find_version
from mutoscope.engines.versions import parse_target, parse_version

# What TensorRT for RTX builds for if it is told no GPU, and all that are newer than the last.
_RTX_TARGETS = (80, 86, 89, 120)
# Ampere: what AMPERE_PLUS begins with.
_LEAST_COMPATIBLE = 80
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class EnginePlatform:
    """What a plan was built with and for.

    Attributes:
        engine: "tensorrt" or "tensorrt-rtx".
        version: That of TensorRT, "10.3.0".
        system: The operating system and the processor, "linux-aarch64".
        target: The GPU, "sm86"; the oldest, where it is for more than one.
        version_compatible: Whether newer versions of TensorRT, to the next major one, run it.
        hardware_compatible: Whether newer GPUs run it.
    """

    engine: str
    version: str
    system: str
    target: str
    version_compatible: bool = False
    hardware_compatible: bool = False


def make_platform(engine_name: str, options: TensorrtBuildOptions) -> EnginePlatform:
    """Return what a plan that is built here with these options is good for.

    Raises:
        EngineError: TensorRT is not installed; or it is to build for this machine's GPU, and there
            is none.
    """
    return EnginePlatform(
        engine=engine_name,
        version=find_version(engine_name),
        system=find_system(),
        target=_find_target(engine_name, options),
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
    )


def find_misfit(built: EnginePlatform) -> str | None:
    """Return why a plan that was built so is not to be loaded on this machine; None if it may."""
    try:
        here = make_platform(built.engine, TensorrtBuildOptions())
    except EngineError as err:
        return str(err)
    return compare_platforms(built, here)


def compare_platforms(built: EnginePlatform, here: EnginePlatform) -> str | None:
    """Return why a plan that was built so is not for a machine that builds plans like `here`.

    Args:
        built: What the plan was built with and for.
        here: What the machine builds for its own GPU; it says the engine, version and GPU it has.
    """
    title = TITLES.get(built.engine, built.engine)
    if built.engine != here.engine:
        return f"it is for {title}, and {TITLES.get(here.engine, here.engine)} is to run it"
    # A plan of TensorRT for RTX holds no code for the processor.
    is_portable = built.engine == TENSORRT_RTX
    if built.system != here.system and not is_portable:
        return f"it was built on {built.system}, this is {here.system}"
    if not _has_fitting_version(built, here.version):
        return f"it was built by {title} {built.version}, here is {here.version}"
    if not _has_fitting_gpu(built, here.target):
        newer = " and newer GPUs" if built.hardware_compatible else ""
        return f"it was built for {built.target}{newer}, the GPU here is {here.target}"
    return None


def find_system() -> str:
    """Return the operating system and processor of this machine, "linux-x86_64"."""
    machine = platform.machine().lower()
    return f"{platform.system().lower()}-{_MACHINES.get(machine, machine)}"


def _find_target(engine_name: str, options: TensorrtBuildOptions) -> str:
    """The GPU that a plan will be for, or the oldest of them."""
    if options.target != CURRENT:
        return options.target
    if options.hardware_compatible and engine_name == TENSORRT_RTX:
        return f"sm{_RTX_TARGETS[0]}"
    target = list_gpus()[0].compute_capability
    return f"sm{_LEAST_COMPATIBLE}" if options.hardware_compatible else target


def _has_fitting_version(built: EnginePlatform, version: str) -> bool:
    if not built.version_compatible:
        return built.version == version
    least, actual = parse_version(built.version), parse_version(version)
    return least[:1] == actual[:1] and least <= actual


def _has_fitting_gpu(built: EnginePlatform, target: str) -> bool:
    if not built.hardware_compatible:
        return built.target == target
    number = parse_target(target)
    if built.engine == TENSORRT_RTX:
        return number in _RTX_TARGETS or number > _RTX_TARGETS[-1]
    return number >= _LEAST_COMPATIBLE
