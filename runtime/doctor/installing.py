"""The command that adds a thing on a machine, or "" where none does."""

from __future__ import annotations

from mutoscope.runtime.doctor.facts import CUDA_BINDINGS, TENSORRT, TENSORRT_RTX, Facts

_ENVIRONMENT = "~/mutoscope-env"
# From 1.27 on it is built for CUDA 13.
_ONNXRUNTIME_CUDA_12 = "'onnxruntime-gpu[cuda,cudnn]<1.27'"
_ONNXRUNTIME_CUDA_13 = "'onnxruntime-gpu[cuda,cudnn]'"


def install_driver(facts: Facts) -> str:
    """Return the command that adds NVIDIA's driver."""
    if facts.system.is_container:
        return "docker run --gpus all ..."
    if "ubuntu" in facts.system.distribution:
        return "sudo ubuntu-drivers install && sudo reboot"
    if "debian" in facts.system.distribution:
        return "sudo apt install nvidia-driver && sudo reboot"
    return ""


def install_cuda_bindings(facts: Facts) -> str:
    """Return the command that adds cuda-bindings for the CUDA of the driver."""
    package = f"'{CUDA_BINDINGS}<13'" if has_cuda_12(facts) else CUDA_BINDINGS
    return f"pip install {package}"


def install_tensorrt(facts: Facts) -> str:
    """Return the command that adds TensorRT; on a Jetson it never comes from pip."""
    if facts.jetson is None:
        return f"pip install {TENSORRT}{'-cu12' if has_cuda_12(facts) else ''}"
    pythons = facts.jetson.tensorrt_pythons
    if not pythons:
        package = "python3-libnvinfer" if facts.jetson.jetpack.count(".") else "nvidia-jetpack"
        return f"sudo apt update && sudo apt install {package}"
    # It is there for the system's own Python, which an environment does not see by itself.
    python = f"python{pythons[-1]}" if pythons[-1] else "python3"
    return f"/usr/bin/{python} -m venv --system-site-packages {_ENVIRONMENT}"


def install_tensorrt_rtx(facts: Facts) -> str:
    """Return the command that adds TensorRT for RTX."""
    return f"pip install {TENSORRT_RTX}{'-cu12' if has_cuda_12(facts) else ''}"


def replace_tensorrt(facts: Facts, engine: str) -> str:
    """Return the command that puts the build for the driver's CUDA in the place of a newer one."""
    name = f"{engine}-cu{facts.find_package(engine).cuda}"
    return (
        f"pip uninstall -y {engine} {name} {name}-bindings {name}-libs && "
        f"pip install {engine}-cu{facts.graphics.driver_cuda[0]}"
    )


def install_plugin(facts: Facts) -> str:
    """Return the command that adds the plugin of onnxruntime for TensorRT for RTX."""
    return f"pip install onnxruntime-ep-nv-tensorrt-rtx{'-cu12' if has_cuda_12(facts) else ''}"


def install_onnxruntime_gpu(facts: Facts) -> str:
    """Return the command that puts onnxruntime-gpu in the place of all that fill its folder."""
    if not has_onnxruntime_gpu(facts):
        return ""
    present = " ".join(facts.onnxruntime.packages) or "onnxruntime"
    # CUDA 13 has given up the same GPUs as TensorRT.
    needs_cuda_12 = has_cuda_12(facts) or not facts.takes_tensorrt
    package = _ONNXRUNTIME_CUDA_12 if needs_cuda_12 else _ONNXRUNTIME_CUDA_13
    return f"pip uninstall -y {present} && pip install {package}"


def has_onnxruntime_gpu(facts: Facts) -> bool:
    """Return whether the package index has onnxruntime-gpu for this machine."""
    if facts.jetson is not None:
        return False
    if facts.system.machine == "aarch64":
        major, minor, *_ = (int(part) for part in facts.system.python.split(".")[:2])
        return (major, minor) >= (3, 11)
    return facts.system.machine.lower() in ("x86_64", "amd64")


def has_cuda_12(facts: Facts) -> bool:
    """Return whether the driver takes CUDA 12 and not 13, as all of JetPack 6 do."""
    if facts.graphics.driver_cuda:
        return facts.graphics.driver_cuda[0] == 12
    return facts.jetson is not None and facts.jetson.jetpack.startswith("6")
