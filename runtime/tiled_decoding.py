"""Decode a frame in tiles of its rows, with the result of the whole.

What a decoder does at the size of the latents (attention among it) is cheap and runs on the whole
frame. The rest is a chain of stages that the export cut at each group norm: a stage runs tile by
tile on its rows and as many around them as its convolutions reach; what it makes lies in temporary
files, and the mean and the variance that the next norm needs are those of all tiles.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mutoscope.engines.engine import Array, Engine
from mutoscope.runtime.decoding_records import NormRecord, StageRecord, TilesRecord
from mutoscope.runtime.errors import EngineError, OutputError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

# Opens a graph by its path in the bundle; the caller closes it.
OpenGraph = Callable[[str], Engine]

MEAN, RECIPROCAL_STD = "mean", "reciprocal_std"


def count_tile_runs(tiles: TilesRecord, height: int, tile_height: int) -> int:
    """Return how many graph runs one frame takes; heights are in rows of the latents."""
    return 1 + len(tiles.stages) * math.ceil(height / tile_height)


def decode_in_tiles(
    open_graph: OpenGraph,
    latents: F32,
    tiles: TilesRecord,
    tile_height: int,
    on_run: Callable[[], object] = lambda: None,
) -> U8:
    """Return one frame, uint8 [1, H, W, 3], a new array.

    Args:
        open_graph: Opens a graph by its path in the bundle.
        latents: Clean latents of one frame, float32 [1, C, 1, h, w].
        tiles: How the decoder was cut.
        tile_height: Rows of the latents in one tile.
        on_run: Called after each run of a graph.

    Raises:
        EngineError: A graph cannot be loaded or run.
        OutputError: The folder for temporary files has no room.

    Source: within 1 of 255 of the whole frame (tests/runtime/test_tiled_decoding.py).
    """
    last_uses = {name: index for index, stage in enumerate(tiles.stages) for name in stage.inputs}
    with _open_values() as store:
        store.add_norms(tiles)
        _run_head(open_graph, latents, tiles, store)
        on_run()
        for index, stage in enumerate(tiles.stages):
            is_last = index == len(tiles.stages) - 1
            frame = _run_stage(open_graph, latents, stage, tile_height, store, on_run, is_last)
            store.drop({name for name in stage.inputs if last_uses[name] == index})
    assert frame is not None
    return frame


@contextmanager
def _open_values() -> Iterator[_Values]:
    """An empty store in a temporary folder, which is gone at the end."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="mutoscope-")
    except OSError as err:
        raise OutputError(
            f"decoding in tiles needs a folder for temporary files ({err.strerror}): set TMPDIR to "
            "one that can be written to, or raise the memory limit"
        ) from err
    with folder:
        values = _Values(Path(folder.name))
        try:
            yield values
        finally:
            values.close()


def _run_head(open_graph: OpenGraph, latents: F32, tiles: TilesRecord, store: _Values) -> None:
    """Make the values that the stages start from."""
    engine = open_graph(tiles.head)
    try:
        (name,) = engine.inputs
        outputs = engine.run({name: latents})
    finally:
        engine.close()
    for name, array in outputs.items():
        store.write(name, 0, array, array.shape[2])


def _run_stage(
    open_graph: OpenGraph,
    latents: F32,
    stage: StageRecord,
    tile_height: int,
    store: _Values,
    on_run: Callable[[], object],
    is_last: bool,
) -> U8 | None:
    """Run a stage on all tiles; its outputs go into the store, or are the frame."""
    height = latents.shape[3]
    statistics = {} if stage.norm is None else store.find_statistics(stage.norm)
    frame: U8 | None = None
    engine = open_graph(stage.graph)
    try:
        for top in range(0, height, tile_height):
            rows = _Rows(stage, top, min(top + tile_height, height), height)
            feeds = {
                name: _read(name, rows.find_input(scale), latents, store)
                for name, scale in stage.inputs.items()
            }
            outputs = engine.run({**feeds, **statistics})
            del feeds
            for name, scale in stage.outputs.items():
                core = rows.find_core(scale)
                if is_last:
                    part = _check_frame(outputs[name])[:, core]  # [1, rows, W, 3]
                    if frame is None:
                        frame = np.empty((1, height * scale, *part.shape[2:]), np.uint8)
                    frame[:, top * scale : top * scale + part.shape[1]] = part
                else:
                    part = outputs[name][:, :, core]
                    store.write(name, top * scale, part, height * scale)
            on_run()
    finally:
        engine.close()
    return frame


def _read(name: str, rows: slice, latents: F32, store: _Values) -> Array:
    """Rows of a value, or of the latents."""
    if name in store:
        return store.read(name, rows)
    return np.ascontiguousarray(latents[:, :, :, rows])


def _check_frame(frames: Array) -> U8:
    """The last stage's output without the batch axis."""
    if frames.dtype != np.uint8 or frames.ndim != 5:
        raise EngineError(
            f"vae_decoder: the last tile graph returned {frames.dtype}{list(frames.shape)}; it "
            "must be uint8 [1, 1, H, W, 3]: export again"
        )
    return np.asarray(frames[0], dtype=np.uint8)


@dataclass(frozen=True)
class _Rows:
    """Which rows of each value a tile is about: rows `top` to `bottom` of `height` latents."""

    stage: StageRecord
    top: int
    bottom: int
    height: int

    def find_input(self, scale: int) -> slice:
        """The rows that the stage is given of an input."""
        first, last = self._find_given()
        return slice(first * scale // self.stage.scale, last * scale // self.stage.scale)

    def find_core(self, scale: int) -> slice:
        """The rows of an output that are right, counted from its first."""
        first, _ = self._find_given()
        start = self.top * scale - first * scale // self.stage.scale
        return slice(start, start + (self.bottom - self.top) * scale)

    def _find_given(self) -> tuple[int, int]:
        scale, halo = self.stage.scale, self.stage.halo
        first = max(self.top * scale - halo, 0)
        return first, min(self.bottom * scale + halo, self.height * scale)


@dataclass
class _Moments:
    """The mean and the summed squared deviation of each group, over what was added so far."""

    groups: int
    count: int = 0
    mean: F64 = field(default_factory=lambda: np.zeros(0))
    deviation: F64 = field(default_factory=lambda: np.zeros(0))

    def add(self, part: Array) -> None:
        """Merge rows of the value, [1, C, rows, W].

        Source: Chan, Golub, LeVeque: Updating Formulae and a Pairwise Algorithm for Computing
        Sample Variances, 1979, formula 2.1.
        """
        channels = part.shape[1] // self.groups
        count = part[:, :channels].size
        mean, deviation = np.zeros(self.groups), np.zeros(self.groups)
        for group in range(self.groups):
            values = part[:, group * channels : (group + 1) * channels].astype(np.float32).ravel()
            mean[group] = values.mean(dtype=np.float64)
            values -= np.float32(mean[group])
            deviation[group] = np.dot(values, values)
        if self.count == 0:
            self.mean, self.deviation = np.zeros(self.groups), np.zeros(self.groups)
        total = self.count + count
        difference = mean - self.mean
        self.mean += difference * count / total
        self.deviation += deviation + difference**2 * self.count * count / total
        self.count = total


class _Values:
    """Values of a whole frame, [1, C, H, W] each, in files of their own.

    Files are read and written, never mapped, so that their pages do not count as the process's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, np.dtype[np.generic]] = {}
        self._moments: dict[str, _Moments] = {}

    def close(self) -> None:
        """Forget all values."""
        self.drop(set(self._files))

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def add_norms(self, tiles: TilesRecord) -> None:
        """Say which values to keep statistics of."""
        for stage in tiles.stages:
            if stage.norm is not None:
                self._moments[stage.norm.value] = _Moments(stage.norm.groups)

    def find_statistics(self, norm: NormRecord) -> dict[str, F32]:
        """What a norm takes beside its value, float32 [1, groups, 1] each."""
        moments = self._moments[norm.value]
        reciprocal_std = 1 / np.sqrt(moments.deviation / moments.count + norm.epsilon)
        return {
            name: array.astype(np.float32).reshape(1, -1, 1)
            for name, array in ((MEAN, moments.mean), (RECIPROCAL_STD, reciprocal_std))
        }

    def write(self, name: str, top: int, part: Array, height: int) -> None:
        """Put rows of a value from `top` on; it has `height` rows in all."""
        try:
            if name not in self._files:
                # Numbered, since a value's name need not be one that a file may have.
                path = self._folder / f"{len(self._shapes)}"
                self._shapes[name] = (part.shape[1], height, part.shape[3])
                self._types[name] = part.dtype
                self._files[name] = path.open("w+b", buffering=0)
            file = self._files[name]
            for channel, rows in enumerate(part[0]):
                file.seek(self._find_offset(name, channel, top))
                _write_all(file, np.ascontiguousarray(rows))
        except OSError as err:
            raise OutputError(
                f"a temporary file in {self._folder.parent} cannot be written: {err.strerror}: set "
                "TMPDIR to a folder on a disk with more room, or raise the memory limit"
            ) from err
        if name in self._moments:
            self._moments[name].add(part)

    def read(self, name: str, rows: slice) -> Array:
        """Rows of a value, a new array [1, C, rows, W]."""
        channels, _, width = self._shapes[name]
        part = np.empty((1, channels, rows.stop - rows.start, width), self._types[name])
        file = self._files[name]
        for channel in range(channels):
            file.seek(self._find_offset(name, channel, rows.start))
            _read_all(file, part[0, channel])
        return part

    def drop(self, names: set[str]) -> None:
        """Forget values, and their files."""
        for name in names & self._files.keys():
            file = self._files.pop(name)
            file.close()
            Path(file.name).unlink()

    def _find_offset(self, name: str, channel: int, row: int) -> int:
        _, height, width = self._shapes[name]
        return (channel * height + row) * width * self._types[name].itemsize


def _write_all(file: BinaryIO, rows: Array) -> None:
    """Write an array; an unbuffered file may take it in parts."""
    rest = rows.data.cast("B")
    while len(rest) > 0:
        rest = rest[file.write(rest) :]


def _read_all(file: BinaryIO, rows: Array) -> None:
    """Fill an array; an unbuffered file may give it in parts."""
    rest = rows.data.cast("B")
    while len(rest) > 0:
        count = file.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise EngineError(f"a temporary file ended {len(rest)} bytes early: decode again")
        rest = rest[count:]
