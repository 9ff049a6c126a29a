"""What it takes to encode and write a clip, measured apart from making it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from mutoscope.runtime.timings import Timings
from mutoscope.runtime.video import Video
from mutoscope.runtime.video_files import Clip, open_video_file


@contextmanager
def open_timed_file(
    path: str | os.PathLike[str], clip: Clip, timings: Timings, *, force: bool
) -> Iterator[Callable[[Video], None]]:
    """Do as `open_video_file`, and add the time that it takes to seconds_output.

    Some formats are encoded part by part, and others when all parts are there.
    """
    with ExitStack() as stack:
        add = stack.enter_context(open_video_file(path, clip, force=force))

        def add_timed(part: Video) -> None:
            with timings.measure("seconds_output"):
                add(part)

        yield add_timed
        with timings.measure("seconds_output"):
            stack.close()
