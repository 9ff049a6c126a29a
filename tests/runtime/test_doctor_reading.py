"""What `mutoscope doctor` reads of a machine: files of a made-up root, programs, packages."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mutoscope.engines.cuda_device import GpuRecord
from mutoscope.runtime import machine_facts
from mutoscope.runtime.doctor.facts import (
    CUDA_BINDINGS,
    OPENVINO,
    TENSORRT,
    TENSORRT_RTX,
    Facts,
    Package,
)
from mutoscope.runtime.doctor.jetson import find_fastest_mode, read_jetson
from mutoscope.runtime.doctor.reading import (
    find_gpus_on_bus,
    guess_driver_cuda,
    parse_nvidia_smi,
    read_graphics,
    read_machine,
    read_package,
    read_system,
)
from tests.runtime.machines import ARM_SYSTEM, PC, RTX_3090, find, install, write_orin


@pytest.fixture
def orin_root(tmp_path: Path) -> Path:
    return write_orin(tmp_path / "orin")


@pytest.fixture
def write_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a shell script on the search path, first."""

    def write(name: str, script: str) -> None:
        folder = tmp_path / "programs"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return write


def test_a_jetson_is_read_from_its_files(orin_root: Path) -> None:
    jetson = read_jetson(orin_root)
    assert jetson is not None
    assert jetson.model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (jetson.release, jetson.jetpack, jetson.compute_capability) == ("36.4.3", "6.2", "sm87")
    assert jetson.power_mode == "15W"
    assert jetson.power_modes == {0: "15W", 1: "25W", 2: "MAXN_SUPER", 3: "7W"}
    assert jetson.clocks_are_fixed is False
    assert jetson.tensorrt_pythons == ("3.10",)


def test_a_jetson_without_the_package_knows_the_major_version_of_jetpack(orin_root: Path) -> None:
    (orin_root / "var/lib/dpkg/status").write_text(
        "Package: nvidia-jetpack\nStatus: deinstall ok config-files\nVersion: 6.2+b77\n"
    )
    jetson = read_jetson(orin_root)
    assert jetson is not None
    assert jetson.jetpack == "6"


def test_a_container_on_a_jetson_is_known_by_the_device_tree(tmp_path: Path) -> None:
    path = tmp_path / "proc/device-tree/model"
    path.parent.mkdir(parents=True)
    path.write_text("NVIDIA Jetson AGX Orin Developer Kit\0")
    jetson = read_jetson(tmp_path)
    assert jetson is not None
    assert (jetson.release, jetson.jetpack, jetson.power_mode) == ("", "", "")
    assert jetson.clocks_are_fixed is None
    assert find(Facts(ARM_SYSTEM, jetson), "power mode").state == "absent"


def test_another_machine_is_no_jetson(tmp_path: Path) -> None:
    path = tmp_path / "proc/device-tree/model"
    path.parent.mkdir(parents=True)
    path.write_text("Raspberry Pi 5 Model B Rev 1.0\0")
    assert read_jetson(tmp_path) is None


def test_clocks_are_fixed_when_the_lowest_is_the_highest(orin_root: Path) -> None:
    for path in orin_root.rglob("*min_freq"):
        path.write_text(path.with_name(path.name.replace("min", "max")).read_text())
    jetson = read_jetson(orin_root)
    assert jetson is not None
    assert jetson.clocks_are_fixed is True
    assert find(Facts(ARM_SYSTEM, jetson), "clocks").command == ""


def test_nvpmodel_is_asked_where_its_file_says_nothing(
    orin_root: Path, write_program: Callable[[str, str], None]
) -> None:
    (orin_root / "var/lib/nvpmodel/status").unlink()
    write_program(
        "nvpmodel", "echo 'NV Power Mode: 25W'; echo 1; echo 'NVPM ERROR: ...: 13' >&2; exit 13"
    )
    jetson = read_jetson(orin_root)
    assert jetson is not None
    assert jetson.power_mode == "25W"


def test_the_fastest_power_mode_is_found_by_its_name() -> None:
    assert find_fastest_mode({0: "MAXN", 1: "MODE_15W", 2: "MODE_30W"}) == 0
    assert find_fastest_mode({0: "15W", 1: "7W", 2: "25W"}) == 2
    assert find_fastest_mode({}) is None


def test_the_system_is_read_from_its_files(orin_root: Path) -> None:
    system = read_system(orin_root)
    assert system.name.startswith("Ubuntu 22.04.5 LTS, ")
    assert system.distribution == ("ubuntu", "debian")
    # Orin's processor has neither bfloat16 nor i8mm.
    assert system.instructions == ("asimd", "asimddp")
    assert system.processor == "ARMv8 Processor rev 1 (v8l)"
    assert system.memory_bytes == 7802840 * 1024
    assert system.free_memory_bytes == 5923220 * 1024
    assert system.swap_bytes == 3901408 * 1024
    assert not system.is_container
    detail = find(Facts(system), "processor").detail
    assert "instructions for int8 (asimd, asimddp)" in detail


def test_nvidia_smi_is_read() -> None:
    answer = (
        "NVIDIA GeForce RTX 3090, 8.6, 24576, 535.183.01\nOrin (nvgpu), [N/A], [N/A], 540.4.0\n"
    )
    first, second = parse_nvidia_smi(answer)
    assert first == GpuRecord("NVIDIA GeForce RTX 3090", "sm86", 24 * 2**30, False, "535.183.01")
    assert (second.compute_capability, second.memory_bytes) == ("", 0)
    assert guess_driver_cuda(first.driver_version) == (12,)
    assert guess_driver_cuda("580.65.06") == (13,)
    assert guess_driver_cuda("") == ()


def test_nvidia_smi_is_asked_where_cuda_cannot_be(
    write_program: Callable[[str, str], None],
) -> None:
    write_program("nvidia-smi", "echo 'NVIDIA L40S, 8.9, 46068, 570.86.15'")
    graphics = read_graphics(Package())
    assert graphics.gpus == (GpuRecord("NVIDIA L40S", "sm89", 46068 * 2**20, False, "570.86.15"),)
    assert graphics.driver_cuda == (12,)
    facts = Facts(PC, graphics=graphics)
    assert find(facts, CUDA_BINDINGS).command == "pip install 'cuda-bindings<13'"
    assert "NVIDIA L40S, sm89, 45.0 GiB" in find(facts, "GPU").detail


def test_gpus_are_found_on_the_bus(tmp_path: Path) -> None:
    for address, vendor, kind in (
        ("0000:01:00.0", "0x10de", "0x030000"),
        ("0000:01:00.1", "0x10de", "0x040300"),
        ("0000:02:00.0", "0x8086", "0x030000"),
    ):
        folder = tmp_path / "sys/bus/pci/devices" / address
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    assert [path.name for path in find_gpus_on_bus(tmp_path)] == ["0000:01:00.0"]


def test_a_program_that_hangs_is_not_waited_for(
    write_program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_facts, "_SECONDS_TO_ANSWER", 0.2)
    write_program("nvidia-smi", "exec sleep 60")
    _, problem = machine_facts.run_program("nvidia-smi")
    assert problem == "nvidia-smi did not answer within 0.2 s"


def test_a_program_that_fails_says_why_in_one_line(
    write_program: Callable[[str, str], None],
) -> None:
    write_program(
        "nvidia-smi", "echo NVIDIA-SMI has failed because; echo '  it could not.'; exit 9"
    )
    _, problem = machine_facts.run_program("nvidia-smi")
    assert problem == (
        "nvidia-smi ended with code 9 and said: NVIDIA-SMI has failed because it could not."
    )
    assert machine_facts.ask("nvidia-smi") is None
    assert machine_facts.run_program("no-such-program") == ("", "no-such-program is not there")


def test_a_package_that_cannot_be_imported_is_broken_and_not_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package.py").write_text(
        "raise OSError('libnvinfer.so.10: cannot open shared object file:\\n  No such file')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    package = read_package("broken_package", lambda: __import__("broken_package").version)
    assert package.problem == ("libnvinfer.so.10: cannot open shared object file: No such file")
    facts = install(RTX_3090, tensorrt=package)
    assert find(facts, "TensorRT").state == "broken"
    assert read_package("no_such_parent.package", lambda: "1") == Package()


def test_this_machine_is_read() -> None:
    facts = read_machine()
    assert facts.system.memory_bytes
    assert facts.onnxruntime.packages
    assert "cpu" in facts.onnxruntime.execution_providers
    assert set(facts.packages) == {CUDA_BINDINGS, OPENVINO, TENSORRT, TENSORRT_RTX}
    assert facts.find_package(OPENVINO).is_usable == bool(facts.precisions)
