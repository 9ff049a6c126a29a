"""A worker seen from outside: it is told what to do, and may fail or die."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mutoscope.runtime.benchmarks.memory import PeakMemory
from mutoscope.runtime.errors import EngineError

_CLOSE_SECONDS = 5


class WorkerError(EngineError):
    """A worker failed; the message says which, and why."""


class WorkerProcess:
    """A worker in a process of its own, which ends with this object.

    Attributes:
        memory: The most that it took, as far as somebody watched.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start it; what it writes to stderr goes to the file `log`."""
        self.memory = PeakMemory()
        self._name = name
        self._log = log
        # Else a file in the folder where the user stands could hide a module.
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
            )

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and return the answer; raises `WorkerError`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self._name} died: {self._describe_end()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self._name} failed: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process, by force if it does not end by itself."""
        if self._process.stdin is not None:
            # It may have died, which ask has reported, or nobody waits for.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> WorkerProcess:
        """Return the worker itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it; at once where the block was left by an error, such as Ctrl-C."""
        if error is not None:
            self.kill()
        self.close()

    def _describe_end(self) -> str:
        code = self._process.wait()
        lines = [
            line for line in self._log.read_text(errors="replace").splitlines() if line.strip()
        ]
        if code < 0:
            return f"killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
        return lines[-1].strip() if lines else f"exit code {code}"


def make_command(module: str, settings: dict[str, Any]) -> list[str]:
    """Return what runs a worker module with its settings."""
    return [sys.executable, "-m", module, json.dumps(settings)]
