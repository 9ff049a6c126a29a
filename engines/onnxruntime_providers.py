"""The execution providers of onnxruntime: their names, their packages, and which of them are here.

Each has one short name, and onnxruntime's own. Some are plugins: a library in a Python package of
its own, which is registered once in a process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutoscope.engines.errors import EngineError, ExecutionProviderError
from mutoscope.engines.onnxruntime_module import error_types, first_line, import_onnxruntime
from mutoscope.engines.options import DEFAULT_EXECUTION_PROVIDER

_SUFFIX = "ExecutionProvider"
# What a missing driver is called in the loader's message, on Linux and on Windows.
_DRIVER_LIBRARIES = ("libcuda.so", "nvcuda.dll")
# A library without a device stays registered, and is not taken again.
_ALREADY_REGISTERED = "already registered"
# The full names of the plugins that this process has registered; onnxruntime keeps them as long.
_registered: set[str] = set()


@dataclass(frozen=True)
class ExecutionProvider:
    """What onnxruntime runs nodes on.

    Attributes:
        name: Its short name, as people type it.
        full_name: Its name in onnxruntime.
        package: The package that has it; "" if onnxruntime must be built with it.
        plugin_module: The module of a package that adds it to any onnxruntime; "" if a build of
            onnxruntime has it or not.
        needs: What it takes to run, beside the package.
    """

    name: str
    full_name: str
    package: str = ""
    plugin_module: str = ""
    needs: str = ""


EXECUTION_PROVIDERS = {
    provider.name: provider
    for provider in (
        ExecutionProvider("cpu", "CPUExecutionProvider", "onnxruntime"),
        ExecutionProvider("cuda", "CUDAExecutionProvider", "onnxruntime-gpu"),
        ExecutionProvider("tensorrt", "TensorrtExecutionProvider", "onnxruntime-gpu"),
        ExecutionProvider(
            "tensorrt-rtx",
            "NvTensorRTRTXExecutionProvider",
            "onnxruntime-ep-nv-tensorrt-rtx",
            "onnxruntime_ep_nv_tensorrt_rtx",
            "an NVIDIA driver, and a GPU of compute capability 8.6, 8.9, or 12.0 and up (neither "
            "Orin nor Hopper)",
        ),
        ExecutionProvider(
            "openvino",
            "OpenVINOExecutionProvider",
            "onnxruntime-ep-openvino",
            "onnxruntime_ep_openvino",
            "an Intel processor, GPU or NPU (engine 'openvino' takes processors of other vendors)",
        ),
        ExecutionProvider("coreml", "CoreMLExecutionProvider", "onnxruntime"),
        ExecutionProvider("directml", "DmlExecutionProvider", "onnxruntime-directml"),
        ExecutionProvider("migraphx", "MIGraphXExecutionProvider", "onnxruntime-migraphx"),
        ExecutionProvider("rocm", "ROCMExecutionProvider", "onnxruntime-rocm"),
        ExecutionProvider(
            "qnn",
            "QNNExecutionProvider",
            "onnxruntime-qnn",
            "onnxruntime_qnn",
            "a Qualcomm NPU or GPU and its driver",
        ),
        ExecutionProvider(
            "webgpu",
            "WebGpuExecutionProvider",
            "onnxruntime-ep-webgpu",
            "onnxruntime_ep_webgpu",
            "a GPU with a driver for Vulkan, Direct3D 12 or Metal",
        ),
    )
}


def list_execution_providers() -> list[str]:
    """Return the short names of the execution providers here: built in, or plugins that start."""
    built_in = import_onnxruntime().get_available_providers()
    ours = {provider.full_name: provider for provider in EXECUTION_PROVIDERS.values()}
    found = [p.name for p in ours.values() if p.full_name in built_in or _starts(p)]
    return [*found, *(_shorten(full_name) for full_name in built_in if full_name not in ours)]


def find_execution_provider(name: str) -> ExecutionProvider:
    """Return the execution provider of this name, registered if it is a plugin.

    Args:
        name: Its short name, or onnxruntime's own: "cuda", "CUDAExecutionProvider".

    Raises:
        ExecutionProviderError: It is unknown, is not installed, or does not start on this machine.
    """
    provider = look_up_execution_provider(name)
    if provider.full_name in import_onnxruntime().get_available_providers():
        return provider
    if not _is_installed(provider):
        raise ExecutionProviderError(
            f"execution provider {provider.name!r} is not in this onnxruntime build "
            f"(available: {_available()}): {_describe_installation(provider)}"
        )
    try:
        _register(provider)
    except ExecutionProviderError as err:
        raise ExecutionProviderError(f"{err}: use {list_others(provider)}") from err
    return provider


def list_devices(provider: ExecutionProvider) -> list[Any]:
    """Return onnxruntime's devices of a registered plugin; none of one that is built in."""
    onnxruntime = import_onnxruntime()
    if not hasattr(onnxruntime, "get_ep_devices"):
        return []
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == provider.full_name]
    # What is built in is listed as well, but is asked for in another way. Before version 1.24
    # nothing in the list tells them apart.
    if provider.full_name in _registered:
        return devices
    return [device for device in devices if "library_path" in device.ep_metadata]


def list_others(provider: ExecutionProvider) -> str:
    """Return the short names of the other execution providers here, with commas."""
    return ", ".join(name for name in list_execution_providers() if name != provider.name)


@functools.cache
def preload_cuda() -> tuple[str, ...]:
    """Load CUDA from Python packages, where onnxruntime does not look unless it is told to.

    Returns the names of the libraries that are neither there nor on this system.
    """
    onnxruntime = import_onnxruntime()
    if not hasattr(onnxruntime, "preload_dlls"):
        return ()
    told = io.StringIO()
    with contextlib.redirect_stdout(told), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # "" is without the libraries of an installed torch, which may be of another CUDA.
        onnxruntime.preload_dlls(directory="")
    return tuple(re.findall(r"Failed to load ([\w.-]+):", told.getvalue()))


def check_provider_options(provider: ExecutionProvider, options: Mapping[str, str]) -> None:
    """Raise `ExecutionProviderError` for options that would do nothing, or harm."""
    if options and provider.name == DEFAULT_EXECUTION_PROVIDER:
        raise ExecutionProviderError(
            f"execution provider 'cpu' has no options, but {', '.join(options)} was given: leave "
            "it out"
        )
    for key, value in options.items():
        # A recording is played again for inputs of any size, and gives the results of the first.
        if "cuda_graph" in key and value.lower() not in ("0", "false"):
            raise ExecutionProviderError(
                f"provider option {key} is {value!r}; onnxruntime would play one recording for "
                "every size: leave it out, or use engine 'tensorrt' with CUDA graphs"
            )


def make_cache_options(provider: ExecutionProvider, cache: Path) -> dict[str, str]:
    """Return the options with which an execution provider keeps what it builds in a folder.

    The folder is made, if there are any.

    Raises:
        EngineError: It cannot be made.
    """
    options = {
        "tensorrt": {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(cache),
        },
        "tensorrt-rtx": {"nv_runtime_cache_path": str(cache)},
    }.get(provider.name, {})
    if options:
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise EngineError(f"{cache} cannot be made: {err.strerror or err}") from err
    return options


def look_up_execution_provider(name: str) -> ExecutionProvider:
    """Return the execution provider of a short or a full name, whether it is here or not.

    Raises:
        ExecutionProviderError: It is unknown.
    """
    for provider in EXECUTION_PROVIDERS.values():
        if name in (provider.name, provider.full_name):
            return provider
    onnxruntime = import_onnxruntime()
    ours = {provider.full_name for provider in EXECUTION_PROVIDERS.values()}
    for full_name in (*onnxruntime.get_available_providers(), *onnxruntime.get_all_providers()):
        if full_name not in ours and name in (full_name, _shorten(full_name)):
            return ExecutionProvider(_shorten(full_name), full_name)
    raise ExecutionProviderError(
        f"execution provider {name!r} is unknown (known: {', '.join(EXECUTION_PROVIDERS)}): "
        f"use {_available()}"
    )


def _shorten(full_name: str) -> str:
    """The short name of one that has none of ours: `azure` for `AzureExecutionProvider`."""
    return full_name.replace(_SUFFIX, "").lower()


def _is_installed(provider: ExecutionProvider) -> bool:
    """Whether it is a plugin whose package is here."""
    module = provider.plugin_module
    return bool(module) and importlib.util.find_spec(module) is not None


def _starts(provider: ExecutionProvider) -> bool:
    """Whether it is a plugin that is installed and runs here."""
    if not _is_installed(provider):
        return False
    try:
        _register(provider)
    except ExecutionProviderError:
        return False
    return True


def _register(provider: ExecutionProvider) -> None:
    """Register the library of a plugin, if it is not; raises `ExecutionProviderError`."""
    if list_devices(provider):
        return
    failure = f"execution provider {provider.name!r} does not start here"
    onnxruntime = import_onnxruntime()
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise ExecutionProviderError(
            f"{failure}: it is a plugin, and onnxruntime {onnxruntime.__version__} takes none "
            "before 1.23"
        )
    failures: tuple[type[Exception], ...] = (*error_types(), ImportError, OSError)
    try:
        library = importlib.import_module(provider.plugin_module).get_library_path()
        onnxruntime.register_execution_provider_library(provider.full_name, str(library))
    except failures as err:
        text = first_line(err)
        if _ALREADY_REGISTERED not in text:
            lacks_driver = any(library in text for library in _DRIVER_LIBRARIES)
            reason = "there is no NVIDIA driver" if lacks_driver else text
            raise ExecutionProviderError(f"{failure}: {reason}; it takes {provider.needs}") from err
    _registered.add(provider.full_name)
    if not list_devices(provider):
        raise ExecutionProviderError(f"{failure}: it finds no device; it takes {provider.needs}")


def _describe_installation(provider: ExecutionProvider) -> str:
    """How to get it; builds of onnxruntime fill one folder, so one must go before another comes."""
    if not provider.package:
        return "build onnxruntime with it"
    if provider.plugin_module:
        return f"pip install {provider.package}"
    if provider.package == "onnxruntime":
        return f"pip install --force-reinstall {provider.package}"
    return f"pip uninstall -y onnxruntime && pip install {provider.package}"


def _available() -> str:
    return ", ".join(list_execution_providers())
