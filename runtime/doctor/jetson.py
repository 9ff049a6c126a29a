"""What a Jetson says of itself, in files that need no special rights.

`nvpmodel -q` and `jetson_clocks --show` read the same files; the second one only for root.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mutoscope.runtime.machine_facts import read_text, run_program

# The compute capability of a chip, by its name in the device tree.
_COMPUTE_CAPABILITIES = {"tegra194": "sm72", "tegra234": "sm87", "tegra264": "sm110"}
# By the major release of Jetson Linux (L4T).
_JETPACKS = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}

_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
_POWER_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
_POWER_STATUS = re.compile(r"pmode:(\d+)")
_POWER_ANSWER = re.compile(r"NV Power Mode: (\S+)")
_WATTS = re.compile(r"(\d+)W")


@dataclass(frozen=True)
class Jetson:
    """A Jetson.

    Attributes:
        model: As the device tree has it.
        release: Of Jetson Linux (L4T), such as "36.4.3"; "" if it does not say.
        jetpack: The version of the package nvidia-jetpack, such as "6.2"; without the package the
            major version, "6"; "" if neither is known.
        compute_capability: Of its GPU, "sm87"; "" for a chip that is not known.
        power_mode: Its name, such as "MAXN" or "15W"; "" if it does not say.
        power_modes: The names of all modes by their number.
        clocks_are_fixed: Whether processor and GPU run at their highest clocks at all times, which
            jetson_clocks does; None if it does not say.
        tensorrt_pythons: The versions of Python that JetPack installed TensorRT for, such as
            "3.10"; "" is a folder of no version.
    """

    model: str
    release: str = ""
    jetpack: str = ""
    compute_capability: str = ""
    power_mode: str = ""
    power_modes: Mapping[int, str] = field(default_factory=dict)
    clocks_are_fixed: bool | None = None
    tensorrt_pythons: tuple[str, ...] = ()


def read_jetson(root: Path) -> Jetson | None:
    """Return what the Jetson below `root` says, or None if it is another machine."""
    model = read_text(root / "proc/device-tree/model")
    match = _RELEASE.search(read_text(root / "etc/nv_tegra_release"))
    if match is None and "Jetson" not in model:
        return None
    chips = read_text(root / "proc/device-tree/compatible")
    modes = read_power_modes(root)
    return Jetson(
        model=model or "a Jetson that does not say which",
        release=f"{match[1]}.{match[2]}" if match else "",
        jetpack=find_jetpack(root) or (_JETPACKS.get(int(match[1]), "") if match else ""),
        compute_capability=next((v for k, v in _COMPUTE_CAPABILITIES.items() if k in chips), ""),
        power_mode=read_power_mode(root, modes),
        power_modes=modes,
        clocks_are_fixed=read_clocks(root),
        tensorrt_pythons=find_tensorrt_pythons(root),
    )


def find_jetpack(root: Path) -> str:
    """Return the version of the installed package nvidia-jetpack without its build, or ""."""
    for block in read_text(root / "var/lib/dpkg/status").split("\n\n"):
        lines = block.splitlines()
        if "Package: nvidia-jetpack" in lines and "Status: install ok installed" in lines:
            versions = [line.partition(": ")[2] for line in lines if line.startswith("Version: ")]
            return re.split(r"[+-]", versions[0])[0] if versions else ""
    return ""


def read_power_modes(root: Path) -> dict[int, str]:
    """Return the names of the power modes by their number."""
    found = _POWER_MODE.findall(read_text(root / "etc/nvpmodel.conf"))
    return {int(number): name for number, name in found}


def read_power_mode(root: Path, modes: Mapping[int, str]) -> str:
    """Return the name of the power mode that is on, or ""."""
    match = _POWER_STATUS.search(read_text(root / "var/lib/nvpmodel/status"))
    if match is not None and int(match[1]) in modes:
        return modes[int(match[1])]
    # Without root it may end with an error of one value after it has said the mode.
    answer = _POWER_ANSWER.search(run_program("nvpmodel", "-q")[0])
    return answer[1] if answer else ""


def find_fastest_mode(modes: Mapping[int, str]) -> int | None:
    """Return the number of the power mode without limits, or of the one with most watts."""
    for number, name in modes.items():
        if name.startswith("MAXN"):
            return number
    watts = {number: _WATTS.search(name) for number, name in modes.items()}
    known = {number: int(match[1]) for number, match in watts.items() if match}
    return max(known, key=lambda number: known[number]) if known else None


def read_clocks(root: Path) -> bool | None:
    """Return whether all clocks are held at their highest, or None if there are none to read."""
    processor = (root / "sys/devices/system/cpu/cpufreq").glob("policy*/scaling_max_freq")
    graphics = [
        *(root / "sys/class/devfreq").glob("*gpu*/max_freq"),
        *(root / "sys/class/devfreq").glob("*ga10b*/max_freq"),
    ]
    pairs = [
        (read_text(path), read_text(path.with_name(path.name.replace("max", "min"))))
        for path in (*processor, *graphics)
    ]
    known = [(highest, lowest) for highest, lowest in pairs if highest and lowest]
    return all(highest == lowest for highest, lowest in known) if known else None


def find_tensorrt_pythons(root: Path) -> tuple[str, ...]:
    """Return the versions of Python that have TensorRT from the system's packages."""
    found = (root / "usr/lib").glob("python3*/dist-packages/tensorrt/__init__.py")
    folders = sorted(path.relative_to(root / "usr/lib").parts[0] for path in found)
    return tuple(name.removeprefix("python") if "." in name else "" for name in folders)
