"""What is checked and read before the long work on a bundle."""

from __future__ import annotations

import os
from pathlib import Path

from mutoscope.calibration.samples import load_default_prompts, load_tokenizers, read_prompts
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import OutputError


def check_writable(bundle: Bundle) -> None:
    """Raise `OutputError` if the bundle cannot be replaced."""
    path = bundle.path.resolve()
    for folder in (path.parent, path):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(
                f"{path} cannot be replaced: no permission in {folder}: work on a copy of the "
                "bundle"
            )


def load_prompts(bundle: Bundle, path: Path | None) -> list[str]:
    """Return the prompts of a file, else the bundle's or the built-in ones.

    Raises:
        BundleError: A file of the bundle is damaged.
        CalibrationError: The file cannot be read, or there is a prompt that the bundle cannot take.
    """
    if path is None:
        return load_default_prompts(bundle)
    return read_prompts(path, load_tokenizers(bundle))
