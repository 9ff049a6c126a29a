"""Record how fast bundles are against what people would use instead, and how much memory they take.

    python -m benchmarks.against_peers --folder FOLDER

Runs `mutoscope bench` on three models: random ones of 54 and 59 million parameters, which are made
and exported into FOLDER unless they are there (1.5 GB), and the one that ships. The figures go to
benchmarks/results/, and from there to docs/benchmarks.md. It takes an hour or so, most of it in
torch.compile; the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks import checkpoints
from benchmarks.document import RESULTS, write_documents
from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH, Bundle

SHIPPED: Final = "moving-shapes"
SHIPPED_CHECKPOINT: Final = Path(__file__).resolve().parent.parent / "checkpoints" / SHIPPED
RANDOM: Final = ("animatediff-54m", "modelscope-59m")
STEPS: Final = "1,2,4,8,16,25"
ENGINES: Final = ("onnxruntime", "openvino:f32", "openvino:bf16")
PEERS: Final = (
    "diffusers",
    "diffusers-bf16",
    "diffusers-compile",
    "onnxruntime-plain",
    "openvino",
    "openvino:bf16",
)
_CODE: Final = "from mutoscope.runtime.main import main; main()"


def find_model(name: str, folder: Path) -> tuple[Path, Path]:
    """Return the checkpoint and the bundle of a model, made in `folder` unless they are there."""
    if name == SHIPPED:
        return SHIPPED_CHECKPOINT, DEFAULT_BUNDLE_PATH
    checkpoint, bundle = folder / name, folder / f"{name}-bundle"
    if not (checkpoint / "model_index.json").is_file():
        checkpoints.main([name, "--folder", str(checkpoint)])
    if not (bundle / "manifest.json").is_file():
        run_mutoscope("export", checkpoint, "-o", bundle, "--num-inference-steps", STEPS)
        Bundle.open(bundle)
    return checkpoint, bundle


def run_mutoscope(*arguments: str | Path) -> str:
    """Run `mutoscope ARGUMENTS` in a process of its own and return what it wrote to stdout.

    Raises:
        subprocess.CalledProcessError: It failed, and wrote nothing; a benchmark in which one of the
            contestants fails writes what the others took.
    """
    command = [sys.executable, "-c", _CODE, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        done.check_returncode()
    return done.stdout


def save_result(kind: str, name: str, record: dict[str, Any]) -> None:
    """Keep a record in benchmarks/results/, from where the document has its tables."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{kind}-{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Measure and record; progress goes to stderr."""
    parser = argparse.ArgumentParser(description="Record the speed against peers.")
    parser.add_argument("--folder", type=Path, required=True, help="where the random models are")
    parser.add_argument("--model", action="append", choices=(*RANDOM, SHIPPED), help="only this")
    parser.add_argument("--count", type=int, default=7, help="runs that count (default: 7)")
    parser.add_argument("--against", default=",".join(PEERS), help="peers, with commas")
    parser.add_argument("--engine", default=",".join(ENGINES), help="engines, with commas")
    options = parser.parse_args(arguments)
    failures: list[Any] = []
    for name in options.model or (*RANDOM, SHIPPED):
        checkpoint, bundle = find_model(name, options.folder)
        rest = ["--engine", options.engine, "--against", options.against, "--json"]
        rest += ["--count", str(options.count), "--checkpoint", str(checkpoint)]
        record = json.loads(run_mutoscope("bench", bundle, *rest))
        save_result("against-peers", name, record)
        failures += record["failures"]
    write_documents()
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
