"""Compare a frame that mutoscope-c makes with that of Python, and names of images with the rule.

python -m tests.runtime.native.check_frames PROGRAM...

PROGRAM is mutoscope-c, perhaps after what runs it: qemu, which takes minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from mutoscope.runtime.pipeline import VideoPipeline
from tests.runtime.native.native_bundles import make_text_bundle

BUNDLE = Path(__file__).resolve().parents[3] / "runtime/default_bundle"
PROMPT = "a red circle moves left"
SEED = 7
NUM_STEPS = 2
# As the header promises; other processors round differently in onnxruntime's kernels.
MAX_DIFFERENCE = 1
# More than four digits number.
MANY_FRAMES = 10_000


def run(program: list[str], bundle: Path, output: Path, num_frames: int, *options: str) -> None:
    """Let mutoscope-c write a clip."""
    counts = {"--seed": SEED, "--num-frames": num_frames, "--num-threads": 1}
    given = [str(part) for pair in counts.items() for part in pair]
    command = [*program, str(bundle), PROMPT, *given, *options, "--quiet", "-o", str(output)]
    subprocess.run(command, check=True)


def check_frame(program: list[str], folder: Path) -> None:
    """Exit with a message if the two frames differ."""
    with VideoPipeline.open(BUNDLE, num_threads=1) as pipeline:
        video = pipeline.generate(PROMPT, seed=SEED, num_frames=1, num_inference_steps=NUM_STEPS)
    expected = np.asarray(video.frames)
    run(program, BUNDLE, folder / "frame.rgb", 1, "--num-inference-steps", str(NUM_STEPS))
    frames = np.fromfile(folder / "frame.rgb", np.uint8)
    if frames.size != expected.size:
        sys.exit(f"{frames.size} bytes, not {expected.size}")
    difference = int(np.abs(frames.astype(int) - expected.reshape(-1)).max())
    if difference > MAX_DIFFERENCE:
        sys.exit(f"the frames differ by up to {difference} of 255")
    print(f"the largest difference is {difference} of 255")


def check_names(program: list[str], folder: Path) -> None:
    """Exit with a message if the images of a long clip are not in order by their names."""
    bundle = make_text_bundle(folder / "bundle")
    small = ["--height", "16", "--width", "16", "--num-inference-steps", "1"]
    run(program, bundle, folder / "frames", MANY_FRAMES, *small, "--guidance-scale", "1")
    names = sorted(os.listdir(folder / "frames"))
    expected = [f"frame_{number:05d}.png" for number in range(1, MANY_FRAMES + 1)]
    if names != expected:
        sys.exit(f"{len(names)} images, {names[0]} to {names[-1]}")


def main(program: list[str]) -> None:
    """Run both checks."""
    with tempfile.TemporaryDirectory() as folder:
        check_frame(program, Path(folder))
        check_names(program, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
