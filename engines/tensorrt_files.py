"""Files that TensorRT makes, written at once or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mutoscope.engines.errors import EngineError

if TYPE_CHECKING:
    from typing_extensions import Buffer


def read_file(path: Path) -> bytes:
    """Return a file that is made again if it is of no use; empty if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def write_file(path: Path, data: Buffer) -> None:
    """Write a file under a temporary name and rename it; raises `EngineError`."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(memoryview(data))
                file.close()
                # Temporary files are private; a plan is for all who have the bundle.
                temporary.chmod(0o644)
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink()
                raise
    except OSError as err:
        raise EngineError(
            f"{path} cannot be written: {err.strerror}: choose a folder with room"
        ) from err
