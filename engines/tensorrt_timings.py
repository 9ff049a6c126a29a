"""What TensorRT measured in earlier builds, kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mutoscope.engines.errors import EngineError
from mutoscope.engines.tensorrt_files import read_file, write_file

if TYPE_CHECKING:
    import tensorrt


class TimingCache:
    """The timings of one build, which starts from those in a file and adds to them.

    Attributes:
        notes: What the user should hear: a build goes on without a file that is of no use.
    """

    def __init__(self, config: tensorrt.IBuilderConfig, path: Path) -> None:
        """Have a builder use the timings in a file, if they are of this GPU and version."""
        self.notes: list[str] = []
        self._path = path
        cache = config.create_timing_cache(read_file(path))
        # Timings of another GPU or version are refused as well as damaged ones.
        if cache is None or not config.set_timing_cache(cache, False):
            self.notes.append(f"{path} is damaged or was made elsewhere: measured anew")
            cache = config.create_timing_cache(b"")
            if cache is None or not config.set_timing_cache(cache, False):
                raise EngineError("TensorRT makes no timing cache: build without one")
        self._cache = cache

    def save(self) -> None:
        """Replace the file."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, self._cache.serialize())
        # A plan that took long to build is worth more than its timings.
        except (EngineError, OSError) as err:
            self.notes.append(f"timings are not kept: {err}")
