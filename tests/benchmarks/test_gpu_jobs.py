"""The processes that the benchmark of GPUs starts, as far as they run without one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_job, gpu_processes
from benchmarks.against_diffusers import PROMPT
from benchmarks.against_peers import SHIPPED_CHECKPOINT
from benchmarks.gpu_processes import MemoryWatch, RowError, run_process
from mutoscope.runtime import VideoPipeline
from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH
from mutoscope.runtime.metrics import psnr_db
from tests.runtime.hand_made_bundle import make_bundle

# Frames of diffusers are those of the bundle but for rounding to 8 bits.
SAME_FRAMES_PSNR_DB = 60.0


# The name of the argument that every version of diffusers takes from 0.35 on.
@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
def test_diffusers_makes_the_clip_that_the_bundle_makes(tmp_path: Path) -> None:
    job = {
        "bundle": str(DEFAULT_BUNDLE_PATH),
        "num_inference_steps": 2,
        "prompt": PROMPT,
        "seed": 0,
        "count": 1,
        "output": str(tmp_path),
        "peer": {
            "checkpoint": str(SHIPPED_CHECKPOINT),
            "device": "cpu",
            "dtype": "float32",
            "compiled": False,
        },
    }
    assert gpu_job.main([json.dumps(job)]) == 0
    with VideoPipeline.open(num_threads=1) as pipeline:
        video = pipeline.generate(
            PROMPT, seed=0, scheduler="ddim", num_inference_steps=2, guidance_scale=1
        )
    assert psnr_db(video.frames, np.load(tmp_path / "clip.npy")) >= SAME_FRAMES_PSNR_DB
    measured = json.loads((tmp_path / "record.json").read_text())
    assert measured["seconds_copies"] is None
    (step,), (clip,) = measured["seconds_step"], measured["seconds_clip"]
    assert 0 < step < clip


def test_engines_are_closed_so_that_they_keep_what_they_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_bundle(tmp_path / "bundle")
    closed = []
    close = VideoPipeline.close
    monkeypatch.setattr(VideoPipeline, "close", lambda self: (close(self), closed.append(self)))
    job = {"bundle": str(path), "num_inference_steps": 2, "prompt": "a red circle", "seed": 0}
    assert gpu_job.main([json.dumps({**job, "count": 0, "output": str(tmp_path)})]) == 0
    assert len(closed) == 1


def test_pytorch_without_cuda_is_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    peer = {"checkpoint": "none", "device": "cuda", "dtype": "float16", "compiled": False}
    job = {"bundle": str(DEFAULT_BUNDLE_PATH), "num_inference_steps": 2, "prompt": PROMPT}
    job |= {"seed": 0, "count": 1, "output": str(tmp_path), "peer": peer}
    assert gpu_job.main([json.dumps(job)]) == 1
    assert capsys.readouterr().err.startswith(f"this PyTorch, {torch.__version__}, finds no GPU")


def test_steps_on_a_gpu_are_timed_by_events_of_its_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Event:
        now = 0.0

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            Event.now += 250.0
            self.milliseconds = Event.now

        def elapsed_time(self, end: Event) -> float:
            return end.milliseconds - self.milliseconds

    class Scheduler:
        def step(self, value: int, *, doubled: bool = False) -> int:
            return value * (2 if doubled else 1)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    scheduler = Scheduler()
    ends = gpu_job.record_steps(scheduler, "cuda")
    assert [scheduler.step(3), scheduler.step(4, doubled=True)] == [3, 8]
    assert gpu_job._find_seconds(*ends) == 0.25


def test_a_process_that_fails_gives_the_last_line_that_it_wrote(tmp_path: Path) -> None:
    def run(code: str) -> str:
        with pytest.raises(RowError) as caught:
            run_process([sys.executable, "-c", code], tmp_path / "log.txt")
        return str(caught.value)

    write = "import sys; print('one', file=sys.stderr); print('error: two', file=sys.stderr)"
    assert run(f"{write}; raise SystemExit(1)") == "two"
    assert run("raise ValueError('too small')") == "ValueError: too small"
    assert run("raise SystemExit(3)") == "exit code 3"
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run(killed) == "killed by signal 9 (out of memory?)"


def test_memory_of_the_gpu_is_the_most_above_what_was_taken_before(tmp_path: Path) -> None:
    readings = iter([1000, 1200, 1900, *[1100] * 10_000])
    memory = MemoryWatch(lambda: next(readings))
    code = f"import time; time.sleep({20 * gpu_processes.SAMPLE_SECONDS})"
    run_process([sys.executable, "-c", code], tmp_path / "log.txt", memory)
    assert memory.peak_device_bytes == 900
    if sys.platform == "linux":
        assert memory.host.peak_rss_bytes
