"""The module onnxruntime itself, which is imported when it is first asked for."""

from __future__ import annotations

import functools
import re
from types import ModuleType

# onnxruntime writes its log to stderr. Everything it logs as an error it also raises.
LOG_SEVERITY_FATAL = 4

# Where an error was raised in onnxruntime's source, before what it says: `/file.cc:7 void f() `.
_SOURCE = re.compile(r"^/\S+:\d+ .*?\) ")


@functools.cache
def import_onnxruntime() -> ModuleType:
    """Return the module, made quiet."""
    import onnxruntime

    # Loading and device discovery log outside of any session.
    onnxruntime.set_default_logger_severity(LOG_SEVERITY_FATAL)
    module: ModuleType = onnxruntime
    return module


@functools.cache
def error_types() -> tuple[type[Exception], ...]:
    """Return the exceptions of onnxruntime, which have no common base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (getattr(state, name) for name in dir(state))
    found = (kind for kind in own if isinstance(kind, type) and issubclass(kind, Exception))
    return (*found, ValueError, RuntimeError)


def first_line(err: Exception) -> str:
    """Return what an exception says, in one line and without its place in the source."""
    lines = str(err).strip().splitlines()
    return _SOURCE.sub("", lines[0]) if lines else type(err).__name__
