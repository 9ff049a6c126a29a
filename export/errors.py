"""The errors of the export.

MutoscopeError
└── ExportError             a checkpoint cannot be exported
    ├── CheckpointError     it cannot be opened, or is not of a kind that can be exported
    └── ExportParityError   an exported graph does not compute what the checkpoint computes
"""

from mutoscope.runtime.errors import MutoscopeError


class ExportError(MutoscopeError):
    """A checkpoint cannot be exported."""


class CheckpointError(ExportError):
    """A checkpoint cannot be opened, or is not of a kind that can be exported."""


class ExportParityError(ExportError):
    """An exported graph does not compute what the checkpoint computes; nothing was written."""
