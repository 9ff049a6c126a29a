import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from mutoscope.engines import onnxruntime_providers
from mutoscope.engines.errors import EngineError, ExecutionProviderError
from mutoscope.engines.onnxruntime_module import error_types
from mutoscope.engines.onnxruntime_providers import (
    EXECUTION_PROVIDERS,
    check_provider_options,
    find_execution_provider,
    list_execution_providers,
    make_cache_options,
)

RTX = EXECUTION_PROVIDERS["tensorrt-rtx"]
# What the plugin's library gave with onnxruntime 1.32 on a machine without a driver.
NO_DRIVER = (
    "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /site-packages/"
    "onnxruntime_ep_nv_tensorrt_rtx/libonnxruntime_providers_nv_tensorrt_rtx.so with error: "
    "libcuda.so.1: cannot open shared object file: No such file or directory"
)


@pytest.mark.parametrize("name", ["cpu", "CPUExecutionProvider"])
def test_a_provider_is_found_by_its_short_and_by_its_full_name(name: str) -> None:
    assert find_execution_provider(name) is EXECUTION_PROVIDERS["cpu"]


@pytest.mark.parametrize("name", ["azure", "AzureExecutionProvider"])
def test_any_provider_of_this_build_is_found_though_it_is_not_in_our_table(name: str) -> None:
    provider = find_execution_provider(name)
    assert (provider.name, provider.full_name) == ("azure", "AzureExecutionProvider")
    assert list_execution_providers()[0] == "cpu"
    assert "azure" in list_execution_providers()


@pytest.mark.parametrize("name", ["gpu", "nvtensorrtrtx", "dml", "CPU"])
def test_an_unknown_provider_is_refused_with_those_there_are(name: str) -> None:
    message = rf"'{name}' is unknown \(known: cpu, cuda, .*\): use cpu, .*azure"
    with pytest.raises(ExecutionProviderError, match=message):
        find_execution_provider(name)


def test_a_provider_that_is_not_built_in_is_refused_with_the_way_to_get_it() -> None:
    missing = set(EXECUTION_PROVIDERS) - set(list_execution_providers())
    for name in missing:
        provider = EXECUTION_PROVIDERS[name]
        if provider.plugin_module and importlib.util.find_spec(provider.plugin_module):
            continue
        message = rf"'{name}' is not in this onnxruntime build \(available: cpu.*\): pip .*"
        with pytest.raises(ExecutionProviderError, match=message + provider.package):
            find_execution_provider(name)


def test_a_provider_without_a_package_is_known_but_must_be_built() -> None:
    with pytest.raises(ExecutionProviderError, match=r"'cann' is not in .*: build onnxruntime wit"):
        find_execution_provider("cann")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package in the place of the RTX plugin's, whose library is a text file."""
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        pytest.skip("onnxruntime before 1.23 takes no plugins")
    library = tmp_path / "library.so"
    library.write_text("not a library", encoding="utf-8")
    module = tmp_path / "stand_in_plugin.py"
    module.write_text(f"def get_library_path():\n    return {str(library)!r}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(onnxruntime_providers, "_registered", set())
    stand_in = onnxruntime_providers.ExecutionProvider(
        RTX.name, RTX.full_name, RTX.package, "stand_in_plugin", RTX.needs
    )
    monkeypatch.setitem(EXECUTION_PROVIDERS, RTX.name, stand_in)
    yield library
    sys.modules.pop("stand_in_plugin", None)


@pytest.mark.usefixtures("plugin")
def test_a_plugin_that_does_not_load_is_one_line_each_time_and_is_not_listed() -> None:
    messages = []
    for _ in range(2):
        with pytest.raises(ExecutionProviderError, match=r"does not start here: .*library") as err:
            find_execution_provider("tensorrt-rtx")
        messages.append(str(err.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    assert messages[0].endswith(f"use {', '.join(list_execution_providers())}")
    assert "tensorrt-rtx" not in list_execution_providers()


@pytest.mark.usefixtures("plugin")
def test_a_plugin_without_a_driver_says_so_and_what_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def register(name: str, path: str) -> None:
        raise error_types()[0](NO_DRIVER)

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", register)
    message = (
        "'tensorrt-rtx' does not start here: there is no NVIDIA driver; it takes an NVIDIA driver, "
        r"and a GPU of compute capability 8.6, 8.9, or 12.0 and up \(neither Orin nor Hopper\): use"
    )
    for _ in range(2):
        with pytest.raises(ExecutionProviderError, match=message):
            find_execution_provider("NvTensorRTRTXExecutionProvider")


@pytest.mark.usefixtures("plugin")
def test_a_plugin_without_a_device_is_refused_and_stays_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registered: list[str] = []

    def register(name: str, path: str) -> None:
        # As onnxruntime does, which keeps the library whether it has a device or not.
        if name in registered:
            raise error_types()[0](f"EP library is already registered under {name}")
        registered.append(name)

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", register)
    for _ in range(2):
        with pytest.raises(ExecutionProviderError, match="does not start here: it finds no device"):
            find_execution_provider("tensorrt-rtx")
    assert registered.count(RTX.full_name) == 1


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("metadata", [{}, {"library_path": "library.so"}])
def test_a_plugin_with_a_device_is_found_and_registered_once(
    monkeypatch: pytest.MonkeyPatch, metadata: dict[str, str]
) -> None:
    # Before version 1.24 the metadata say nothing of the library.
    device = SimpleNamespace(ep_name=RTX.full_name, ep_metadata=metadata)
    registered: list[str] = []
    monkeypatch.setattr(
        onnxruntime, "register_execution_provider_library", lambda name, _: registered.append(name)
    )
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [device] if registered else [])
    for _ in range(2):
        provider = find_execution_provider("tensorrt-rtx")
    assert onnxruntime_providers.list_devices(provider) == [device]
    assert registered == [RTX.full_name]
    assert "tensorrt-rtx" in list_execution_providers()


@pytest.mark.usefixtures("plugin")
def test_an_onnxruntime_before_plugins_says_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(onnxruntime, "register_execution_provider_library")
    monkeypatch.delattr(onnxruntime, "get_ep_devices")
    with pytest.raises(ExecutionProviderError, match=r"onnxruntime \S+ takes none before 1\.23: u"):
        find_execution_provider("tensorrt-rtx")


def test_what_is_built_in_has_no_devices_of_a_plugin() -> None:
    assert onnxruntime_providers.list_devices(EXECUTION_PROVIDERS["cpu"]) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorrt-rtx", "does not start here"),
        ("openvino", r"finds no device; it takes an Intel processor, .* \(engine 'openvino' takes"),
    ],
)
def test_a_real_plugin_that_does_not_run_here_is_refused(name: str, message: str) -> None:
    pytest.importorskip(EXECUTION_PROVIDERS[name].plugin_module)
    if name in list_execution_providers():
        pytest.skip("it runs here")
    with pytest.raises(ExecutionProviderError, match=message):
        find_execution_provider(name)


def test_options_of_the_cpu_are_refused() -> None:
    with pytest.raises(ExecutionProviderError, match="'cpu' has no options, but device_id was giv"):
        check_provider_options(EXECUTION_PROVIDERS["cpu"], {"device_id": "0"})


@pytest.mark.parametrize(
    ("key", "value"), [("enable_cuda_graph", "1"), ("trt_cuda_graph_enable", "True")]
)
def test_recordings_by_onnxruntime_are_refused_because_they_forget_the_size(
    key: str, value: str
) -> None:
    with pytest.raises(ExecutionProviderError, match=f"{key} is '{value}'; .*'tensorrt' with CUDA"):
        check_provider_options(EXECUTION_PROVIDERS["cuda"], {key: value})
    check_provider_options(EXECUTION_PROVIDERS["cuda"], {key: "0", "device_id": "1"})


def test_only_what_builds_keeps_what_it_built(tmp_path: Path) -> None:
    folders = {name: tmp_path / "new" / name for name in EXECUTION_PROVIDERS}
    options = {
        name: make_cache_options(provider, folders[name])
        for name, provider in EXECUTION_PROVIDERS.items()
    }
    keeping = {"tensorrt", "tensorrt-rtx"}
    assert {name for name, found in options.items() if found} == keeping
    assert {name for name, folder in folders.items() if folder.is_dir()} == keeping
    assert options["tensorrt-rtx"] == {"nv_runtime_cache_path": str(folders["tensorrt-rtx"])}
    assert options["tensorrt"]["trt_engine_cache_path"] == str(folders["tensorrt"])


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="file/cache cannot be made"):
        make_cache_options(EXECUTION_PROVIDERS["tensorrt"], tmp_path / "file" / "cache")
