"""Export and run AnimateDiff at its full size, 1.3 billion parameters, and measure the memory.

    python -m benchmarks.full_size --folder FOLDER

The weights are random: they take as much memory and time as trained ones. The folder needs 12 GB;
a checkpoint that is there already is used again. docs/full-size.md has what it printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checkpoints import make_stable_diffusion
from benchmarks.process_memory import ProcessMemory, run_measured
from mutoscope.runtime.benchmarks.machine import describe_machine

GIB = 2**30
NUM_FRAMES, SIZE, STEPS = 8, 256, 2
PROMPT = "a red circle moves left on a gray background"
MEMORY_MODES = ("normal", "low")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout."""
    parser = argparse.ArgumentParser(description="Export and run AnimateDiff at its full size.")
    parser.add_argument("--folder", type=Path, required=True, help="where to work")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    folder = options.folder
    checkpoint, adapter, bundle = (folder / name for name in ("sd15", "adapter", "bundle"))
    if not (checkpoint / "model_index.json").is_file():
        make_stable_diffusion(checkpoint, adapter)
    shutil.rmtree(bundle, ignore_errors=True)
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "export": _export(checkpoint, adapter, bundle),
    }
    for memory in MEMORY_MODES:
        results[memory] = _generate(bundle, folder / f"{memory}.npy", memory)
    normal, low = (np.load(folder / f"{memory}.npy").astype(int) for memory in MEMORY_MODES)
    results["largest_difference"] = int(np.abs(normal - low).max())
    print(json.dumps(results) if options.json else "\n".join(_describe(results)))
    return 0


def _export(checkpoint: Path, adapter: Path, bundle: Path) -> dict[str, Any]:
    arguments = ["export", str(checkpoint), "--motion-adapter", str(adapter), "-o", str(bundle)]
    measured = _run([*arguments, "--num-inference-steps", "2,25", "--json"])
    files = sorted(path for path in (bundle / "unet").iterdir())
    return {
        **_figures(measured),
        "unet_files": {path.name: path.stat().st_size for path in files},
        "components": json.loads(measured.stdout)["components"],
    }


def _generate(bundle: Path, output: Path, memory: str) -> dict[str, Any]:
    arguments = ["generate", PROMPT, "--bundle", str(bundle), "--seed", "7", "-o", str(output)]
    arguments += ["--num-frames", str(NUM_FRAMES), "--height", str(SIZE), "--width", str(SIZE)]
    arguments += ["--num-inference-steps", str(STEPS), "--memory", memory, "--force", "--json"]
    measured = _run(arguments)
    return {**_figures(measured), "video": json.loads(measured.stdout)["videos"][0]}


def _run(arguments: list[str]) -> ProcessMemory:
    code = "from mutoscope.runtime.main import main; main()"
    return run_measured([sys.executable, "-c", code, *arguments])


def _figures(measured: ProcessMemory) -> dict[str, float | int]:
    return {name: value for name, value in asdict(measured).items() if name != "stdout"}


def _describe(results: dict[str, Any]) -> Iterator[str]:
    """Yield a table in Markdown."""
    yield ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    yield ""
    yield "| step | time | peak memory | of it anonymous |"
    yield "|---|---|---|---|"
    for name in ("export", *MEMORY_MODES):
        figures = results[name]
        label = name if name == "export" else f"generate --memory {name}"
        yield (
            f"| `{label}` | {figures['seconds']:.0f} s | {figures['peak_rss_bytes'] / GIB:.2f} GiB "
            f"| {figures['peak_anonymous_bytes'] / GIB:.2f} GiB |"
        )
    yield ""
    yield "| component | nodes | files | worst PSNR |"
    yield "|---|---|---|---|"
    for name, component in results["export"]["components"].items():
        worst = min(record["psnr_db"] for record in component["parity"])
        size = component["size_bytes"] / 1e6
        yield f"| `{name}` | {component['nodes']} | {size:.1f} MB | {worst:.1f} dB |"
    yield ""
    for name, size in results["export"]["unet_files"].items():
        yield f"unet/{name}: {size / 1e6:.3f} MB"
    yield f"largest difference between both modes: {results['largest_difference']} of 255"


if __name__ == "__main__":
    raise SystemExit(main())
