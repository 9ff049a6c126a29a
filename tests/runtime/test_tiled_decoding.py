import errno
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.engines.options import EngineOptions
from mutoscope.export.decoder_memory import measure_decoder
from mutoscope.export.decoder_tiles import add_tiles
from mutoscope.runtime import VideoPipeline, main, tiled_decoding
from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH, Bundle
from mutoscope.runtime.bundle_writer import make_file_records
from mutoscope.runtime.components import Components
from mutoscope.runtime.decoder import decode_latents, make_decode_plan
from mutoscope.runtime.decoding import DecodePlan, DecodeProgress
from mutoscope.runtime.errors import (
    BundleError,
    CancelledError,
    EngineError,
    OutputError,
    ParameterError,
)
from mutoscope.runtime.json_records import write_record
from mutoscope.runtime.latents_files import save_latents
from mutoscope.runtime.sampler import F32
from mutoscope.runtime.timings import Timings

# Statistics are summed in another order, and the frame is rounded to whole levels.
MAX_TILE_DIFFERENCE = 1
GRAPH = "vae_decoder/model.onnx"
MIB = 2**20


@pytest.fixture(scope="module")
def tiled_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle with graphs for tiles."""
    bundle = tmp_path_factory.mktemp("tiled") / "bundle"
    shutil.copytree(DEFAULT_BUNDLE_PATH, bundle)
    record = add_tiles(measure_decoder(bundle / GRAPH), bundle, GRAPH)
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    path.unlink()
    manifest["components"]["vae_decoder"]["decoder"] = write_record(record)
    manifest["files"] = {
        name: write_record(file) for name, file in make_file_records(bundle).items()
    }
    path.write_text(json.dumps(manifest))
    return bundle


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def make_latents(num_frames: int, height: int, width: int) -> F32:
    shape = (1, 4, num_frames, height, width)
    return np.random.default_rng(height).standard_normal(shape, dtype=np.float32)


def decode_whole(bundle: Path, latents: F32) -> np.ndarray:
    engine = OnnxruntimeEngine(bundle / GRAPH, num_threads=1)
    return engine.run({"latents": latents})["frames"][0]


def make_plan(bundle: Bundle, tile_height: int) -> DecodePlan:
    decoder = bundle.manifest.components["vae_decoder"].decoder
    assert decoder is not None
    assert decoder.tiles is not None
    return DecodePlan(1, tile_height, decoder.tiles)


def decode_in_tiles(
    bundle_path: Path,
    latents: F32,
    tile_height: int,
    on_run: Callable[[DecodeProgress], object] | None = None,
    *,
    low_memory: bool = False,
) -> np.ndarray:
    bundle = Bundle.open(bundle_path)
    options = EngineOptions(num_threads=1, memory="low" if low_memory else "normal")
    components = Components(bundle, options)
    plan = make_plan(bundle, tile_height)
    return decode_latents(components, latents, plan, Timings(), on_run=on_run)


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize(
    ("num_frames", "height", "width", "tile_height"),
    [(1, 32, 32, 8), (1, 32, 32, 12), (3, 13, 9, 4), (2, 7, 11, 1), (1, 64, 16, 16)],
)
def test_tiles_make_the_whole_frames(
    tiled_bundle: Path,
    temporary: Path,
    num_frames: int,
    height: int,
    width: int,
    tile_height: int,
    low_memory: bool,
) -> None:
    latents = make_latents(num_frames, height, width)
    frames = decode_in_tiles(tiled_bundle, latents, tile_height, low_memory=low_memory)
    whole = decode_whole(tiled_bundle, latents)
    assert frames.shape == whole.shape
    assert np.abs(frames.astype(int) - whole).max() <= MAX_TILE_DIFFERENCE
    assert list(temporary.iterdir()) == []


def test_progress_counts_every_run_of_a_graph(tiled_bundle: Path) -> None:
    seen: list[DecodeProgress] = []
    latents = make_latents(2, 7, 5)
    decode_in_tiles(tiled_bundle, latents, 3, seen.append)
    num_runs = make_plan(Bundle.open(tiled_bundle), 3).count_runs(latents.shape)
    assert seen == [DecodeProgress(done, num_runs) for done in range(1, num_runs + 1)]


def test_cancelling_leaves_no_temporary_files(tiled_bundle: Path, temporary: Path) -> None:
    in_use: list[int] = []

    def cancel(progress: DecodeProgress) -> bool:
        in_use.append(len(list(temporary.rglob("*"))))
        return progress.num_runs_done < 7

    with pytest.raises(CancelledError, match="cancelled after run 7 of"):
        decode_in_tiles(tiled_bundle, make_latents(1, 9, 5), 4, cancel)
    assert max(in_use) >= 2
    assert list(temporary.iterdir()) == []


def test_an_error_leaves_no_temporary_files(tiled_bundle: Path, temporary: Path) -> None:
    bundle = Bundle.open(tiled_bundle)
    plan = make_plan(bundle, 4)
    opened: list[str] = []

    def open_graph(path: str) -> OnnxruntimeEngine:
        opened.append(path)
        if len(opened) == 5:
            raise EngineError("the fifth graph fails")
        return OnnxruntimeEngine(tiled_bundle / path, num_threads=1)

    assert plan.tiles is not None
    with pytest.raises(EngineError, match="the fifth graph fails"):
        tiled_decoding.decode_in_tiles(open_graph, make_latents(1, 9, 5), plan.tiles, 4)
    assert list(temporary.iterdir()) == []


def test_a_full_disk_is_one_line_with_a_way_out(
    tiled_bundle: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: io.RawIOBase, rows: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tiled_decoding, "_write_all", fail)
    with pytest.raises(OutputError, match="No space left on device: set TMPDIR to a folder on a d"):
        decode_in_tiles(tiled_bundle, make_latents(1, 9, 5), 4)
    assert list(temporary.iterdir()) == []


def test_no_folder_for_temporary_files_is_one_line_with_a_way_out(
    tiled_bundle: Path, temporary: Path
) -> None:
    temporary.rmdir()
    with pytest.raises(OutputError, match=r"needs a folder for temporary files \(No such file"):
        decode_in_tiles(tiled_bundle, make_latents(1, 9, 5), 4)


def test_a_limit_below_one_frame_simply_works(
    tiled_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ("mutoscope.runtime.commands.decode:decode", "Make a video of saved latents.")
    monkeypatch.setitem(main.COMMANDS, "decode", line)
    monkeypatch.chdir(tmp_path)
    latents = make_latents(2, 32, 64)
    save_latents("x.npy", latents)
    arguments = ["decode", "x.npy", "--bundle", str(tiled_bundle), "-o", "out.npy", "--json"]
    arguments += ["--memory", "low", "--num-threads", "1", "--memory-limit"]
    assert main.run([*arguments, "101MiB"]) == 1
    named = capsys.readouterr().err.split("use ")[1].strip()
    assert main.run([*arguments, named]) == 0
    captured = capsys.readouterr()
    assert captured.err.endswith("of latents (same result, slower)\n")
    result = json.loads(captured.out)
    assert result["frames_per_chunk"] == 1
    assert result["tile_height"] < 32
    difference = np.load("out.npy").astype(int) - decode_whole(tiled_bundle, latents)
    assert np.abs(difference).max() <= MAX_TILE_DIFFERENCE


def test_a_pipeline_with_a_low_limit_makes_the_same_video(tiled_bundle: Path) -> None:
    bundle = Bundle.open(tiled_bundle)
    limits = bundle.manifest.limits
    height, width = limits.height.maximum or 256, limits.width.maximum or 256
    asked: dict[str, Any] = {"num_frames": 2, "height": height, "width": width, "seed": 3}
    asked |= {"num_inference_steps": 2, "prompt": "a red circle"}
    with VideoPipeline.open(tiled_bundle, memory="low", num_threads=1) as pipeline:
        whole = pipeline.generate(**asked).frames
    shape = (1, 4, 2, height // 8, width // 8)
    with pytest.raises(ParameterError, match="needs at least") as caught:
        make_decode_plan(bundle, shape, 101 * MIB)
    limit = int(str(caught.value).split("use ")[1].removesuffix("MiB")) * MIB
    assert make_decode_plan(bundle, shape, limit).tile_height is not None
    with VideoPipeline.open(
        tiled_bundle, memory="low", memory_limit_bytes=limit, num_threads=1
    ) as pipeline:
        frames = pipeline.generate(**asked).frames
    assert np.abs(frames.astype(int) - whole).max() <= MAX_TILE_DIFFERENCE


def test_a_graph_for_tiles_that_changed_is_refused(tiled_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiled_bundle, bundle)
    path = bundle / "vae_decoder" / "model_tiles_03.onnx"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(BundleError, match=r"model_tiles_03.onnx does not match its sha256"):
        decode_in_tiles(bundle, make_latents(1, 9, 5), 4)
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"]["vae_decoder/model_tiles_03.onnx"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"model_tiles_03.onnx but does not list it under files"):
        Bundle.open(bundle)
