"""Where a denoiser's time goes in onnxruntime, by operator, and how near that is to the processor.

    python -m benchmarks.operator_profile --bundle BUNDLE

For products and convolutions it gives the rate that was reached, beside what torch reaches on one
large product of matrices: what is near that cannot become faster in float32 on this processor.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnxruntime
import torch

from benchmarks.cpu_rewrites import add_size_arguments, open_denoiser
from mutoscope.engines.engine import Tensors
from mutoscope.runtime.benchmarks.machine import describe_machine, format_machine
from mutoscope.runtime.bundle import Bundle

WARM_UPS: Final = 1
MATRIX_SIZE: Final = 2048


@dataclass
class Operator:
    """What all nodes of one type took in a run.

    Attributes:
        count: Nodes.
        seconds: In all of them.
        flop: Their multiplications and additions, where the type is one that is counted.
    """

    count: float = 0
    seconds: float = 0.0
    flop: float = 0.0


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout."""
    parser = argparse.ArgumentParser(description="Profile a denoiser by operator.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--plain", action="store_true", help="the graph without the rewrites")
    add_size_arguments(parser)
    parser.add_argument("--count", type=int, default=5, help="runs that are profiled")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    bundle = Bundle.open(options.bundle)
    component, feeds = open_denoiser(bundle, options)
    graph = component.variants["float32"]
    if not options.plain:
        graph = component.cpu_graphs["float32"]
    operators = profile(bundle.path / graph, feeds, options.count)
    record = {
        "machine": describe_machine(),
        "bundle": bundle.manifest.name,
        "graph": graph,
        "peak_flop_per_second": measure_peak(),
        "operators": {name: vars(operator) for name, operator in operators.items()},
    }
    print(json.dumps(record, indent=1) if options.json else "\n".join(describe(record)))
    return 0


def profile(graph: Path, feeds: Tensors, count: int) -> dict[str, Operator]:
    """Return what each type of node took in one run, the mean of `count` runs."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.enable_mem_pattern = False
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(WARM_UPS + count):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    runs = [event for event in events if event["name"] == "model_run"]
    start = runs[WARM_UPS]["ts"]
    operators: dict[str, Operator] = defaultdict(Operator)
    for event in events:
        if event["cat"] != "Node" or event["ts"] < start or "_kernel_time" not in event["name"]:
            continue
        operator = operators[event["args"]["op_name"]]
        operator.count += 1 / count
        operator.seconds += event["dur"] / 1e6 / count
        operator.flop += _count_flop(event["args"]) / count
    return dict(sorted(operators.items(), key=lambda item: -item[1].seconds))


def measure_peak() -> float:
    """Return the multiplications and additions per second of a large product in torch, float32."""
    matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE)
    best = math.inf
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - started)
    return 2 * MATRIX_SIZE**3 / best


def _count_flop(arguments: dict[str, Any]) -> int:
    """The multiplications and additions of a node; 0 for types that are not counted."""
    inputs, outputs = (
        [list(next(iter(tensor.values()))) for tensor in arguments[f"{kind}_type_shape"]]
        for kind in ("input", "output")
    )
    match arguments["op_name"]:
        case "MatMul" | "Gemm" | "FusedMatMul":
            return 2 * math.prod(outputs[0]) * inputs[0][-1]
        case "Conv":
            return 2 * math.prod(outputs[0]) * math.prod(inputs[1][1:])
        case "MultiHeadAttention":
            return 4 * math.prod(inputs[0]) * inputs[1][1]
    return 0


def describe(record: dict[str, Any]) -> Iterator[str]:
    """Yield a table in Markdown; operators under one hundredth of the time are left out."""
    operators = record["operators"]
    total = sum(operator["seconds"] for operator in operators.values())
    yield format_machine(record["machine"])
    yield ""
    yield (
        f"{record['graph']} of {record['bundle']}; a product of {MATRIX_SIZE} x {MATRIX_SIZE} in "
        f"torch reaches {record['peak_flop_per_second'] / 1e9:.0f} GFLOP/s here."
    )
    yield ""
    yield "| operator | nodes | time | share | GFLOP/s |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, operator in operators.items():
        seconds, flop = operator["seconds"], operator["flop"]
        if seconds >= total / 100:
            rate = f"{flop / seconds / 1e9:.0f}" if flop else ""
            yield (
                f"| {name} | {operator['count']:.0f} | {1e3 * seconds:.1f} ms | "
                f"{seconds / total:.1%} | {rate} |"
            )
    yield f"| all | | {1e3 * total:.0f} ms | | |"


if __name__ == "__main__":
    raise SystemExit(main())
