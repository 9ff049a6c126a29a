"""Judge what was read of a machine: what is there, what it is good for, what would add the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mutoscope.engines.onnxruntime_providers import EXECUTION_PROVIDERS
from mutoscope.engines.versions import parse_version
from mutoscope.runtime.doctor import installing
from mutoscope.runtime.doctor.facts import (
    CUDA_BINDINGS,
    MIN_TENSORRT,
    OPENVINO,
    TENSORRT,
    TENSORRT_RTX,
    Facts,
    Package,
)
from mutoscope.runtime.doctor.jetson import Jetson, find_fastest_mode

State = Literal["ok", "absent", "broken"]

_BF16_INSTRUCTIONS = {"amx_bf16", "avx512_bf16", "bf16"}
_INT8_INSTRUCTIONS = {"amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp"}
_GIB = 2**30
# A bundle of 1.3 billion parameters with its engines; see docs/full-size.md.
_ROOMY_DISK_BYTES = 20 * _GIB
_LEAST_JETPACK, _LEAST_JETSON_LINUX = (6, 1), (36, 4)


@dataclass(frozen=True)
class Finding:
    """One thing of a machine.

    Attributes:
        section: What it belongs to.
        name: What it is.
        state: "absent" is not a fault; "broken" is there and cannot be used.
        detail: What was found, or why it cannot be used.
        good_for: The options that use it; "" for none.
        command: What adds or mends it on this machine, or makes it faster; "" for nothing.
    """

    section: str
    name: str
    state: State
    detail: str
    good_for: str = ""
    command: str = ""


def judge(facts: Facts) -> list[Finding]:
    """Return what there is to say of a machine, in sections."""
    return [
        *_judge_system(facts),
        *(_judge_jetson(facts.jetson) if facts.jetson else ()),
        *_judge_graphics(facts),
        *_judge_tensorrt(facts),
        *_judge_onnxruntime(facts),
        _judge_openvino(facts),
    ]


def format_gib(count: int | None) -> str:
    """Return a size in GiB, for people."""
    return "unknown" if count is None else f"{count / _GIB:.1f} GiB"


def is_jetpack_too_old(jetson: Jetson) -> bool:
    """Return whether TensorRT of this JetPack is older than 10.3, as before JetPack 6.1."""
    if jetson.release:
        return parse_version(jetson.release) < _LEAST_JETSON_LINUX
    return bool(jetson.jetpack) and parse_version(jetson.jetpack) < _LEAST_JETPACK


def _judge_system(facts: Facts) -> Iterator[Finding]:
    system = facts.system
    inside = ", in a container" if system.is_container else ""
    detail = f"{system.name}, {system.machine}{inside}; Python {system.python}"
    yield Finding("system", "system", "ok", detail)

    known = set(system.instructions)
    kinds = [
        *(["bfloat16"] if known & _BF16_INSTRUCTIONS else []),
        *(["int8"] if known & _INT8_INSTRUCTIONS else []),
    ]
    cores = f"{system.num_cores or 'unknown'} cores"
    listed = f" ({', '.join(system.instructions)})"
    special = f"; instructions for {' and '.join(kinds) or 'float32 only'}{listed}" if known else ""
    detail = f"{system.processor or system.machine}, {cores}{special}"
    yield Finding("system", "processor", "ok", detail)

    shared = ", shared with the GPU" if facts.jetson else ""
    swap = f"{format_gib(system.swap_bytes)} of swap" if system.swap_bytes else "no swap"
    known_parts = [
        f"{format_gib(system.memory_bytes)}{shared}",
        *([f"{format_gib(system.free_memory_bytes)} free"] if system.free_memory_bytes else []),
        *([swap] if system.swap_bytes is not None else []),
    ]
    yield Finding("system", "memory", "ok", ", ".join(known_parts))

    detail = f"{system.cache}, {format_gib(system.free_disk_bytes)} free on its disk"
    if not system.is_cache_writable:
        detail = f"{system.cache} cannot be written: set XDG_CACHE_HOME to a folder that can"
    elif system.free_disk_bytes is not None and system.free_disk_bytes < _ROOMY_DISK_BYTES:
        detail += "; a large bundle and its engines may not fit"
    yield Finding("system", "cache", "ok" if system.is_cache_writable else "broken", detail)


def _judge_jetson(jetson: Jetson) -> Iterator[Finding]:
    yield Finding("jetson", "model", "ok", jetson.model)
    release = f"Jetson Linux {jetson.release}" if jetson.release else "Jetson Linux of no release"
    if is_jetpack_too_old(jetson):
        detail = (
            f"JetPack {jetson.jetpack} ({release}) has a TensorRT that is too old: install JetPack "
            f"{'.'.join(map(str, _LEAST_JETPACK))} or later (by NVIDIA's SD card image or SDK "
            "Manager)"
        )
        yield Finding("jetson", "JetPack", "broken", detail)
    else:
        version = f"{jetson.jetpack} ({release})" if jetson.jetpack else release
        yield Finding("jetson", "JetPack", "ok", version)
    fastest = find_fastest_mode(jetson.power_modes)
    name = jetson.power_modes.get(fastest, "") if fastest is not None else ""
    if not jetson.power_mode:
        yield Finding("jetson", "power mode", "absent", "nvpmodel does not say (a container?)")
    elif name in ("", jetson.power_mode):
        yield Finding("jetson", "power mode", "ok", jetson.power_mode)
    else:
        detail = f"{jetson.power_mode}; {name} is the fastest of this Jetson"
        yield Finding("jetson", "power mode", "ok", detail, command=f"sudo nvpmodel -m {fastest}")
    if jetson.clocks_are_fixed:
        yield Finding("jetson", "clocks", "ok", "held at their highest")
    else:
        detail = "not known" if jetson.clocks_are_fixed is None else "rise and fall with the load"
        yield Finding("jetson", "clocks", "ok", detail, command="sudo jetson_clocks")


def _judge_graphics(facts: Facts) -> Iterator[Finding]:
    graphics = facts.graphics
    for gpu in graphics.gpus:
        chip = facts.jetson.compute_capability if facts.jetson else ""
        known = [gpu.name, gpu.compute_capability or chip or "of unknown compute capability"]
        if gpu.memory_bytes:
            known.append(format_gib(gpu.memory_bytes))
        if gpu.is_integrated:
            known.append("shared with the processor")
        yield Finding("nvidia", "GPU", "ok", ", ".join(known), _list_gpu_uses(facts))
    if not graphics.gpus:
        yield _judge_missing_gpu(facts)
    if graphics.driver_version or graphics.driver_cuda:
        cuda = ".".join(map(str, graphics.driver_cuda)) or "of an unknown version"
        detail = f"{graphics.driver_version or 'of an unknown version'}, takes CUDA {cuda}"
        yield Finding("nvidia", "driver", "ok", detail)
    package = facts.find_package(CUDA_BINDINGS)
    problem = package.problem or graphics.cuda_problem
    command = installing.install_cuda_bindings(facts) if facts.takes_tensorrt else ""
    if package.is_usable and not problem:
        engines = _list_engines(facts)
        yield Finding("nvidia", CUDA_BINDINGS, "ok", package.version, engines)
    elif problem:
        yield Finding("nvidia", CUDA_BINDINGS, "broken", problem, command=command)
    else:
        detail = "not installed; TensorRT engines run through it"
        yield Finding("nvidia", CUDA_BINDINGS, "absent", detail, command=command)


def _judge_missing_gpu(facts: Facts) -> Finding:
    graphics = facts.graphics
    if facts.jetson:
        capability = facts.jetson.compute_capability or "of a chip that is not known"
        detail = f"{capability}, of the Jetson; CUDA was not asked"
        return Finding("nvidia", "GPU", "ok", detail, _list_gpu_uses(facts))
    if graphics.problem:
        detail = f"there is one, and it cannot be used: {graphics.problem}"
        command = "" if graphics.driver_version else installing.install_driver(facts)
        return Finding("nvidia", "GPU", "broken", detail, command=command)
    return Finding("nvidia", "GPU", "absent", "this machine shows no NVIDIA GPU")


def _list_engines(facts: Facts) -> str:
    """The engines that run on a GPU of this machine."""
    if not facts.takes_tensorrt:
        return ""
    engines = [TENSORRT, *([TENSORRT_RTX] if facts.takes_rtx else [])]
    return ", ".join(f"--engine {engine}" for engine in engines)


def _list_gpu_uses(facts: Facts) -> str:
    cuda = ["--execution-provider cuda"] if installing.has_onnxruntime_gpu(facts) else []
    return ", ".join(filter(None, [_list_engines(facts), *cuda]))


def _judge_tensorrt(facts: Facts) -> Iterator[Finding]:
    package = facts.find_package(TENSORRT)
    command = installing.install_tensorrt(facts) if facts.takes_tensorrt else ""
    if facts.jetson and is_jetpack_too_old(facts.jetson):
        command = ""
    absent = "not installed"
    if not facts.takes_tensorrt:
        needed = "a newer NVIDIA GPU" if facts.has_gpu else "an NVIDIA GPU"
        absent = f"not installed; it needs {needed}"
    if facts.jetson and facts.jetson.tensorrt_pythons and not package.version:
        pythons = " and ".join(facts.jetson.tensorrt_pythons)
        absent = (
            f"JetPack installed it for the system's Python {pythons}; this Python "
            f"({facts.system.python}, an environment of its own) does not see it"
        )
    if package.version and not package.problem and parse_version(package.version) < MIN_TENSORRT:
        least = ".".join(map(str, MIN_TENSORRT))
        package = Package(problem=f"{package.version} is too old: {least} or later is needed")
    package, command = _check_cuda(facts, TENSORRT, package, command)
    good_for = f"--engine {TENSORRT}" if facts.takes_tensorrt else ""
    yield _judge_package("TensorRT", package, good_for, absent, command)
    yield _judge_tensorrt_rtx(facts)


def _judge_tensorrt_rtx(facts: Facts) -> Finding:
    package = facts.find_package(TENSORRT_RTX)
    capability = facts.compute_capability or "this GPU"
    command = installing.install_tensorrt_rtx(facts)
    good_for = f"--engine {TENSORRT_RTX}"
    absent = "not installed"
    if facts.has_gpu and not facts.takes_rtx:
        absent = f"not installed; it is for desktop GPUs, and NVIDIA does not list {capability}"
        good_for = "mutoscope build --engine tensorrt-rtx --target sm86, for other machines"
        command = ""
    elif not facts.has_gpu:
        absent = "not installed; it builds engines for other machines without a GPU"
        good_for = "mutoscope build --engine tensorrt-rtx --target sm86, for other machines"
    if facts.takes_rtx:
        package, command = _check_cuda(facts, TENSORRT_RTX, package, command)
    return _judge_package("TensorRT for RTX", package, good_for, absent, command)


def _check_cuda(facts: Facts, engine: str, package: Package, command: str) -> tuple[Package, str]:
    """The package as broken, with what mends it, if the driver is too old for its CUDA."""
    driver = facts.graphics.driver_cuda
    if not package.is_usable or not driver or (package.cuda or 0) <= driver[0]:
        return package, command
    problem = (
        f"{package.version} was built for CUDA {package.cuda}, and the driver takes CUDA "
        f"{'.'.join(map(str, driver))}"
    )
    return Package(problem=problem), installing.replace_tensorrt(facts, engine)


def _judge_onnxruntime(facts: Facts) -> Iterator[Finding]:
    found = facts.onnxruntime
    listed = ", ".join(f"{name} {version}" for name, version in found.packages.items())
    names = " ".join(found.packages)
    section = "onnxruntime"
    if len(found.packages) > 1:
        keeper = "onnxruntime-gpu" if "onnxruntime-gpu" in found.packages else "onnxruntime"
        detail = f"{listed}: they fill one folder and spoil each other"
        command = f"pip uninstall -y {names} && pip install {keeper}"
        if keeper == "onnxruntime-gpu":
            command = installing.install_onnxruntime_gpu(facts) or command
        yield Finding(section, section, "broken", detail, command=command)
    elif found.problem:
        command = f"pip install --force-reinstall {names}" if names else "pip install onnxruntime"
        yield Finding(section, section, "broken", found.problem, command=command)
    else:
        detail = listed or "of a package that is not known"
        yield Finding(section, section, "ok", detail, "--engine onnxruntime")
    if found.execution_providers:
        detail = ", ".join(found.execution_providers)
        good_for = "--execution-provider NAME"
        yield Finding(section, "providers", "ok", detail, good_for)
    if facts.has_gpu and "cuda" not in found.execution_providers:
        yield _judge_missing_cuda(facts)
    for name, package in found.plugins.items():
        plugin = EXECUTION_PROVIDERS[name]
        command = installing.install_plugin(facts) if name == TENSORRT_RTX else ""
        if package != Package() or (command and facts.takes_rtx):
            good_for = f"--execution-provider {name}"
            absent = f"not installed ({plugin.package})"
            yield _judge_package(f"plugin {name}", package, good_for, absent, command, section)


def _judge_missing_cuda(facts: Facts) -> Finding:
    detail = "not in this onnxruntime"
    if facts.jetson:
        detail += (
            ", and no package with it is known to run on a Jetson (one would have to be built, or "
            "come from an index of NVIDIA's): --engine tensorrt needs none"
        )
    command = installing.install_onnxruntime_gpu(facts)
    return Finding("onnxruntime", "provider cuda", "absent", detail, command=command)


def _judge_openvino(facts: Facts) -> Finding:
    good_for = ", ".join(f"--engine openvino:{precision}" for precision in facts.precisions)
    return _judge_package(
        "OpenVINO",
        facts.find_package(OPENVINO),
        good_for,
        "not installed",
        "pip install 'mutoscope[openvino]'",
        "openvino",
    )


def _judge_package(
    name: str,
    package: Package,
    good_for: str,
    absent: str,
    command: str,
    section: str = "nvidia",
) -> Finding:
    """A package that is ok, broken or absent."""
    if package.problem:
        return Finding(section, name, "broken", package.problem, command=command)
    if package.version:
        return Finding(section, name, "ok", package.version, good_for)
    return Finding(section, name, "absent", absent, command=command)
