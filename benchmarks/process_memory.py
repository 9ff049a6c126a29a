"""Run a command and watch how much memory its process takes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import psutil

SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class ProcessMemory:
    """What a command took.

    Attributes:
        seconds: Wall time.
        peak_rss_bytes: The largest resident memory, with mapped files that are in memory.
        peak_anonymous_bytes: The largest part of it that the system cannot drop and read again.
        stdout: What it wrote.
    """

    seconds: float
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    stdout: str


def run_measured(command: list[str]) -> ProcessMemory:
    """Run a command to its end and return what it took; Linux only.

    Peaks are those of samples every 20 ms.

    Raises:
        subprocess.CalledProcessError: The command failed; what it wrote to stderr was passed on.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    peaks = [0, 0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks))
    watcher.start()
    stdout, _ = process.communicate()
    watcher.join()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return ProcessMemory(seconds, peaks[0], peaks[1], stdout)


def _watch(pid: int, peaks: list[int]) -> None:
    """Keep the peaks up to date until the process is gone."""
    try:
        process = psutil.Process(pid)
        while process.status() != psutil.STATUS_ZOMBIE:
            info = process.memory_info()
            peaks[0] = max(peaks[0], info.rss)
            # Shared memory is that of mapped files.
            peaks[1] = max(peaks[1], info.rss - info.shared)
            time.sleep(SAMPLE_SECONDS)
    except psutil.NoSuchProcess:
        return
