"""How much memory a process takes, as Linux tells; elsewhere nothing is measured."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.01


@dataclass
class PeakMemory:
    """The most memory that a process took; None where it is not measured.

    Attributes:
        peak_rss_bytes: Resident memory since its start, with pages of mapped files in memory.
        peak_anonymous_bytes: Of it, what the system cannot drop and read again. The largest of
            samples every 10 ms while it was watched.
    """

    peak_rss_bytes: int | None = None
    peak_anonymous_bytes: int | None = None

    def add_sample(self, status: dict[str, int]) -> None:
        """Take a reading of `read_status` into account."""
        if "VmHWM" in status:
            # The kernel counts pages on each core for itself, and the peak may lag behind.
            self.peak_rss_bytes = max(self.peak_rss_bytes or 0, status["VmHWM"], status["VmRSS"])
            self.peak_anonymous_bytes = max(self.peak_anonymous_bytes or 0, status["RssAnon"])


def read_status(pid: int | str) -> dict[str, int]:
    """Return the sizes that /proc has of a process, in bytes; none if it is gone, or not Linux."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines)
    return {
        name: int(value.split()[0]) * 1024 for name, _, value in fields if value.endswith(" kB")
    }


@contextmanager
def watch_memory(pid: int, peak: PeakMemory) -> Iterator[None]:
    """Keep `peak` up to date while the block runs."""
    stopped = threading.Event()

    def watch() -> None:
        while True:
            peak.add_sample(read_status(pid))
            if stopped.wait(SAMPLE_SECONDS):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        peak.add_sample(read_status(pid))
