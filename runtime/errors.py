"""The exception tree of the runtime; all of it derives from `MutoscopeError`.

MutoscopeError                  base; the command line prints it as one line, exit code 1
├── BundleError                 a bundle (or a file of it) is absent, damaged, or from the future
├── CancelledError              a progress callback asked to stop
├── EngineError                 a component's graph cannot be loaded or run
│   └── ExecutionProviderError  the device asked for is not available
├── MissingExtraError           an optional dependency is not installed
├── OutputError                 the video cannot be written
├── ParameterError              an argument is outside what the bundle allows
└── ScheduleError               a schedule table is unknown, malformed, or cannot be traced
"""

from mutoscope.engines.errors import (
    CancelledError,
    EngineError,
    ExecutionProviderError,
    MutoscopeError,
)

__all__ = [
    "BundleError",
    "CancelledError",
    "EngineError",
    "ExecutionProviderError",
    "MissingExtraError",
    "MutoscopeError",
    "OutputError",
    "ParameterError",
    "ScheduleError",
]


class BundleError(MutoscopeError):
    """A bundle, or a file of it, is absent, damaged, or of a format this version cannot read."""


class MissingExtraError(MutoscopeError):
    """An optional dependency is not installed; the message holds the command that installs it."""


class OutputError(MutoscopeError):
    """A result cannot be written: unknown ending, existing file, full disk, no permission."""


class ParameterError(MutoscopeError):
    """An argument is outside what the bundle allows; the message names a value that works."""


class ScheduleError(MutoscopeError):
    """A schedule table is unknown, malformed, or cannot be traced from the scheduler."""
