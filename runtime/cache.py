"""The folder of a user where mutoscope keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def find_cache() -> Path:
    """Return the folder; it need not exist, nor be absolute where the user has no home."""
    # Path.home() would raise where there is no home.
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "mutoscope"
