"""Machines for the tests of `mutoscope doctor`."""

import dataclasses
from pathlib import Path

from mutoscope.engines.cuda_device import GpuRecord
from mutoscope.runtime.doctor.facts import Facts, Graphics, Onnxruntime, Package, System
from mutoscope.runtime.doctor.findings import Finding, judge
from mutoscope.runtime.doctor.jetson import read_jetson

# As a Jetson Orin Nano with JetPack 6.2 has them.
ORIN_FILES = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,tegra234\0",
    "etc/nv_tegra_release": (
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
        "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n"
        "TARGET_USERSPACE_LIB_DIR=nvidia\n"
    ),
    "etc/nvpmodel.conf": (
        "# comment: < POWER_MODEL ID=id_num NAME=mode_name >\n"
        "< PARAM TYPE=FILE NAME=CPU_ONLINE >\nCORE_0 /sys/devices/system/cpu/cpu0/online\n"
        "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
        "< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
        "< POWER_MODEL ID=3 NAME=7W >\n< PM_CONFIG DEFAULT=1 >\n"
    ),
    "var/lib/nvpmodel/status": "pmode:0000 fmode:quiet\n",
    "var/lib/dpkg/status": (
        "Package: nvidia-jetpack-dev\nStatus: install ok installed\nVersion: 9.9+b1\n\n"
        "Package: nvidia-jetpack\nStatus: install ok installed\nPriority: standard\n"
        "Source: nvidia-jetpack (6.2)\nVersion: 6.2+b77\nDescription: Jetpack Meta Package\n\n"
    ),
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1728000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "729600\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "usr/lib/python3.10/dist-packages/tensorrt/__init__.py": "",
    "proc/cpuinfo": (
        "processor\t: 0\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 "
        "atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat ilrcpc flagm paca pacg\n"
        "CPU implementer\t: 0x41\nCPU part\t: 0xd42\n\nmodel name\t: ARMv8 Processor rev 1 (v8l)\n"
    ),
    "proc/meminfo": (
        "MemTotal:        7802840 kB\nMemAvailable:    5923220 kB\nSwapTotal:       3901408 kB\n"
        "HugePages_Total:       0\n"
    ),
    "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nID=ubuntu\nID_LIKE=debian\n',
}

PC = System("Ubuntu 24.04 LTS", "x86_64", "3.12.3", Path("cache"), ("ubuntu", "debian"))
ARM_SYSTEM = dataclasses.replace(PC, machine="aarch64", python="3.10.12")
ONNXRUNTIME = Onnxruntime(
    {"onnxruntime": "1.32.0"}, "", ("cpu",), {"tensorrt-rtx": Package(), "qnn": Package()}
)


def make_gpu(name: str, capability: str) -> GpuRecord:
    return GpuRecord(name, capability, 24 * 2**30, False, "580.65.06")


def make_graphics(name: str, capability: str, cuda: tuple[int, ...] = (13, 0)) -> Graphics:
    return Graphics((make_gpu(name, capability),), "", True, "580.65.06", cuda)


RTX_3090 = Facts(
    PC, graphics=make_graphics("RTX 3090", "sm86"), packages={}, onnxruntime=ONNXRUNTIME
)
H100 = dataclasses.replace(RTX_3090, graphics=make_graphics("H100", "sm90"))
NO_GPU = Facts(PC, onnxruntime=ONNXRUNTIME)


def write_orin(root: Path) -> Path:
    """Write the files of a Jetson, and return the folder that stands for its "/"."""
    for name, text in ORIN_FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def make_orin(root: Path) -> Facts:
    return Facts(ARM_SYSTEM, read_jetson(write_orin(root)), onnxruntime=ONNXRUNTIME)


def find(facts: Facts, name: str) -> Finding:
    """The one finding of this name."""
    (finding,) = (finding for finding in judge(facts) if finding.name == name)
    return finding


def install(facts: Facts, **packages: Package) -> Facts:
    named = {name.replace("_", "-"): package for name, package in packages.items()}
    return dataclasses.replace(facts, packages={**facts.packages, **named})
