"""Read what there is on this machine. Nothing is started on a GPU, and nothing may hang."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from mutoscope.engines.cuda_device import (
    GpuRecord,
    check_cuda_is_installed,
    find_cuda_versions,
    find_driver_version,
    list_gpus,
)
from mutoscope.engines.errors import EngineError, join_lines
from mutoscope.engines.onnxruntime_providers import (
    EXECUTION_PROVIDERS,
    find_execution_provider,
    list_execution_providers,
)
from mutoscope.engines.openvino_engine import check_precision, import_openvino
from mutoscope.engines.options import PRECISIONS, TENSORRT_MODULES
from mutoscope.engines.tensorrt_module import find_version
from mutoscope.engines.versions import parse_version
from mutoscope.runtime.cache import find_cache
from mutoscope.runtime.doctor.facts import (
    CUDA_BINDINGS,
    OPENVINO,
    Facts,
    Graphics,
    Onnxruntime,
    Package,
    System,
)
from mutoscope.runtime.doctor.jetson import read_jetson
from mutoscope.runtime.machine_facts import (
    ROOT,
    count_memory,
    find_package,
    read_memory,
    read_processor,
    read_text,
    run_program,
)

_NVIDIA_VENDOR = "0x10de"
_DISPLAY_CLASS = "0x03"
_SMI_FIELDS = "name,compute_cap,memory.total,driver_version"
_MIB = 2**20
# The first driver of each major version of CUDA.
_DRIVERS = ((580, 13), (525, 12), (450, 11))
_CONTAINER_FILES = (".dockerenv", "run/.containerenv")


def read_machine() -> Facts:
    """Return what there is on this machine."""
    packages = {
        CUDA_BINDINGS: read_package("cuda.bindings", _load_cuda_bindings),
        OPENVINO: read_package("openvino", _load_openvino),
        **{
            engine: read_package(
                module, functools.partial(find_version, engine), find_build_cuda(engine)
            )
            for engine, module in TENSORRT_MODULES.items()
        },
    }
    return Facts(
        system=read_system(ROOT),
        jetson=read_jetson(ROOT),
        graphics=read_graphics(packages[CUDA_BINDINGS]),
        packages=packages,
        onnxruntime=read_onnxruntime(),
        precisions=_find_precisions() if packages[OPENVINO].is_usable else (),
    )


def read_system(root: Path) -> System:
    """Return the machine itself; files are read below `root`."""
    processor, instructions = read_processor(root)
    memory = read_memory(root)
    names = dict(re.findall(r'^(\w+)="?([^"\n]*)', read_text(root / "etc/os-release"), re.M))
    name = f"{platform.system()} {platform.release()}"
    cache = find_cache()
    # The folder need not exist: what counts is what it would be made in.
    place = next((path for path in (cache, *cache.parents) if path.is_dir()), Path())
    return System(
        name=f"{names['PRETTY_NAME']}, {name}" if "PRETTY_NAME" in names else name,
        machine=platform.machine(),
        python=platform.python_version(),
        cache=cache,
        distribution=tuple(f"{names.get('ID', '')} {names.get('ID_LIKE', '')}".split()),
        is_container=any((root / name).exists() for name in _CONTAINER_FILES),
        processor=processor,
        instructions=instructions,
        num_cores=os.cpu_count(),
        memory_bytes=memory.get("MemTotal") or count_memory(),
        free_memory_bytes=memory.get("MemAvailable"),
        swap_bytes=memory.get("SwapTotal"),
        is_cache_writable=os.access(place, os.W_OK),
        free_disk_bytes=shutil.disk_usage(place).free,
    )


def read_package(module: str, load: Callable[[], str], cuda: int | None = None) -> Package:
    """Return what is known of a package.

    Args:
        module: What is imported of it.
        load: Imports it and returns its version.
        cuda: The major version of CUDA that it was built for.
    """
    if not _is_installed(module):
        return Package()
    try:
        return Package(load(), cuda=cuda)
    # Whatever a broken installation raises is what is to be told.
    except Exception as err:
        return Package(problem=describe_error(err))


def read_graphics(cuda_bindings: Package) -> Graphics:
    """Return the NVIDIA GPUs, asked of CUDA, or of nvidia-smi where CUDA cannot be asked."""
    is_on_bus = any(find_gpus_on_bus(ROOT))
    driver_version = cuda_problem = problem = ""
    driver_cuda: tuple[int, ...] = ()
    gpus: tuple[GpuRecord, ...] = ()
    try:
        driver_version = find_driver_version()
        if cuda_bindings.is_usable:
            driver_cuda = parse_version(find_cuda_versions().driver or "")
            gpus = list_gpus()
    # Whatever a broken driver raises is what is to be told.
    except Exception as err:
        cuda_problem = describe_error(err)
    if not gpus:
        answer, problem = run_program(
            "nvidia-smi", f"--query-gpu={_SMI_FIELDS}", "--format=csv,noheader,nounits"
        )
        gpus = () if problem else tuple(parse_nvidia_smi(answer))
    driver_version = driver_version or (gpus[0].driver_version if gpus else "")
    is_here = is_on_bus or bool(gpus) or bool(driver_version)
    return Graphics(
        gpus=gpus,
        problem=problem if is_here and not gpus else "",
        is_on_bus=is_on_bus,
        driver_version=driver_version,
        driver_cuda=driver_cuda or guess_driver_cuda(driver_version),
        cuda_problem=cuda_problem if is_here else "",
    )


def read_onnxruntime() -> Onnxruntime:
    """Return what onnxruntime can run on; plugins are registered, but nothing runs."""
    names = dict.fromkeys(p.package for p in EXECUTION_PROVIDERS.values() if not p.plugin_module)
    packages = _find_packages(*(name for name in names if name))
    plugins = {
        provider.name: read_package(provider.plugin_module, functools.partial(_load_plugin, name))
        for name, provider in EXECUTION_PROVIDERS.items()
        if provider.plugin_module
    }
    if not _is_installed("onnxruntime"):
        problem = "not installed, though mutoscope depends on it"
        return Onnxruntime(packages, problem, plugins=plugins)
    try:
        # Devices of a plugin, such as openvino.auto, are not to be asked for by name.
        execution_providers = tuple(name for name in list_execution_providers() if "." not in name)
    # Whatever a broken installation raises is what is to be told.
    except Exception as err:
        return Onnxruntime(packages, describe_error(err), plugins=plugins)
    return Onnxruntime(packages, "", execution_providers, plugins)


def find_gpus_on_bus(root: Path) -> Iterator[Path]:
    """Yield the NVIDIA GPUs on the PCI bus, with or without a driver."""
    for device in (root / "sys/bus/pci/devices").glob("*"):
        vendor, kind = read_text(device / "vendor"), read_text(device / "class")
        if vendor.strip() == _NVIDIA_VENDOR and kind.startswith(_DISPLAY_CLASS):
            yield device


def parse_nvidia_smi(answer: str) -> Iterator[GpuRecord]:
    """Yield the GPUs of nvidia-smi's table of _SMI_FIELDS, without units."""
    for line in answer.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != len(_SMI_FIELDS.split(",")):
            continue
        name, capability, memory, driver_version = fields
        is_known = re.fullmatch(r"\d+\.\d", capability) is not None
        yield GpuRecord(
            name=name,
            compute_capability="sm" + capability.replace(".", "") if is_known else "",
            memory_bytes=int(memory) * _MIB if memory.isdecimal() else 0,
            is_integrated=False,
            driver_version=driver_version,
        )


def guess_driver_cuda(driver_version: str) -> tuple[int, ...]:
    """Return the major version of CUDA that a driver takes, as a tuple; () if it is unknown."""
    major = parse_version(driver_version)[:1]
    return next(((cuda,) for first, cuda in _DRIVERS if major and major[0] >= first), ())


def find_build_cuda(engine: str) -> int | None:
    """Return the major version of CUDA that an installed TensorRT was built for, or None."""
    return next((cuda for _, cuda in _DRIVERS if find_package(f"{engine}-cu{cuda}")), None)


def describe_error(err: Exception) -> str:
    """Return what an exception says in one line."""
    return join_lines(str(err)) or type(err).__name__


def _is_installed(module: str) -> bool:
    """Whether a module can be found; its parent is imported, itself it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _load_cuda_bindings() -> str:
    check_cuda_is_installed()
    return find_package(CUDA_BINDINGS) or find_cuda_versions().runtime


def _load_openvino() -> str:
    return str(import_openvino().__version__).partition("-")[0]


def _load_plugin(name: str) -> str:
    provider = find_execution_provider(name)
    return find_package(provider.package) or "of a version that it does not say"


def _find_packages(*names: str) -> dict[str, str]:
    versions = {name: find_package(name) for name in names}
    return {name: version for name, version in versions.items() if version}


def _find_precisions() -> tuple[str, ...]:
    return tuple(precision for precision in PRECISIONS if _has_precision(precision))


def _has_precision(precision: str) -> bool:
    try:
        check_precision(precision)
    except EngineError:
        return False
    return True
