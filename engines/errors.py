"""The root of the exception tree, and the errors of engines.

    MutoscopeError
    ├── CancelledError                  a progress callback asked to stop
    ├── EngineError                     a graph does not load or run
    │   └── ExecutionProviderError      the device asked for is not to be had
    └── (mutoscope.runtime.errors)      the errors of bundles, schedules and parameters

It stands in the lowest layer because every layer raises from it.
"""


class MutoscopeError(Exception):
    """Base of every error that Mutoscope raises on purpose; its message is one line."""


class CancelledError(MutoscopeError):
    """A progress callback asked to stop; nothing was written."""


class EngineError(MutoscopeError):
    """A component's graph cannot be loaded or run."""


class ExecutionProviderError(EngineError):
    """The execution provider that was asked for is not available in this build or machine."""


def join_lines(text: str) -> str:
    """Return a message of a library in one line."""
    return " ".join(text.split())
