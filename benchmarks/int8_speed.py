"""Record how fast int8 is beside float32, bfloat16 and PyTorch, in onnxruntime and OpenVINO.

    python -m benchmarks.int8_speed --folder FOLDER

Calibrates copies of three bundles, random models of 54 and 59 million parameters and the one that
ships, and runs `mutoscope bench` on them. The figures go to benchmarks/results/, and from there to
docs/quantization.md. Clips of random weights say nothing, so those models keep every layer that is
faster in int8.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Final

from benchmarks.against_peers import (
    ENGINES,
    RANDOM,
    SHIPPED,
    find_model,
    run_mutoscope,
    save_result,
)
from benchmarks.document import write_documents

RANDOM_OPTIONS: Final = (
    *("--components", "unet", "--method", "minmax", "--min-psnr-db", "-200"),
    *("--preset", "fast", "--num-samples", "1", "--num-inference-steps", "4"),
)
# The denoiser that `bench` is asked for, which is not the one that the bundle runs by default.
SHIPPED_OPTIONS: Final = ("--components", "unet", "--scheduler", "ddim")


def main(arguments: list[str] | None = None) -> int:
    """Calibrate, measure and record; progress goes to stderr."""
    parser = argparse.ArgumentParser(description="Record the speed of int8.")
    parser.add_argument("--folder", type=Path, required=True, help="where the models are")
    parser.add_argument("--model", action="append", choices=(*RANDOM, SHIPPED), help="only this")
    parser.add_argument("--count", type=int, default=9, help="runs that count (default: 9)")
    options = parser.parse_args(arguments)
    for name in options.model or (*RANDOM, SHIPPED):
        checkpoint, bundle = find_model(name, options.folder)
        calibrated = calibrate_copy(bundle, options.folder / f"{name}-int8", name in RANDOM)
        record = run_mutoscope(
            *("bench", calibrated, "--component", "unet", "--json", "--count", str(options.count)),
            *("--variant", "float32,int8", "--engine", ",".join(ENGINES)),
            *("--against", "diffusers", "--checkpoint", checkpoint),
        )
        save_result("int8-speed", name, json.loads(record))
    write_documents()
    return 0


def calibrate_copy(bundle: Path, target: Path, is_random: bool) -> Path:
    """Return a copy of a bundle with an int8 variant, made unless it is there."""
    if not target.exists():
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(bundle, partial)
        run_mutoscope("calibrate", partial, *(RANDOM_OPTIONS if is_random else SHIPPED_OPTIONS))
        partial.rename(target)
    return target


if __name__ == "__main__":
    raise SystemExit(main())
