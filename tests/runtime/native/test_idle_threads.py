"""After a run, threads rest: they would take the cores from the next graph, and from the caller."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH
from mutoscope.runtime.native import Library, NativePipeline
from mutoscope.runtime.pipeline import VideoPipeline

# A thread that waits in a loop does so for some 30 ms; at rest all of them take under 1 ms.
MOST_SECONDS = 0.01

Open = Callable[[Library], VideoPipeline | NativePipeline]


def open_python(library: Library) -> VideoPipeline:
    del library
    return VideoPipeline.open(DEFAULT_BUNDLE_PATH, num_threads=2)


def open_native(library: Library) -> NativePipeline:
    return NativePipeline.open(DEFAULT_BUNDLE_PATH, library=library, num_threads=2)


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core has no second thread that could wait")
@pytest.mark.parametrize("open_pipeline", [open_python, open_native])
def test_no_thread_is_busy_after_a_generation(library: Library, open_pipeline: Open) -> None:
    with open_pipeline(library) as pipeline:
        pipeline.generate("a red circle moves left", num_inference_steps=1)
        begin = time.process_time()
        time.sleep(0.1)
        assert time.process_time() - begin < MOST_SECONDS
