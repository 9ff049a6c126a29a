"""Write what the native test programs need: three bundles, and what Python makes with them.

    python -m tests.runtime.native.record_cases FOLDER

FOLDER then has text/, rows/ and image/, the bundles; picture.rgb, 20 x 30 pixels; cases.txt, a line
for each generation with its parameters as NAME=VALUE between tabs; and the frames of each,
NAME.frames, uint8 [F, H, W, 3]. The programs take FOLDER as their argument.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from mutoscope.runtime.pipeline import VideoPipeline
from tests.runtime.native.native_bundles import (
    CHUNKS_LIMIT,
    SPARED_BYTES,
    make_image,
    make_image_bundle,
    make_rows_bundle,
    make_text_bundle,
)

PROMPT = "a red circle moves left"
# Parameters of mutoscope_generate_params, and what they are in Python where that differs.
CASES: dict[str, dict[str, Any]] = {
    "plain": {"bundle": "text", "prompt": PROMPT, "seed": 7},
    "no_guidance": {"bundle": "text", "prompt": PROMPT, "seed": 7, "guidance_scale": 1},
    "batched": {"bundle": "text", "prompt": PROMPT, "seed": 7, "guidance_passes": "batched"},
    "rising": {"bundle": "text", "prompt": PROMPT, "seed": 1, "min_guidance_scale": 1.5},
    "negative": {"bundle": "text", "prompt": "réd 🟠", "seed": 2, "negative_prompt": "a star"},
    "empty": {"bundle": "text", "prompt": "", "seed": 3, "num_inference_steps": 8},
    "noisy": {"bundle": "text", "prompt": "a", "seed": 4, "scheduler": "EulerAncestral"},
    "sized": {
        "bundle": "text", "prompt": "a", "seed": 2**40 + 5, "num_frames": 5, "height": 16,
        "width": 112,
    },
    "one_frame": {"bundle": "text", "prompt": "a", "seed": 6, "num_frames": 1},
    "condition": {"bundle": "text", "prompt": "a", "seed": 6, "strength": 9.25},
    "low_memory": {"bundle": "text", "prompt": PROMPT, "seed": 7, "memory": "low"},
    "chunks": {"bundle": "text", "prompt": PROMPT, "seed": 7, "memory_limit_bytes": CHUNKS_LIMIT},
    "windows": {"bundle": "text", "prompt": PROMPT, "seed": 7, "num_frames": 40},
    "short_windows": {
        "bundle": "text", "prompt": PROMPT, "seed": 7, "num_frames": 11, "context_length": 4,
        "context_stride": 3, "scheduler": "euler-ancestral",
    },
    "reuse": {"bundle": "rows", "prompt": PROMPT, "seed": 7, "scheduler": "reuse"},
    "reuse_batched": {
        "bundle": "rows", "prompt": PROMPT, "seed": 7, "scheduler": "mixed",
        "guidance_passes": "batched", "context_length": 3,
    },
    "few_step": {"bundle": "rows", "prompt": PROMPT, "seed": 7, "scheduler": "few-step"},
    "image": {"bundle": "image", "seed": 8},
    "image_noisy": {
        "bundle": "image", "seed": 9, "scheduler": "euler-ancestral", "frame_rate": 24,
        "num_frames": 3, "height": 48, "width": 16,
    },
}  # fmt: skip
OPEN_NAMES = ("memory", "memory_limit_bytes")


def record_cases(folder: Path) -> None:
    """Write all into a folder, in place of what it has of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (
        ("text", make_text_bundle),
        ("rows", make_rows_bundle),
        ("image", make_image_bundle),
    ):
        shutil.rmtree(folder / name, ignore_errors=True)
        make(folder / name)
    (folder / "picture.rgb").write_bytes(make_image().tobytes())
    lines = []
    for name, values in CASES.items():
        _record(folder, name, dict(values))
        pairs = "\t".join(f"{key}={value}" for key, value in values.items())
        lines.append(f"name={name}\t{pairs}\n")
    (folder / "cases.txt").write_text("".join(lines), encoding="utf-8")


def _record(folder: Path, name: str, values: dict[str, Any]) -> None:
    bundle = folder / values.pop("bundle")
    options = {key: values.pop(key) for key in OPEN_NAMES if key in values}
    if "memory_limit_bytes" in options:
        options["memory_limit_bytes"] += SPARED_BYTES
    if "strength" in values:
        values["conditions"] = {"strength": values.pop("strength")}
    if bundle.name == "image":
        values["image"] = make_image()
    with VideoPipeline.open(bundle, num_threads=1, **options) as pipeline:
        frames = pipeline.generate(**values).frames
    (folder / f"{name}.frames").write_bytes(frames.tobytes())


if __name__ == "__main__":
    record_cases(Path(sys.argv[1]))
