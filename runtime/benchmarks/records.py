"""What a benchmark finds, as `mutoscope bench --json` prints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Seconds:
    """Wall times of several runs, those to warm up not among them."""

    median: float
    minimum: float
    count: int


@dataclass(frozen=True)
class Row:
    """What was measured of one contestant and one component.

    Attributes:
        properties: What ran, as its engine or library says.
        seconds_load: From the files to being ready to run; libraries are imported and files are
            in the system's cache.
        seconds_first_run: With what is compiled then.
        seconds_run: Of the runs after it.
        peak_rss_bytes: Of the process, loading and running; see `PeakMemory`.
        peak_anonymous_bytes: The same, loading and running once.
        relative_l2_error: Distance of the outputs from the reference's, over their length; the
            largest of several outputs; None where nothing is compared.
        ratio: How many times as fast as the first peer, by medians; None without peers.
    """

    component: str
    contestant: str
    properties: dict[str, str]
    seconds_load: Seconds
    seconds_first_run: float
    seconds_run: Seconds
    peak_rss_bytes: int | None = None
    peak_anonymous_bytes: int | None = None
    relative_l2_error: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class GuidanceRow:
    """Both ways of one step with guidance: two passes, and one pass over a batch of two."""

    component: str
    contestant: str
    seconds_separate: Seconds
    seconds_batched: Seconds


@dataclass(frozen=True)
class Failure:
    """A contestant that failed in a component, where the others went on."""

    component: str
    contestant: str
    error: str


@dataclass(frozen=True)
class Results:
    """All that was measured, and on what.

    Attributes:
        bundle: The bundle's name.
        num_threads: What all were given; None left it to each.
    """

    machine: dict[str, Any]
    bundle: str
    family: str
    num_frames: int
    height: int
    width: int
    warm_ups: int
    rows: tuple[Row, ...]
    guidance: tuple[GuidanceRow, ...] = ()
    failures: tuple[Failure, ...] = ()
    num_threads: int | None = None
