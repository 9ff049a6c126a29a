"""The processes that benchmarks/gpu.py starts, and how much memory they take."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.document import ROOT
from mutoscope.runtime.benchmarks.memory import PeakMemory, watch_memory
from mutoscope.runtime.errors import MutoscopeError

SAMPLE_SECONDS: Final = 0.01
_MUTOSCOPE: Final = "from mutoscope.runtime.main import main; main()"


class RowError(MutoscopeError):
    """A row does not run here; the message is the reason."""


@dataclass
class MemoryWatch:
    """The most memory that a process takes.

    Attributes:
        read_device: Returns the bytes that all processes take on the GPU; None where there is none.
        peak_device_bytes: The most that was taken on the GPU, above what was before.
        host: The most in the system's memory.
    """

    read_device: Callable[[], int] | None = None
    peak_device_bytes: int | None = None
    host: PeakMemory = field(default_factory=PeakMemory)

    @contextmanager
    def watch_device(self) -> Iterator[None]:
        """Keep `peak_device_bytes` up to date while the block runs."""
        if self.read_device is None:
            yield
            return
        read, stopped, before = self.read_device, threading.Event(), self.read_device()
        self.peak_device_bytes = 0

        def watch() -> None:
            while not stopped.wait(SAMPLE_SECONDS):
                self.peak_device_bytes = max(self.peak_device_bytes or 0, read() - before)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


def make_clips(job: dict[str, Any], memory: MemoryWatch | None = None) -> dict[str, Any]:
    """Run a job of `benchmarks.gpu_job` and return its record; raises `RowError`."""
    folder = Path(job["output"])
    command = [sys.executable, "-m", "benchmarks.gpu_job", json.dumps(job)]
    run_process(command, folder / "log.txt", memory)
    record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return record


def build_engines(bundle: Path, engine: str, variant: str, folder: Path) -> None:
    """Build what an engine runs, as `mutoscope build` does; raises `RowError`."""
    command = [sys.executable, "-c", _MUTOSCOPE, "build", str(bundle), "--engine", engine]
    command += ["--variant", variant, "--shapes", "fixed"]
    run_process(command, folder / "build.txt")


def run_process(command: list[str], log: Path, memory: MemoryWatch | None = None) -> None:
    """Run a command to its end; raises `RowError` with the last line that it wrote to stderr."""
    with log.open("w", encoding="utf-8") as stderr, ExitStack() as stack:
        if memory is not None:
            stack.enter_context(memory.watch_device())
        process = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, cwd=ROOT)
        )
        if memory is not None:
            stack.enter_context(watch_memory(process.pid, memory.host))
        code = process.wait()
    if code < 0:
        raise RowError(f"killed by signal {-code}" + (" (out of memory?)" if code == -9 else ""))
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        written = [line.strip() for line in lines if line.strip()]
        raise RowError(written[-1].removeprefix("error: ") if written else f"exit code {code}")
