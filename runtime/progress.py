"""Progress on stderr: a bar drawn over itself, or now and then a line where it is no tty."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_BAR_WIDTH = 24
_REDRAW_SECONDS = 0.1
# For logs: short work leaves no line at all.
_LINE_SECONDS = 30.0


class ProgressBar:
    """A bar with step and time left, for work whose number of steps is known.

    with ProgressBar("denoising", 25) as bar:
        bar.update(1)
    """

    def __init__(self, label: str, num_steps: int, *, stream: TextIO | None = None) -> None:
        """Start the clock.

        Args:
            label: What is being done.
            num_steps: Steps until it is done.
            stream: Where to draw; None is stderr.
        """
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._begin(label, num_steps)

    def _begin(self, label: str, num_steps: int) -> None:
        self._label = label
        self._num_steps = num_steps
        self._start = time.monotonic()
        self._drawn_at = -_REDRAW_SECONDS if self._is_terminal else 0.0
        self._drawn_width = 0

    def __enter__(self) -> ProgressBar:
        """Draw the empty bar."""
        self.update(0)
        return self

    def __exit__(self, *_error: object) -> None:
        """Leave the last state of the bar on its line."""
        self._end_line()

    def begin_next(self, label: str, num_steps: int) -> None:
        """Leave the bar on its line, and begin another one below it."""
        self._end_line()
        self._begin(label, num_steps)

    def _end_line(self) -> None:
        if self._is_terminal and self._drawn_width:
            self._stream.write("\n")
            self._stream.flush()

    def update(self, done: int, num_steps: int | None = None) -> None:
        """Draw the bar with `done` steps done; without a terminal, a line every half minute.

        Args:
            done: The steps that are done.
            num_steps: How many there are, where that became known; None leaves it as it was.
        """
        self._num_steps = self._num_steps if num_steps is None else num_steps
        seconds = time.monotonic() - self._start
        text = format_bar(self._label, done, self._num_steps, seconds)
        finished = done >= self._num_steps
        if self._is_terminal:
            if not finished and seconds - self._drawn_at < _REDRAW_SECONDS:
                return
            # Spaces over what a longer line left.
            text, self._drawn_width = "\r" + text.ljust(self._drawn_width), len(text)
        else:
            if finished or seconds - self._drawn_at < _LINE_SECONDS:
                return
            text += "\n"
        self._drawn_at = seconds
        self._stream.write(text)
        self._stream.flush()


def format_bar(label: str, done: int, num_steps: int, seconds: float) -> str:
    """Return the bar as text: `denoising [######------] 12/24, 0:07 left`."""
    filled = _BAR_WIDTH * done // max(num_steps, 1)
    bar = "#" * filled + "-" * (_BAR_WIDTH - filled)
    text = f"{label} [{bar}] {done}/{num_steps}"
    if done >= num_steps:
        return f"{text}, {format_seconds(seconds)}"
    if not done:
        return text
    return f"{text}, {format_seconds(seconds / done * (num_steps - done))} left"


def format_seconds(seconds: float) -> str:
    """Return a time for people: `3.2 s`, `1:05`, `2:00:00`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}" if minutes else f"{rest} s"
