"""How much memory decoding takes, beside what `estimate_bytes` says, for some plans.

python -m benchmarks.decode_memory
python -m benchmarks.decode_memory --graph bundle/vae_decoder/model.onnx --height 512 --width 512

Each row is measured in a process of its own: the most memory that is in no file (anonymous), the
most in all, which counts pages of the weights' file that the system could drop, the CPU time, and
how much tiles differ from the whole. Linux only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from mutoscope.engines.engine import Array
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH
from mutoscope.runtime.decoding import F32, DecodePlan, decode, estimate_bytes
from mutoscope.runtime.decoding_records import DecoderRecord
from mutoscope.runtime.json_records import read_record, write_record

SCALE: Final = 8
GRAPH: Final = "vae_decoder/model.onnx"
TILE_HEIGHTS: Final = (16, 8, 4)
RECORD: Final = "decoder.json"
_MIB: Final = 2**20
_SAMPLE_SECONDS: Final = 0.002


def read_status(name: str) -> int:
    """A field of this process's memory in /proc, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measure_here(
    bundle: Path, shape: tuple[int, ...], plan: DecodePlan, memory: Any, frames: Path
) -> dict[str, float]:
    """Decode in this process; return its memory in bytes and its CPU time, and save the frames."""
    peak, stopped = [0], threading.Event()

    def watch() -> None:
        while not stopped.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], read_status("RssAnon"))

    def open_graph(path: str) -> OnnxruntimeEngine:
        return OnnxruntimeEngine(bundle / path, num_threads=1, memory=memory)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        engine = None if plan.tiles else open_graph(GRAPH)
        loaded = read_status("RssAnon")
        latents = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        started = time.process_time()

        def run(part: F32) -> Array:
            assert engine is not None
            (name,), (output,) = engine.inputs, engine.outputs
            return engine.run({name: part})[output]

        decoded = decode(run, latents, plan, open_graph=open_graph)
        seconds = time.process_time() - started
    finally:
        stopped.set()
        thread.join()
    measured = {
        "anonymous_loaded_bytes": loaded,
        "anonymous_peak_bytes": peak[0],
        "peak_bytes": read_status("VmHWM"),
        "cpu_seconds": seconds,
    }
    np.save(frames, decoded)
    return measured


def measure_apart(
    bundle: Path, shape: tuple[int, ...], plan: DecodePlan, memory: str, frames: Path
) -> dict[str, float]:
    """Decode in a process of its own, which has imported the runtime and nothing else."""
    job = [str(bundle), list(shape), plan.frames_per_chunk, plan.tile_height, memory, str(frames)]
    command = [sys.executable, "-m", "benchmarks.decode_memory", "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def run_job(text: str) -> dict[str, float]:
    """What `measure_apart` asked for."""
    bundle, shape, frames_per_chunk, tile_height, memory, frames = json.loads(text)
    record = json.loads((Path(bundle) / RECORD).read_text())
    tiles = read_record(DecoderRecord, record, RECORD).tiles if tile_height else None
    plan = DecodePlan(frames_per_chunk, tile_height, tiles)
    return measure_here(Path(bundle), tuple(shape), plan, memory, Path(frames))


def list_rows(
    bundle: Path, decoder: DecoderRecord, shape: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """Both memory modes for all frames at once, one at a time, and in tiles."""
    num_frames = shape[2]
    plans = [DecodePlan(num_frames)]
    if decoder.independent_frames and num_frames > 1:
        plans.append(DecodePlan(1))
    if decoder.tiles is not None:
        heights = [height for height in TILE_HEIGHTS if height < shape[3]]
        plans += [DecodePlan(1, height, decoder.tiles) for height in heights]
    whole, frames = bundle / "whole.npy", bundle / "frames.npy"
    for plan in plans:
        for memory in ("normal", "low"):
            saved = frames if whole.exists() else whole
            measured = measure_apart(bundle, shape, plan, memory, saved)
            difference = np.load(saved).astype(np.int16) - np.load(whole)
            yield {
                "plan": plan.describe(),
                "memory": memory,
                "estimate_bytes": estimate_bytes(decoder, shape, SCALE, plan),
                **measured,
                "max_difference": int(np.abs(difference).max()),
            }


def print_table(rows: list[dict[str, Any]]) -> None:
    """The rows for people, in MiB and seconds."""
    titles = (
        f"{'estimate':>9}{'peak':>7}{'anonymous: loaded':>19}{'peak':>7}{'CPU s':>8}{'error':>7}"
    )
    print(f"{'plan':72}{'memory':7}{titles}")
    for row in rows:
        names = ("estimate_bytes", "peak_bytes", "anonymous_loaded_bytes", "anonymous_peak_bytes")
        estimate, peak, loaded, anonymous = (row[name] / _MIB for name in names)
        figures = f"{estimate:9.0f}{peak:7.0f}{loaded:19.0f}{anonymous:7.0f}"
        others = f"{row['cpu_seconds']:8.2f}{row['max_difference']:7}"
        print(f"{row['plan']:72}{row['memory']:7}{figures}{others}")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout."""
    parser = argparse.ArgumentParser(description="Memory of decoding, for some plans.")
    parser.add_argument(
        "--graph",
        type=Path,
        default=DEFAULT_BUNDLE_PATH / "vae_decoder" / "model.onnx",
        help="the decoder (default: that of the shipped bundle)",
    )
    for name, default in (("num-frames", 4), ("height", 256), ("width", 256)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job:
        print(json.dumps(run_job(options.job)))
        return 0
    # Imported here, so that the processes that measure have not what only the export needs.
    from mutoscope.export.decoder_memory import measure_decoder
    from mutoscope.export.decoder_tiles import add_tiles

    with tempfile.TemporaryDirectory(prefix="mutoscope-") as folder:
        bundle = Path(folder)
        (bundle / GRAPH).parent.mkdir()
        shutil.copy(options.graph, bundle / GRAPH)
        data = options.graph.with_name(f"{options.graph.name}.data")
        shutil.copy(data, (bundle / GRAPH).with_name(data.name))
        decoder = add_tiles(measure_decoder(bundle / GRAPH), bundle, GRAPH)
        (bundle / RECORD).write_text(json.dumps(write_record(decoder)))
        size = (options.height // SCALE, options.width // SCALE)
        rows = list(list_rows(bundle, decoder, (1, 4, options.num_frames, *size)))
    if options.json:
        print(json.dumps({"graph": str(options.graph), "results": rows}))
    else:
        print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
