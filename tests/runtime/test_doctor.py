"""`mutoscope doctor`: judging machines by what was read of them, and the command."""

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mutoscope.engines.cuda_device import GpuRecord
from mutoscope.runtime import main
from mutoscope.runtime.commands.doctor import describe
from mutoscope.runtime.doctor.advice import advise
from mutoscope.runtime.doctor.facts import CUDA_BINDINGS, Facts, Graphics, Onnxruntime, Package
from mutoscope.runtime.doctor.findings import Finding, judge
from tests.runtime.machines import (
    H100,
    NO_GPU,
    PC,
    RTX_3090,
    find,
    install,
    make_graphics,
    make_orin,
)


@pytest.fixture
def orin(tmp_path: Path) -> Facts:
    return make_orin(tmp_path / "orin")


def list_commands(facts: Facts) -> list[str]:
    return [step.command for step in advise(facts, judge(facts))]


def test_a_slow_power_mode_gets_the_command_of_this_jetson(orin: Facts) -> None:
    finding = find(orin, "power mode")
    assert (finding.state, finding.command) == ("ok", "sudo nvpmodel -m 2")
    assert "15W" in finding.detail
    assert "MAXN_SUPER" in finding.detail
    assert find(orin, "clocks").command == "sudo jetson_clocks"
    assert list_commands(orin)[:2] == ["sudo nvpmodel -m 2", "sudo jetson_clocks"]


def test_a_jetson_gets_tensorrt_from_jetpack_and_never_from_pip(orin: Facts) -> None:
    inside = find(orin, "TensorRT")
    assert inside.state == "absent"
    assert "does not see it" in inside.detail
    assert inside.command.startswith("/usr/bin/python3.10 -m venv --system-site-packages")
    assert orin.jetson is not None
    without = dataclasses.replace(
        orin, jetson=dataclasses.replace(orin.jetson, tensorrt_pythons=(), jetpack="6")
    )
    assert find(without, "TensorRT").command == "sudo apt update && sudo apt install nvidia-jetpack"
    for facts in (orin, without):
        commands = [*list_commands(facts), *(finding.command for finding in judge(facts))]
        assert not any("pip install tensorrt" in command for command in commands)
        assert "pip install 'cuda-bindings<13'" in commands


def test_a_jetson_is_not_told_to_install_what_the_index_does_not_have(orin: Facts) -> None:
    cuda = find(orin, "provider cuda")
    assert cuda.command == ""
    assert "--engine tensorrt needs none" in cuda.detail
    rtx = find(orin, "TensorRT for RTX")
    assert rtx.command == ""
    assert "does not list sm87" in rtx.detail


def test_a_jetson_that_has_everything_is_told_to_build_and_generate(orin: Facts) -> None:
    whole = install(orin, tensorrt=Package("10.3.0"), cuda_bindings=Package("12.9.10"))
    assert find(whole, "TensorRT") == Finding(
        "nvidia", "TensorRT", "ok", "10.3.0", "--engine tensorrt"
    )
    assert [command for command in list_commands(whole) if "sudo" not in command] == [
        "mutoscope build BUNDLE --engine tensorrt --variant float16",
        'mutoscope generate "PROMPT" --bundle BUNDLE --engine auto -o out.mp4',
    ]


@pytest.mark.parametrize(("release", "jetpack"), [("36.3.0", "6.0"), ("35.4.1", "5"), ("", "6.0")])
def test_a_jetpack_with_an_old_tensorrt_is_to_be_replaced(
    orin: Facts, release: str, jetpack: str
) -> None:
    assert orin.jetson is not None
    jetson = dataclasses.replace(orin.jetson, release=release, jetpack=jetpack)
    old = dataclasses.replace(orin, jetson=jetson)
    finding = find(old, "JetPack")
    assert finding.state == "broken"
    assert "install JetPack 6.1 or later" in finding.detail
    assert not any("--engine tensorrt" in command for command in list_commands(old))


def test_an_old_tensorrt_is_broken_and_says_which_is_needed() -> None:
    finding = find(install(RTX_3090, tensorrt=Package("8.6.1")), "TensorRT")
    assert finding.state == "broken"
    assert finding.detail == "8.6.1 is too old: 10.3 or later is needed"
    assert finding.command == "pip install tensorrt"


def test_a_jetson_whose_driver_says_little_is_known_by_its_chip(orin: Facts) -> None:
    gpu = GpuRecord("Orin (nvgpu)", "", 0, False, "540.4.0")
    asked = dataclasses.replace(orin, graphics=Graphics((gpu,), driver_version="540.4.0"))
    finding = find(asked, "GPU")
    assert (finding.detail, finding.good_for) == ("Orin (nvgpu), sm87", "--engine tensorrt")


def test_the_gpu_that_engines_run_on_is_the_first() -> None:
    second = RTX_3090.graphics.gpus
    both = dataclasses.replace(H100.graphics, gpus=(*H100.graphics.gpus, *second))
    commands = list_commands(dataclasses.replace(H100, graphics=both))
    assert "mutoscope build BUNDLE --engine tensorrt --variant float16" in commands


def test_a_gpu_that_is_too_old_for_tensorrt_gets_onnxruntime_for_cuda_12() -> None:
    facts = dataclasses.replace(RTX_3090, graphics=make_graphics("GTX 1080", "sm61"))
    assert find(facts, "GPU").good_for == "--execution-provider cuda"
    assert find(facts, "TensorRT").detail == "not installed; it needs a newer NVIDIA GPU"
    assert find(facts, "provider cuda").command.endswith("'onnxruntime-gpu[cuda,cudnn]<1.27'")
    commands = [*list_commands(facts), *(finding.command for finding in judge(facts))]
    assert not any("tensorrt" in command for command in commands)


def test_a_desktop_gpu_gets_tensorrt_for_rtx() -> None:
    assert "--engine tensorrt-rtx" in find(RTX_3090, "GPU").good_for
    assert list_commands(RTX_3090) == [
        "pip install tensorrt-rtx",
        "pip install cuda-bindings",
        "mutoscope build BUNDLE --engine tensorrt-rtx --variant float16",
        'mutoscope generate "PROMPT" --bundle BUNDLE --engine auto -o out.mp4',
    ]
    assert find(RTX_3090, "plugin tensorrt-rtx").command == (
        "pip install onnxruntime-ep-nv-tensorrt-rtx"
    )


def test_the_flavour_of_tensorrt_that_is_there_is_used() -> None:
    ready = install(RTX_3090, tensorrt=Package("11.4.0"), cuda_bindings=Package("13.5.0"))
    assert "mutoscope build BUNDLE --engine tensorrt --variant float16" in list_commands(ready)


def test_a_data_centre_gpu_gets_tensorrt_and_not_the_one_for_rtx() -> None:
    rtx = find(H100, "TensorRT for RTX")
    assert rtx.command == ""
    assert "does not list sm90" in rtx.detail
    assert "tensorrt-rtx" not in find(H100, "GPU").good_for
    commands = list_commands(H100)
    assert commands[0] == "pip install tensorrt"
    assert not any("rtx" in command for command in commands)


def test_a_driver_for_cuda_12_gets_packages_for_cuda_12() -> None:
    facts = dataclasses.replace(RTX_3090, graphics=make_graphics("RTX 3090", "sm86", (12, 4)))
    assert find(facts, CUDA_BINDINGS).command == "pip install 'cuda-bindings<13'"
    assert find(facts, "TensorRT").command == "pip install tensorrt-cu12"
    assert find(facts, "TensorRT for RTX").command == "pip install tensorrt-rtx-cu12"
    assert find(facts, "provider cuda").command == (
        "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]<1.27'"
    )


def test_a_tensorrt_for_a_newer_cuda_than_the_driver_takes_is_replaced() -> None:
    facts = dataclasses.replace(RTX_3090, graphics=make_graphics("RTX 3090", "sm86", (12, 4)))
    facts = install(facts, tensorrt_rtx=Package("1.7.1", cuda=13))
    finding = find(facts, "TensorRT for RTX")
    assert finding.state == "broken"
    assert finding.detail == "1.7.1 was built for CUDA 13, and the driver takes CUDA 12.4"
    assert finding.command.endswith("&& pip install tensorrt-rtx-cu12")
    assert "tensorrt-rtx-cu13-libs" in finding.command
    assert list_commands(facts)[0] == finding.command


def test_two_packages_of_onnxruntime_are_broken() -> None:
    both = Onnxruntime({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}, "", ("cpu", "cuda"))
    finding = find(dataclasses.replace(RTX_3090, onnxruntime=both), "onnxruntime")
    assert finding.state == "broken"
    assert finding.command == (
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "sudo ubuntu-drivers install && sudo reboot"),
        ({"distribution": ("debian",)}, "sudo apt install nvidia-driver && sudo reboot"),
        ({"is_container": True}, "docker run --gpus all ..."),
        ({"distribution": ("arch",)}, ""),
    ],
)
def test_a_gpu_without_a_driver_is_broken(changes: dict[str, object], command: str) -> None:
    graphics = Graphics(problem="nvidia-smi is not there", is_on_bus=True)
    finding = find(Facts(dataclasses.replace(PC, **changes), graphics=graphics), "GPU")  # type: ignore[arg-type]
    assert (finding.state, finding.command) == ("broken", command)


def test_a_machine_without_a_gpu_is_not_told_to_install_anything_for_one() -> None:
    for name in ("GPU", CUDA_BINDINGS, "TensorRT"):
        finding = find(NO_GPU, name)
        assert (finding.state, finding.command) == ("absent", "")
    assert list_commands(NO_GPU) == [
        "pip install 'mutoscope[openvino]'",
        "mutoscope build BUNDLE",
        'mutoscope generate "PROMPT" --bundle BUNDLE -o out.mp4',
    ]


def test_a_processor_with_bfloat16_is_told_to_use_it() -> None:
    facts = dataclasses.replace(install(NO_GPU, openvino=Package("2026.4.1")), precisions=("f32",))
    assert "--engine openvino:f32" in list_commands(facts)[0]
    assert (
        "--engine openvino:bf16"
        in list_commands(dataclasses.replace(facts, precisions=("f32", "bf16")))[0]
    )


def test_advice_is_of_commands_that_there_are(orin: Facts) -> None:
    with_openvino = dataclasses.replace(NO_GPU, precisions=("f32", "bf16"))
    context = click.Context(main.group, **main.group.context_settings)
    seen = set()
    for facts in (orin, RTX_3090, H100, NO_GPU, with_openvino):
        for words in map(shlex.split, list_commands(facts)):
            if words[0] == "mutoscope":
                command = main.group.get_command(context, words[1])
                assert command is not None
                # It raises for what a command does not have.
                command.make_context(words[1], words[2:], parent=context)
                seen.add(words[1])
    assert seen == {"build", "generate"}


def test_the_command_prints_findings_and_advice() -> None:
    result = CliRunner().invoke(main.group, ["doctor"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert {"system", "nvidia", "onnxruntime", "openvino", "what to run here"} <= set(lines)
    assert any(line.startswith("  ok      processor") for line in lines)
    assert lines[-1].startswith("     mutoscope generate ")


def test_json_is_one_object() -> None:
    result = CliRunner().invoke(main.group, ["doctor", "--json"])
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert set(record) == {"facts", "findings", "advice"}
    assert {finding["state"] for finding in record["findings"]} <= {"ok", "absent", "broken"}
    assert record["advice"][-1]["command"].startswith("mutoscope generate")


def test_commands_are_printed_in_one_piece(orin: Facts) -> None:
    facts = dataclasses.replace(RTX_3090, graphics=make_graphics("RTX 3090", "sm86", (12, 4)))
    facts = install(facts, tensorrt_rtx=Package("1.7.1", cuda=13))
    for machine in (orin, facts):
        findings = judge(machine)
        steps = advise(machine, findings)
        lines = [line.strip() for line in describe(findings, steps)]
        for command in filter(None, (finding.command for finding in findings)):
            assert f"-> {command}" in lines
        for step in steps:
            assert step.command in lines


LARGE = ("cuda", "pynvml", "tensorrt", "tensorrt_rtx", "onnxruntime", "openvino")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    "code",
    [
        "import mutoscope.runtime",
        "from mutoscope.runtime.main import run; run(['--help'])",
        "import mutoscope.runtime.commands.doctor",
        "from mutoscope.runtime.commands.doctor import doctor; doctor(['--help'], 'doctor', "
        "standalone_mode=False)",
    ],
)
def test_nothing_of_cuda_is_imported_at_start(code: str) -> None:
    done = run_python(f"{code}\nimport sys\nprint(*sorted(sys.modules), file=sys.stderr)")
    assert done.returncode == 0, done.stderr
    assert "mutoscope.runtime" in done.stderr.split()
    assert not set(LARGE) & set(done.stderr.split())


def test_it_works_where_no_extra_is_installed() -> None:
    done = run_python(
        "import sys\n"
        f"for name in {[name for name in LARGE if name != 'onnxruntime']}:\n"
        "    sys.modules[name] = None\n"
        "from mutoscope.runtime.commands.doctor import doctor\n"
        "doctor(['--json'], standalone_mode=False)"
    )
    assert (done.returncode, done.stderr) == (0, "")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    for name in (CUDA_BINDINGS, "TensorRT", "TensorRT for RTX", "OpenVINO"):
        assert findings[name]["state"] == "absent"
