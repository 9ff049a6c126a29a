"""Compare a frame of the shipped bundle that mutoscope-c makes with the one that Python makes.

python -m tests.runtime.native.check_frames PROGRAM...

PROGRAM is mutoscope-c, perhaps after what runs it: qemu, which takes minutes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from mutoscope.runtime.pipeline import VideoPipeline

BUNDLE = Path(__file__).resolve().parents[3] / "runtime/default_bundle"
PROMPT = "a red circle moves left"
SEED = 7
NUM_STEPS = 2
# As the header promises; other processors round differently in onnxruntime's kernels.
MAX_DIFFERENCE = 1


def main(program: list[str]) -> None:
    """Make both and exit with a message if they differ."""
    with VideoPipeline.open(BUNDLE, num_threads=1) as pipeline:
        video = pipeline.generate(PROMPT, seed=SEED, num_frames=1, num_inference_steps=NUM_STEPS)
    expected = np.asarray(video.frames)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.rgb"
        options = ["--seed", str(SEED), "--num-frames", "1", "--num-threads", "1"]
        options += ["--num-inference-steps", str(NUM_STEPS), "--quiet", "-o", str(path)]
        subprocess.run([*program, str(BUNDLE), PROMPT, *options], check=True)
        frames = np.fromfile(path, np.uint8)
    if frames.size != expected.size:
        sys.exit(f"{frames.size} bytes, not {expected.size}")
    difference = int(np.abs(frames.astype(int) - expected.reshape(-1)).max())
    if difference > MAX_DIFFERENCE:
        sys.exit(f"the frames differ by up to {difference} of 255")
    print(f"the largest difference is {difference} of 255")


if __name__ == "__main__":
    main(sys.argv[1:])
