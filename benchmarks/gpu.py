"""How fast a bundle is on a GPU, beside PyTorch: time, memory and nearness to float32 on the CPU.

    python -m benchmarks.gpu BUNDLE --checkpoint CHECKPOINT

Everything that can make the same clip here makes it: diffusers, torch.compile, onnxruntime on each
execution provider for GPUs, TensorRT and TensorRT for RTX, each in float32, float16 and int8. Each
is a process of its own, started once to compile what it compiles, once for memory and frames, and
again in every round, all in turn; its first clip is dropped. TensorRT's engines are built as
mutoscope build does. What cannot run here is listed with its reason. --record keeps the figures for
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.against_diffusers import PROMPT
from benchmarks.against_peers import SHIPPED_CHECKPOINT, run_mutoscope
from benchmarks.document import RESULTS, ROOT, write_documents
from benchmarks.gpu_device import describe_gpu, read_device_memory
from benchmarks.gpu_processes import MemoryWatch, RowError, build_engines, make_clips
from benchmarks.gpu_rows import PEERS, Row, find_obstacle, list_rows
from benchmarks.gpu_table import describe
from mutoscope.engines.onnxruntime_providers import EXECUTION_PROVIDERS, make_cache_options
from mutoscope.engines.options import DEFAULT_EXECUTION_PROVIDER
from mutoscope.runtime.benchmarks.machine import describe_machine
from mutoscope.runtime.benchmarks.measuring import summarize
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import MutoscopeError
from mutoscope.runtime.metrics import psnr_db
from mutoscope.runtime.settings import make_settings

# Timed by each process.
CLIPS: Final = 3
SEED: Final = 0
FOLDER: Final = ROOT / "demo"


@dataclass(frozen=True)
class Contest:
    """What all rows make, and from what.

    Attributes:
        bundle: Ours run it.
        checkpoint: What it was made of; the others run that.
        device: Where the others run, "cuda" or "cpu".
        prompt: Of the clip.
        num_inference_steps: Of the clip.
        folder: For the files of processes.
        read_device: Returns the bytes that are taken on the GPU; None where there is none.
    """

    bundle: Bundle
    checkpoint: Path
    device: str
    prompt: str
    num_inference_steps: int
    folder: Path
    read_device: Callable[[], int] | None

    def start(self, row: Row, expected: NDArray[np.uint8]) -> Figures:
        """Build what a row needs, and return what a process of it takes then.

        Args:
            row: The row.
            expected: The frames to compare with, uint8 [F, H, W, 3].

        Raises:
            RowError: It does not run here.
        """
        obstacle = find_obstacle(row, self.bundle, self.checkpoint, self.device)
        if obstacle is not None:
            raise RowError(obstacle)
        _report(f"{row}: building")
        started = time.perf_counter()
        if row.engine is not None:
            build_engines(self.bundle.path.resolve(), row.engine, row.dtype, self.folder)
        else:
            # Others compile when they first run, and keep it for the next process.
            self.run(row, 0)
        seconds_build = time.perf_counter() - started
        _report(f"{row}: memory and frames")
        memory = MemoryWatch(self.read_device)
        record, frames = self.run(row, 0, memory)
        figures = {
            "seconds_build": seconds_build,
            "properties": record["properties"],
            "seconds_first_clip": record["seconds_first_clip"],
            "seconds_copies": record["seconds_copies"],
            "peak_device_bytes": memory.peak_device_bytes,
            "peak_rss_bytes": memory.host.peak_rss_bytes,
            "psnr_db": psnr_db(expected, frames),
        }
        return Figures(figures)

    def run(
        self, row: Row | None, count: int, memory: MemoryWatch | None = None
    ) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """Return what a process of a row measured, and its frames; raises `RowError`.

        Args:
            row: The row; None makes the clip that all are compared with.
            count: Clips to time.
            memory: What watches the process.
        """
        output = self.folder / str(row or "reference").replace(" ", "-")
        output.mkdir(exist_ok=True)
        job = {
            "bundle": str(self.bundle.path.resolve()),
            "num_inference_steps": self.num_inference_steps,
            "prompt": self.prompt,
            "seed": SEED,
            "count": count,
            "output": str(output),
            **self._describe_model(row),
        }
        return make_clips(job, memory), np.load(output / "clip.npy")

    def _describe_model(self, row: Row | None) -> dict[str, Any]:
        if row is None:
            return {"own": {"variant": "float32"}}
        if not row.is_peer:
            return {"own": {**row.options, **self._make_cache(row)}}
        peer = {
            "checkpoint": str(self.checkpoint.resolve()),
            "device": self.device,
            "dtype": row.dtype,
            "compiled": PEERS[row.name],
        }
        return {"peer": peer}

    def _make_cache(self, row: Row) -> dict[str, Any]:
        """Let an execution provider that builds engines build them in the first process alone."""
        name = row.options.get("execution_provider", DEFAULT_EXECUTION_PROVIDER)
        cache = self.folder / f"{row.name}-{row.dtype}-cache"
        options = make_cache_options(EXECUTION_PROVIDERS[name], cache)
        return {"provider_options": list(options.items())} if options else {}


@dataclass
class Figures:
    """What was measured of a row.

    Attributes:
        first: Of what was done before the rounds, as JSON can hold it.
        seconds_step: Of each step that counts.
        seconds_clip: Of each clip that counts.
    """

    first: dict[str, Any]
    seconds_step: list[float] = field(default_factory=list)
    seconds_clip: list[float] = field(default_factory=list)

    def summarize(self) -> dict[str, Any]:
        """Return all of it, with median, minimum and count of times."""
        times = {"seconds_step": self.seconds_step, "seconds_clip": self.seconds_clip}
        return {**self.first, **{name: asdict(summarize(times[name])) for name in times}}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout, progress to stderr."""
    options = parse_options(arguments)
    try:
        record = measure_all(options)
    except MutoscopeError as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    print(json.dumps(record, indent=1) if options.json else "\n".join(describe(record)))
    if options.record:
        text = json.dumps(record, indent=1) + "\n"
        (RESULTS / "gpu.json").write_text(text, encoding="utf-8")
        write_documents()
    return 0


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Measure all that makes clips on a GPU."
    )
    parser.add_argument(
        "bundle", nargs="?", type=Path, help="default: one of the checkpoint, made in demo/"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=SHIPPED_CHECKPOINT,
        help="what the bundle is made of, for diffusers (default: the one that ships)",
    )
    parser.add_argument("--prompt", default=PROMPT, help=f"of the clip ({PROMPT})")
    parser.add_argument("--steps", type=int, default=25, help="of each clip, 2 or more (25)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each row (3)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        help="what runs, what it computes in, or both: 'tensorrt float16'. May be given again",
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu tries the command on a machine without a GPU, with what runs there",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--record", action="store_true", help="keep the figures of this GPU")
    options = parser.parse_args(arguments)
    if options.steps < 2 or options.rounds < 1:
        parser.error("--steps must be 2 or more, --rounds 1 or more")
    if options.record and options.device == "cpu":
        parser.error("--record keeps figures of a GPU: leave out --device cpu")
    return options


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Return the machine, the clip, and what was found of every row, as JSON can hold it.

    Raises:
        MutoscopeError: There is no GPU, no such bundle or row, or the clip that all are compared
            with cannot be made.
    """
    rows = list_rows(options.device, options.only)
    has_gpu = options.device == "cuda"
    gpu = describe_gpu() if has_gpu else None
    bundle = Bundle.open(options.bundle or make_bundle(options.checkpoint, FOLDER))
    settings = make_settings(bundle, num_inference_steps=options.steps)
    with tempfile.TemporaryDirectory(prefix="mutoscope-") as folder:
        contest = Contest(
            bundle,
            options.checkpoint,
            options.device,
            options.prompt,
            options.steps,
            Path(folder),
            read_device_memory if has_gpu else None,
        )
        results, reasons = measure(contest, rows, options.rounds)
    return {
        "machine": describe_machine(),
        "gpu": gpu,
        "bundle": bundle.manifest.name,
        "num_frames": settings.num_frames,
        "height": settings.height,
        "width": settings.width,
        "num_inference_steps": options.steps,
        "rounds": options.rounds,
        "clips": CLIPS,
        "rows": [{**asdict(row), **figures.summarize()} for row, figures in results.items()],
        "not_run": [{**asdict(row), "reason": reason} for row, reason in reasons.items()],
    }


def make_bundle(checkpoint: Path, folder: Path) -> Path:
    """Return a bundle of a checkpoint in all numeric types, made in a folder unless it is there."""
    target = folder / f"{checkpoint.name}-all-types"
    if not target.exists():
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        run_mutoscope("export", checkpoint, "-o", partial, "--dtype", "float32,float16")
        run_mutoscope("calibrate", partial)
        partial.rename(target)
    return target


def measure(
    contest: Contest, rows: Sequence[Row], rounds: int
) -> tuple[dict[Row, Figures], dict[Row, str]]:
    """Return what was measured of the rows that run, and why the others do not.

    Raises:
        RowError: The clip that all are compared with cannot be made.
    """
    _report("the clip on the CPU in float32")
    _, expected = contest.run(None, 0)
    results: dict[Row, Figures] = {}
    reasons: dict[Row, str] = {}
    for row in rows:
        try:
            results[row] = contest.start(row, expected)
        except RowError as err:
            reasons[row] = str(err)
            _report(f"{row}: {err}")
    for round_index in range(rounds):
        for row in list(results):
            _report(f"{row}: round {round_index + 1} of {rounds}")
            try:
                record, _ = contest.run(row, CLIPS)
            except RowError as err:
                del results[row]
                reasons[row] = str(err)
                continue
            results[row].seconds_step += record["seconds_step"]
            results[row].seconds_clip += record["seconds_clip"]
    return results, {row: reasons[row] for row in rows if row in reasons}


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
