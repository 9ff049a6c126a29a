"""`mutoscope doctor`: what this machine has to run bundles with, and what it lacks."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import textwrap
from collections.abc import Iterator

import click

from mutoscope.runtime.doctor.advice import Step, advise
from mutoscope.runtime.doctor.findings import Finding, judge
from mutoscope.runtime.doctor.reading import read_machine

# Of a line where there is no terminal, and the least that is used of one.
_WIDTH, _LEAST_WIDTH = 100, 60
_NAME_WIDTH = 21
_STATE_WIDTH = 8
_INDENT = " " * (2 + _STATE_WIDTH + _NAME_WIDTH)

_EPILOG = """\b
Examples:
  mutoscope doctor
  mutoscope doctor --json
"""


@click.command(epilog=_EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def doctor(as_json: bool) -> None:
    """Show what this machine has to run bundles with, what it lacks, and what would add it.

    Looked at are the processor, NVIDIA GPUs with their driver and CUDA, TensorRT and TensorRT for
    RTX, onnxruntime and its execution providers, OpenVINO, and on a Jetson JetPack, power mode and
    clocks. Each is ok, absent or broken; the commands that are shown are for this machine. Nothing
    is changed, and no graph is run. The exit code is 0 whatever is lacking.
    """
    facts = read_machine()
    findings = judge(facts)
    steps = advise(facts, findings)
    if as_json:
        record = {
            "facts": dataclasses.asdict(facts),
            "findings": [dataclasses.asdict(finding) for finding in findings],
            "advice": [dataclasses.asdict(step) for step in steps],
        }
        # A path becomes text.
        click.echo(json.dumps(record, default=str))
    else:
        click.echo("\n".join(describe(findings, steps)))


def describe(findings: list[Finding], steps: list[Step]) -> Iterator[str]:
    """Yield the lines for people."""
    for section, members in itertools.groupby(findings, key=lambda finding: finding.section):
        yield section
        for finding in members:
            state = finding.state.ljust(_STATE_WIDTH)
            head = f"  {state}{finding.name.ljust(_NAME_WIDTH)}"
            yield from _wrap(finding.detail, head)
            if finding.good_for:
                yield from _wrap(f"for {finding.good_for}", _INDENT)
            if finding.command:
                yield f"{_INDENT}-> {finding.command}"
        yield ""
    yield "what to run here"
    for number, step in enumerate(steps, start=1):
        yield from _wrap(f"{step.purpose}:", f"  {number}. ", " " * 5)
        yield f"     {step.command}"


def _wrap(text: str, head: str, indent: str = _INDENT) -> list[str]:
    """Lines that fit the terminal; commands are left in one piece, for copying."""
    width = max(_LEAST_WIDTH, shutil.get_terminal_size((_WIDTH, 0)).columns)
    return textwrap.wrap(
        text,
        width,
        initial_indent=head,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
