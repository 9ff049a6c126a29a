"""Which plans fit which machine."""

from __future__ import annotations

import dataclasses

import pytest

from mutoscope.engines.tensorrt_build import TensorrtBuildOptions
from mutoscope.engines.tensorrt_platform import (
    EnginePlatform,
    compare_platforms,
    find_misfit,
    find_system,
    make_platform,
)
from tests.engines.emulated_cuda import EmulatedCuda
from tests.engines.emulated_tensorrt import EmulatedTensorrt

ORIN = EnginePlatform("tensorrt", "10.3.0", "linux-aarch64", "sm87")
AMPERE_PLUS = dataclasses.replace(ORIN, target="sm80", hardware_compatible=True)
ANY_VERSION = dataclasses.replace(ORIN, version_compatible=True)
ADA = EnginePlatform("tensorrt-rtx", "1.7.1", "linux-x86_64", "sm89")
ANY_RTX = dataclasses.replace(ADA, target="sm80", hardware_compatible=True)


@pytest.fixture
def cuda(monkeypatch):
    emulated = EmulatedCuda()
    emulated.install(monkeypatch)
    for name in ("tensorrt", "tensorrt_rtx"):
        EmulatedTensorrt(emulated, name).install(monkeypatch)
    return emulated


@pytest.mark.parametrize(
    ("built", "changes"),
    [
        (ORIN, {}),
        (AMPERE_PLUS, {"target": "sm80"}),
        (AMPERE_PLUS, {"target": "sm120"}),
        (ANY_VERSION, {"version": "10.3.0.26"}),
        (ANY_VERSION, {"version": "10.12.1"}),
        (ADA, {}),
        # Its plans are the same on Windows and Linux.
        (ADA, {"system": "windows-x86_64"}),
        (ANY_RTX, {"target": "sm86"}),
        (ANY_RTX, {"target": "sm121"}),
    ],
)
def test_a_plan_fits_where_it_was_built_for(built, changes):
    here = dataclasses.replace(
        built, version_compatible=False, hardware_compatible=False, **changes
    )
    assert compare_platforms(built, here) is None


@pytest.mark.parametrize(
    ("built", "changes", "reason"),
    [
        (ORIN, {"engine": "tensorrt-rtx"}, "it is for TensorRT, and TensorRT for RTX is to run it"),
        (ORIN, {"version": "10.3.1"}, "it was built by TensorRT 10.3.0, here is 10.3.1"),
        (ORIN, {"system": "linux-x86_64"}, "it was built on linux-aarch64, this is linux-x86_64"),
        (ORIN, {"target": "sm89"}, "it was built for sm87, the GPU here is sm89"),
        (AMPERE_PLUS, {"target": "sm75"}, "for sm80 and newer GPUs, the GPU here is sm75"),
        (AMPERE_PLUS, {"version": "10.4.0"}, "it was built by TensorRT 10.3.0, here is 10.4.0"),
        (ANY_VERSION, {"version": "10.2.0"}, "it was built by TensorRT 10.3.0, here is 10.2.0"),
        (ANY_VERSION, {"version": "11.0.0"}, "it was built by TensorRT 10.3.0, here is 11.0.0"),
        (ADA, {"target": "sm86"}, "it was built for sm89, the GPU here is sm86"),
        (ADA, {"version": "1.8.0"}, "it was built by TensorRT for RTX 1.7.1, here is 1.8.0"),
        # Neither Orin nor Hopper.
        (ANY_RTX, {"target": "sm87"}, "for sm80 and newer GPUs, the GPU here is sm87"),
        (ANY_RTX, {"target": "sm90"}, "for sm80 and newer GPUs, the GPU here is sm90"),
    ],
)
def test_a_plan_does_not_fit_elsewhere_and_the_reason_is_said(built, changes, reason):
    misfit = compare_platforms(built, dataclasses.replace(built, **changes))
    assert misfit is not None
    assert misfit.endswith(reason)


def test_a_platform_is_read_from_the_machine_and_the_options(cuda):
    assert make_platform("tensorrt", TensorrtBuildOptions(version_compatible=True)) == (
        EnginePlatform("tensorrt", "10.3.0", find_system(), "sm87", version_compatible=True)
    )
    compatible = TensorrtBuildOptions(hardware_compatible=True)
    assert make_platform("tensorrt", compatible).target == "sm80"


def test_a_platform_for_another_gpu_needs_none(cuda):
    cuda.driver = 0
    of_target = make_platform("tensorrt-rtx", TensorrtBuildOptions(target="sm89"))
    of_all = make_platform("tensorrt-rtx", TensorrtBuildOptions(hardware_compatible=True))
    assert [(p.target, p.hardware_compatible) for p in (of_target, of_all)] == [
        ("sm89", False),
        ("sm80", True),
    ]


def test_what_was_built_here_fits_here(cuda):
    built = make_platform("tensorrt", TensorrtBuildOptions())
    assert find_misfit(built) is None
    assert find_misfit(dataclasses.replace(built, target="sm86")) == (
        "it was built for sm86, the GPU here is sm87"
    )


def test_nothing_fits_a_machine_without_a_gpu(cuda):
    built = make_platform("tensorrt", TensorrtBuildOptions())
    cuda.driver = 0
    assert str(find_misfit(built)).startswith("no NVIDIA driver was found in this machine")
