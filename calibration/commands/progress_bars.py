"""Progress bars of commands that do several things, one after the other."""

from __future__ import annotations

from mutoscope.runtime.progress import ProgressBar


class ProgressBars:
    """One progress bar below the other, as the labels change."""

    def __init__(self) -> None:
        """Draw nothing yet."""
        self._bar: ProgressBar | None = None
        self._label = ""

    def update(self, label: str, done: int, total: int) -> None:
        """Draw how much of something is done, and of how much."""
        if self._bar is None:
            self._bar = ProgressBar(label, total).__enter__()
        elif label != self._label:
            self._bar.begin_next(label, total)
        self._label = label
        self._bar.update(done)

    def close(self) -> None:
        """Leave the last bar on its line."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
