import dataclasses
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH
from mutoscope.runtime.decoding import (
    RUN_BYTES,
    DecodePlan,
    DecodeProgress,
    decode,
    decode_chunks,
    estimate_bytes,
    plan_decode,
)
from mutoscope.runtime.decoding_records import DecoderRecord, StageRecord, TilesRecord
from mutoscope.runtime.errors import CancelledError, EngineError, ParameterError
from mutoscope.runtime.sampler import F32

SCALE = 8
# Those of a Stable Diffusion 1.5 decoder.
DECODER = DecoderRecord(
    independent_frames=True,
    bytes_per_pixel=4096.0,
    bytes_per_latent_pair=11.0,
    weights_bytes=198 * 10**6,
)
TEMPORAL = dataclasses.replace(DECODER, independent_frames=False)
CLIP = (1, 4, 16, 64, 64)
MIB = 2**20
TILES = TilesRecord(
    head="vae_decoder/model_tiles_00.onnx",
    stages=(
        StageRecord("vae_decoder/model_tiles_01.onnx", {"a": 1}, {"b": 2}, scale=1, halo=2),
        StageRecord("vae_decoder/model_tiles_02.onnx", {"b": 2}, {"frames": 8}, scale=2, halo=3),
    ),
    head_bytes_per_latent=16406.0,
    bytes_per_pixel=4779.0,
    weights_bytes=98 * 10**6,
)
TILED = dataclasses.replace(DECODER, tiles=TILES)


def make_latents(num_frames: int = 3, height: int = 40, width: int = 24) -> F32:
    shape = (1, 4, num_frames, height, width)
    return np.random.default_rng(3).standard_normal(shape, dtype=np.float32)


def decode_positions(latents: F32) -> np.ndarray:
    """A decoder without neighbours: each position becomes 8 x 8 equal pixels."""
    levels = np.clip(latents[:, :3] * 60 + 128, 0, 255).astype(np.uint8)
    return levels.transpose(0, 2, 3, 4, 1).repeat(SCALE, axis=2).repeat(SCALE, axis=3)


@pytest.fixture(scope="module")
def shipped() -> OnnxruntimeEngine:
    return OnnxruntimeEngine(DEFAULT_BUNDLE_PATH / "vae_decoder" / "model.onnx", num_threads=1)


@pytest.mark.parametrize("frames_per_chunk", [1, 2, 3, 4])
def test_chunks_of_frames_are_equal_to_one_run_to_the_bit(
    shipped: OnnxruntimeEngine, frames_per_chunk: int
) -> None:
    latents = make_latents(num_frames=4, height=6, width=10)

    def run(part: F32) -> np.ndarray:
        return shipped.run({"latents": part})["frames"]

    assert np.array_equal(decode(run, latents, DecodePlan(frames_per_chunk)), run(latents)[0])


def test_chunks_are_yielded_one_by_one_with_progress() -> None:
    seen: list[DecodeProgress] = []
    plan = DecodePlan(2)
    chunks = decode_chunks(decode_positions, make_latents(num_frames=5), plan, seen.append)
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]
    assert plan.count_runs(make_latents(num_frames=5).shape) == 3
    assert seen == [DecodeProgress(done, 3) for done in range(1, 4)]


def test_returning_false_cancels_before_the_next_run() -> None:
    runs = 0

    def run(part: F32) -> np.ndarray:
        nonlocal runs
        runs += 1
        return decode_positions(part)

    with pytest.raises(CancelledError, match="cancelled after run 2 of 3"):
        decode(run, make_latents(), DecodePlan(1), lambda done: done.num_runs_done < 2)
    assert runs == 2


def test_a_decoder_that_returns_something_else_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match=r"vae_decoder returned float32\[1, 3, 320, 192, 3\]"):
        decode(
            lambda part: decode_positions(part).astype(np.float32), make_latents(), DecodePlan(3)
        )
    with pytest.raises(EngineError, match="returned 5 frames for 1, though the manifest calls"):
        decode(lambda part: np.zeros((1, 5, 8, 8, 3), np.uint8), make_latents(), DecodePlan(1))


def test_without_a_limit_frames_stay_whole_and_a_run_stays_small() -> None:
    plan = plan_decode(DECODER, (1, 4, 16, 4, 4), SCALE)
    assert plan == DecodePlan(4)
    assert 4 * DECODER.bytes_per_pixel * 32 * 32 <= RUN_BYTES
    assert plan_decode(DECODER, (1, 4, 16, 32, 32), SCALE) == DecodePlan(1)
    assert plan_decode(TEMPORAL, CLIP, SCALE) == DecodePlan(16)
    assert plan_decode(None, CLIP, SCALE) == DecodePlan(16)


def test_a_longer_clip_is_not_decoded_in_larger_runs() -> None:
    short, long = (plan_decode(DECODER, (1, 4, n, 4, 4), SCALE) for n in (16, 1024))
    assert short == long


def test_a_limit_takes_fewer_frames_first_and_then_tiles_where_there_are_some() -> None:
    assert plan_decode(TILED, CLIP, SCALE, 32 * 1024 * MIB) == DecodePlan(16)
    assert plan_decode(TILED, CLIP, SCALE, 3 * 1024 * MIB) == DecodePlan(2)
    assert plan_decode(TILED, CLIP, SCALE, 1400 * MIB) == DecodePlan(1)
    tiled = plan_decode(TILED, CLIP, SCALE, 600 * MIB)
    assert tiled == DecodePlan(1, 16, TILES)
    assert tiled.describe() == (
        "1 frame at a time, in tiles of 16 rows of latents (same result, slower)"
    )
    # One run of the head, and two stages of four tiles, for each of 16 frames.
    assert tiled.count_runs(CLIP) == 16 * (1 + 2 * 4)
    message = (
        "memory_limit is 600 MiB; decoding 16 frames of 512 x 512 pixels needs at least 1326 MiB: "
        "use 1326MiB$"
    )
    with pytest.raises(ParameterError, match=message):
        plan_decode(DECODER, CLIP, SCALE, 600 * MIB)


def test_the_limit_that_an_error_names_is_enough() -> None:
    for decoder in (DECODER, TEMPORAL, TILED):
        with pytest.raises(ParameterError, match=r"use \d+MiB") as caught:
            plan_decode(decoder, CLIP, SCALE, MIB)
        named = int(str(caught.value).split("use ")[1].split("MiB")[0])
        plan_decode(decoder, CLIP, SCALE, named * MIB)
        with pytest.raises(ParameterError, match="needs at least"):
            plan_decode(decoder, CLIP, SCALE, (named - 1) * MIB)


def test_a_plan_with_tiles_needs_their_graphs() -> None:
    with pytest.raises(ParameterError, match="open_graph is None; a plan with tiles needs it"):
        decode(decode_positions, make_latents(), DecodePlan(1, 8, TILES))


def test_a_limit_needs_a_bundle_that_says_what_its_decoder_takes() -> None:
    with pytest.raises(ParameterError, match="does not say what its decoder needs: leave it out"):
        plan_decode(None, CLIP, SCALE, MIB)


def test_frames_that_depend_on_each_other_are_never_decoded_apart() -> None:
    assert plan_decode(TEMPORAL, CLIP, SCALE, 17 * 1024 * MIB) == DecodePlan(16)
    with pytest.raises(ParameterError, match="needs at least"):
        plan_decode(TEMPORAL, CLIP, SCALE, 3 * 1024 * MIB)


def test_attention_counts_where_it_is_the_largest() -> None:
    shape = (1, 4, 1, 256, 256)
    whole = estimate_bytes(DECODER, shape, SCALE, DecodePlan(1))
    assert whole > DECODER.bytes_per_latent_pair * 256**4


@given(
    num_frames=st.integers(1, 20),
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    limit=st.integers(200, 4000),
)
def test_every_plan_stays_within_its_limit(
    num_frames: int, height: int, width: int, limit: int
) -> None:
    shape = (1, 4, num_frames, height, width)
    try:
        plan = plan_decode(TILED, shape, SCALE, limit * MIB)
    except ParameterError:
        return
    assert estimate_bytes(TILED, shape, SCALE, plan) <= limit * MIB
    assert plan.tile_height is None or (
        plan.frames_per_chunk == 1 and 0 < plan.tile_height < height
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_the_shipped_decoder_stays_below_its_estimate_in_low_memory() -> None:
    record = DecoderRecord(True, 512.0, 11.0, 2535076)  # as export.decoder_memory measures it
    engine = OnnxruntimeEngine(
        DEFAULT_BUNDLE_PATH / "vae_decoder" / "model.onnx", num_threads=1, memory="low"
    )
    latents = make_latents(num_frames=2, height=64, width=64)
    before, peak, stopped = read_anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not stopped.is_set():
            peak[0] = max(peak[0], read_anonymous_bytes())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        engine.run({"latents": latents})
    finally:
        stopped.set()
        thread.join()
    per_frame = (record.bytes_per_pixel * (64 * SCALE) ** 2, record.bytes_per_latent_pair * 64**4)
    estimate = 2 * max(per_frame)
    # Half of the estimate at least: else it would be of no use to choose a plan by.
    assert estimate / 2 <= peak[0] - before <= estimate * 1.05


def read_anonymous_bytes() -> int:
    """Memory of this process that is not in any file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024
