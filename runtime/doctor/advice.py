"""What to run on a machine, in the order in which it is to be run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mutoscope.runtime.doctor import installing
from mutoscope.runtime.doctor.facts import (
    CUDA_BINDINGS,
    OPENVINO,
    TENSORRT,
    TENSORRT_RTX,
    Facts,
)
from mutoscope.runtime.doctor.findings import Finding, is_jetpack_too_old

_GENERATE = 'mutoscope generate "PROMPT" --bundle BUNDLE'
_WITH_OPENVINO = f"pip install 'mutoscope[{OPENVINO}]'"


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes:
        purpose: What it is for.
        command: BUNDLE and PROMPT stand for the user's own.
    """

    purpose: str
    command: str


def advise(facts: Facts, findings: list[Finding]) -> list[Step]:
    """Return what to run here for a video soon: first what mends or adds, then the rest."""
    broken = [f for f in findings if f.state == "broken" and f.command]
    mends = [Step(f"mend {finding.name}", finding.command) for finding in broken]
    engine = choose_tensorrt(facts)
    steps = list(_advise_tensorrt(facts, engine) if engine else _advise_processor(facts))
    power = [
        Step(f"{finding.name}: faster, for more power", finding.command)
        for finding in findings
        if finding.section == "jetson" and finding.state == "ok" and finding.command
    ]
    # One command may mend two things.
    return list({step.command: step for step in (*mends, *power, *steps)}.values())


def choose_tensorrt(facts: Facts) -> str:
    """Return the flavour of TensorRT for this machine, one that is installed first; "" for none."""
    if not facts.takes_tensorrt or (facts.jetson and is_jetpack_too_old(facts.jetson)):
        return ""
    fitting = [*([TENSORRT_RTX] if facts.takes_rtx else []), TENSORRT]
    usable = [name for name in fitting if facts.find_package(name).is_usable]
    return (usable or fitting)[0]


def _advise_tensorrt(facts: Facts, engine: str) -> Iterator[Step]:
    if not facts.find_package(engine).is_usable:
        yield _install(facts, engine)
    if not facts.find_package(CUDA_BINDINGS).is_usable:
        yield Step(f"add {CUDA_BINDINGS}", installing.install_cuda_bindings(facts))
    yield Step(
        "make and prove engines of a bundle with float16 graphs (mutoscope export --dtype "
        "float32,float16, on any machine with PyTorch)",
        f"mutoscope build BUNDLE --engine {engine} --variant float16",
    )
    yield Step("make a video with the fastest that passed", f"{_GENERATE} --engine auto -o out.mp4")


def _install(facts: Facts, engine: str) -> Step:
    if engine == TENSORRT_RTX:
        return Step(f"add {engine}", installing.install_tensorrt_rtx(facts))
    if facts.jetson and facts.jetson.tensorrt_pythons:
        purpose = "make an environment that sees JetPack's TensorRT, and install Mutoscope in it"
        return Step(purpose, installing.install_tensorrt(facts))
    return Step(f"add {engine}", installing.install_tensorrt(facts))


def _advise_processor(facts: Facts) -> Iterator[Step]:
    if not facts.precisions:
        yield Step("add OpenVINO, the fastest that was measured on a processor", _WITH_OPENVINO)
        yield Step("load in a third of the time until then", "mutoscope build BUNDLE")
        yield Step("make a video on the processor", f"{_GENERATE} -o out.mp4")
        return
    precision = "bf16" if "bf16" in facts.precisions else "f32"
    purpose = "make a video on the processor, by the fastest that was measured on one"
    yield Step(purpose, f"{_GENERATE} --engine {OPENVINO}:{precision} -o out.mp4")
