"""Decode latents in parts, so that memory stays within a limit.

Frames are decoded in chunks where the decoder allows it. A frame that does not fit is decoded in
tiles of its rows, from graphs that the export cut out of the decoder: slower, with the same result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mutoscope.runtime.decoding_records import DecoderRecord, TilesRecord
from mutoscope.runtime.errors import CancelledError, EngineError, ParameterError
from mutoscope.runtime.tiled_decoding import OpenGraph, count_tile_runs, decode_in_tiles

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

# Without a limit a run of several frames stays below this. On a CPU frame by frame is as fast or
# faster: what a run works on stays in the caches.
RUN_BYTES = 16 * 2**20
# Python, numpy and onnxruntime with their libraries, before any graph.
PROCESS_BYTES = 100 * 2**20

_FRAME_BYTES_PER_PIXEL = 3
_MIB = 2**20

Shape = tuple[int, ...]
# Latents float32 [1, C, F, h, w] -> frames uint8 [1, F, H, W, 3].
Run = Callable[[F32], NDArray[np.generic]]


@dataclass(frozen=True)
class DecodePlan:
    """How latents are cut for decoding.

    Attributes:
        frames_per_chunk: Frames in one run; every chunk but the last has as many.
        tile_height: Rows of the latents in a tile; None for whole frames. Tiles are of one frame.
        tiles: The graphs for tiles; None for whole frames.
    """

    frames_per_chunk: int
    tile_height: int | None = None
    tiles: TilesRecord | None = None

    def count_runs(self, latents_shape: Shape) -> int:
        """Return how many graph runs latents of a shape take, [1, C, F, h, w]."""
        num_frames, height, _ = latents_shape[2:]
        chunks = math.ceil(num_frames / self.frames_per_chunk)
        if self.tiles is None or self.tile_height is None:
            return chunks
        return chunks * count_tile_runs(self.tiles, height, self.tile_height)

    def describe(self) -> str:
        """Return the plan in words: `8 frames at a time, whole`."""
        frames = f"{self.frames_per_chunk} frame{'s'[: self.frames_per_chunk != 1]} at a time"
        if self.tile_height is None:
            return f"{frames}, whole"
        rows = f"{self.tile_height} row{'s'[: self.tile_height != 1]}"
        return f"{frames}, in tiles of {rows} of latents (same result, slower)"


@dataclass(frozen=True)
class DecodeProgress:
    """What on_run sees after each run of the decoder: how many are done, of how many."""

    num_runs_done: int
    num_runs: int


OnRun = Callable[[DecodeProgress], object]


def estimate_bytes(
    decoder: DecoderRecord, latents_shape: Shape, scale_factor: int, plan: DecodePlan
) -> int:
    """Return the peak memory of a process that decodes by a plan with `memory="low"`.

    Args:
        decoder: What the manifest says of the decoder.
        latents_shape: [1, C, F, h, w].
        scale_factor: Pixels for each position of the latents, along one axis.
        plan: How they are cut.

    Source: from 4 % below to a third above what was measured; with tiles, a tenth to a half above
    (benchmarks/decode_memory.py).
    """
    *_, num_frames, height, width = latents_shape
    pixels = height * width * scale_factor**2
    frames = min(plan.frames_per_chunk, num_frames)
    # All frames at the end, and the chunk that is being added to them.
    result = (num_frames + frames) * pixels * _FRAME_BYTES_PER_PIXEL
    if plan.tiles is None or plan.tile_height is None:
        run = frames * _frame_bytes(decoder, height, width, scale_factor)
        return PROCESS_BYTES + decoder.weights_bytes + math.ceil(run) + result
    tiles = plan.tiles
    halo = max(math.ceil(stage.halo / stage.scale) for stage in tiles.stages)
    rows = min(plan.tile_height + 2 * halo, height)
    run = max(
        tiles.head_bytes_per_latent * height * width,
        decoder.bytes_per_latent_pair * (height * width) ** 2,
        tiles.bytes_per_pixel * rows * width * scale_factor**2,
    )
    return PROCESS_BYTES + tiles.weights_bytes + math.ceil(run) + result


def plan_decode(
    decoder: DecoderRecord | None,
    latents_shape: Shape,
    scale_factor: int,
    memory_limit_bytes: int | None = None,
) -> DecodePlan:
    """Return how to cut latents: as little as the limit allows.

    Args:
        decoder: What the manifest says of the decoder; None if it says nothing.
        latents_shape: [1, C, F, h, w].
        scale_factor: Pixels for each position of the latents, along one axis.
        memory_limit_bytes: What the whole process may use while it decodes; None leaves frames
            whole, and puts as many into one run as stay within RUN_BYTES.

    Raises:
        ParameterError: The smallest parts need more than the limit; the message says how much.
    """
    *_, num_frames, height, width = latents_shape
    if decoder is None:
        if memory_limit_bytes is not None:
            raise ParameterError(
                "memory_limit is given, but this bundle does not say what its decoder needs: leave "
                "it out, or export the bundle again"
            )
        return DecodePlan(num_frames)
    if memory_limit_bytes is None:
        if not decoder.independent_frames:
            return DecodePlan(num_frames)
        at_once = int(RUN_BYTES // max(_frame_bytes(decoder, height, width, scale_factor), 1))
        return DecodePlan(min(max(at_once, 1), num_frames))
    plans = list(_list_chunks(decoder.independent_frames, num_frames))
    if decoder.tiles is not None:
        plans += _list_tilings(decoder.tiles, height)
    for plan in plans:
        if estimate_bytes(decoder, latents_shape, scale_factor, plan) <= memory_limit_bytes:
            return plan
    least = min(estimate_bytes(decoder, latents_shape, scale_factor, plan) for plan in plans)
    raise ParameterError(
        f"memory_limit is {memory_limit_bytes / _MIB:.0f} MiB; decoding {num_frames} frames of "
        f"{height * scale_factor} x {width * scale_factor} pixels needs at least "
        f"{math.ceil(least / _MIB)} MiB: use {math.ceil(least / _MIB)}MiB"
    )


def decode(
    run: Run,
    latents: F32,
    plan: DecodePlan,
    on_run: OnRun | None = None,
    *,
    open_graph: OpenGraph | None = None,
) -> U8:
    """Return the frames of latents, uint8 [F, H, W, 3], a new array; see `decode_chunks`."""
    chunks = decode_chunks(run, latents, plan, on_run, open_graph=open_graph)
    return join_chunks(chunks, plan, latents.shape)


def join_chunks(chunks: Iterable[U8], plan: DecodePlan, latents_shape: Shape) -> U8:
    """Return all frames that latents of a shape make, [1, C, F, h, w], of the chunks of a plan.

    No more than one chunk is in memory beside them.
    """
    num_frames = latents_shape[2]
    if plan.frames_per_chunk >= num_frames:
        (frames,) = chunks
        return frames
    joined: U8 | None = None
    start = 0
    for chunk in chunks:
        if joined is None:
            joined = np.empty((num_frames, *chunk.shape[1:]), np.uint8)
        joined[start : start + len(chunk)] = chunk
        start += len(chunk)
    assert joined is not None
    return joined


def decode_chunks(
    run: Run,
    latents: F32,
    plan: DecodePlan,
    on_run: OnRun | None = None,
    *,
    open_graph: OpenGraph | None = None,
) -> Iterator[U8]:
    """Yield the frames of latents chunk by chunk, each uint8 [f, H, W, 3].

    Args:
        run: The decoder: latents float32 [1, C, f, h, w] -> frames uint8 [1, f, H, W, 3].
        latents: Clean latents, float32 [1, C, F, h, w].
        plan: How to cut them. In chunks of frames the result is that of one run, in tiles it is
            within 1 of 255 of it.
        on_run: Called after each run of a graph; returns False to cancel.
        open_graph: Opens a graph by its path in the bundle; for plans with tiles.

    Raises:
        CancelledError: on_run asked to stop.
        EngineError: The decoder returned something else.
        OutputError: Tiles do not fit into the folder for temporary files.
        ParameterError: A plan has tiles, and there is no open_graph.
    """
    num_frames = latents.shape[2]
    chunks = range(0, num_frames, plan.frames_per_chunk)
    num_runs, done = plan.count_runs(latents.shape), itertools.count(1)

    def count_run() -> None:
        progress = DecodeProgress(next(done), num_runs)
        if on_run is not None and on_run(progress) is False:
            raise CancelledError(f"cancelled after run {progress.num_runs_done} of {num_runs}")

    for start in chunks:
        part = np.ascontiguousarray(latents[:, :, start : start + plan.frames_per_chunk])
        if plan.tiles is not None and plan.tile_height is not None:
            if open_graph is None:
                raise ParameterError("open_graph is None; a plan with tiles needs it: pass one")
            yield decode_in_tiles(open_graph, part, plan.tiles, plan.tile_height, count_run)
            continue
        frames = _check_frames(run(part))
        if len(chunks) > 1 and len(frames) != part.shape[2]:
            raise EngineError(
                f"vae_decoder returned {len(frames)} frames for {part.shape[2]}, though the "
                "manifest calls them independent: export again"
            )
        count_run()
        yield frames


def _list_chunks(independent_frames: bool, num_frames: int) -> Iterator[DecodePlan]:
    """Plans of whole frames, with fewer and fewer in one run."""
    counts = range(1, num_frames + 1) if independent_frames else [1]
    for frames_per_chunk in sorted({math.ceil(num_frames / n) for n in counts}, reverse=True):
        yield DecodePlan(frames_per_chunk)


def _list_tilings(tiles: TilesRecord, height: int) -> Iterator[DecodePlan]:
    """Plans of one frame in tiles, from two tiles to as many as the latents have rows."""
    heights = {math.ceil(height / count) for count in range(2, height + 1)}
    for tile_height in sorted(heights, reverse=True):
        yield DecodePlan(1, tile_height, tiles)


def _frame_bytes(decoder: DecoderRecord, height: int, width: int, scale_factor: int) -> float:
    """What one frame needs in a run; height and width are those of latents."""
    positions = height * width
    return max(
        decoder.bytes_per_pixel * positions * scale_factor**2,
        decoder.bytes_per_latent_pair * positions**2,
    )


def _check_frames(frames: NDArray[np.generic]) -> U8:
    """Return what the decoder made of one part, without the batch axis."""
    shape = frames.shape
    if frames.dtype != np.uint8 or len(shape) != 5 or shape[0] != 1 or shape[4] != 3:
        raise EngineError(
            f"vae_decoder returned {frames.dtype}{list(shape)}; a bundle's decoder "
            "returns uint8 [1, F, H, W, 3]: export again"
        )
    return np.asarray(frames[0], dtype=np.uint8)
