"""Run a command and watch how much memory its process takes."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass

from mutoscope.runtime.benchmarks.memory import PeakMemory, watch_memory


@dataclass(frozen=True)
class ProcessMemory:
    """What a command took.

    Attributes:
        seconds: Wall time.
        peak_rss_bytes: The largest resident memory, with mapped files that are in memory; None
            where it is not measured, outside of Linux.
        peak_anonymous_bytes: The largest part of it that the system cannot drop and read again.
        stdout: What it wrote.
    """

    seconds: float
    peak_rss_bytes: int | None
    peak_anonymous_bytes: int | None
    stdout: str


def run_measured(command: list[str]) -> ProcessMemory:
    """Run a command to its end and return what it took; see `PeakMemory`.

    Raises:
        subprocess.CalledProcessError: The command failed; what it wrote to stderr was passed on.
    """
    started, peak = time.perf_counter(), PeakMemory()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    with process, watch_memory(process.pid, peak):
        stdout, _ = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return ProcessMemory(seconds, peak.peak_rss_bytes, peak.peak_anonymous_bytes, stdout)
