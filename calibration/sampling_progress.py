"""How the sampling of a calibration goes on, in steps of all its samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from mutoscope.runtime.sampler import StepInfo


@dataclass(frozen=True)
class SamplingProgress:
    """Where sampling is.

    Attributes:
        sample: The sample that is being made, from 1.
        num_samples: How many there are.
        step: How many steps of it are done.
        num_steps: How many steps each sample takes.
    """

    sample: int
    num_samples: int
    step: int
    num_steps: int

    @property
    def done(self) -> int:
        """The steps that are done, of all samples."""
        return (self.sample - 1) * self.num_steps + self.step

    @property
    def total(self) -> int:
        """The steps of all samples."""
        return self.num_samples * self.num_steps


OnProgress: TypeAlias = Callable[[SamplingProgress], "bool | None"]


def report_step(
    info: StepInfo, index: int, num_samples: int, on_progress: OnProgress | None
) -> bool | None:
    """Tell of a step of the sample at this index; return what was answered."""
    if on_progress is None:
        return None
    return on_progress(
        SamplingProgress(index + 1, num_samples, info.step_index + 1, info.num_steps)
    )
