"""How far a build of TensorRT is, as one count that only grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mutoscope.engines.errors import CancelledError

if TYPE_CHECKING:
    import tensorrt

# What `total` is: a build has phases within phases, whose number is not known before.
NUM_TICKS = 1000

OnBuildProgress = Callable[[str, int, int], "bool | None"]


@dataclass
class _Phase:
    """A phase that has begun, its place in the whole build, and how far it is."""

    start: float
    length: float
    num_steps: int
    num_done: int = 0

    @property
    def position(self) -> float:
        return self.start + self.length * min(self.num_done / self.num_steps, 1)


class BuildProgress:
    """The progress of one build.

    It counts the steps that TensorRT reports, not time: TensorRT for RTX 1.7 reports none in its
    last phase, which takes most of a build.

    TensorRT cannot pass on what the callback raises, so that it is kept for `check`.
    """

    def __init__(self, on_progress: OnBuildProgress) -> None:
        """Report to a callback: the phase, how many of NUM_TICKS are done, and NUM_TICKS."""
        self._error: BaseException | None = None
        self._is_cancelled = False
        self._on_progress = on_progress
        self._phases: dict[str, _Phase] = {}
        self._num_done = 0

    @property
    def is_stopped(self) -> bool:
        """Whether the build is to end."""
        return self._is_cancelled or self._error is not None

    def check(self, name: str) -> None:
        """Raise what the callback raised, or `CancelledError` if it asked to stop.

        Args:
            name: What is built.
        """
        if self._error is not None:
            raise self._error
        if self._is_cancelled:
            raise CancelledError(f"building {name} was cancelled; nothing was written")

    def start_phase(self, name: str, parent: str | None, num_steps: int) -> None:
        """Note that a phase begins, within a step of its parent."""
        outer = self._phases.get(parent) if parent else None
        # A phase without a parent that is known is the rest of the build, whatever that is.
        start = outer.position if outer else self._num_done / NUM_TICKS
        length = outer.length / outer.num_steps if outer else 1 - start
        self._phases[name] = _Phase(start, length, max(num_steps, 1))
        self._report(name, start)

    def complete_step(self, name: str, step: int) -> None:
        """Note that a step, counted from 0, is done."""
        phase = self._phases.get(name)
        if phase is not None:
            phase.num_done = step + 1
            self._report(name, phase.position)

    def finish_phase(self, name: str) -> None:
        """Note that a phase is over, also if not all of its steps were reported."""
        phase = self._phases.pop(name, None)
        if phase is not None and not self.is_stopped:
            self._report(name, phase.start + phase.length)

    def _report(self, name: str, position: float) -> None:
        self._num_done = max(self._num_done, int(position * NUM_TICKS))
        if self.is_stopped:
            return
        try:
            self._is_cancelled = self._on_progress(name, self._num_done, NUM_TICKS) is False
        # KeyboardInterrupt as well: it arises here when somebody stops a build by Ctrl-C.
        except BaseException as err:
            self._error = err


def make_monitor(trt: tensorrt.Tensorrt, progress: BuildProgress) -> tensorrt.IProgressMonitor:
    """Return what TensorRT is to be given, so that it tells `progress`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]  # known at run time
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start_phase(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.complete_step(phase_name, step)
            return not progress.is_stopped

        def phase_finish(self, phase_name: str) -> None:
            progress.finish_phase(phase_name)

    monitor: tensorrt.IProgressMonitor = Monitor()
    return monitor
