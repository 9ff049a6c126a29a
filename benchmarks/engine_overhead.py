"""What the engine layer adds to onnxruntime's own run, for a graph of about 10 ms.

    python -m benchmarks.engine_overhead --json > benchmarks/results/engine-overhead.json

Both sides run the same session on the same arrays and take turns, now one and now the other first.
"run" is compared with InferenceSession.run, and "run into arrays" with run_with_iobinding on a
binding that is made once. The second graph does nothing, so that its difference is the layer alone,
without the noise of 10 ms of arithmetic; its share is relative to the first graph. CPU time is of
the calling thread, which does not count what others on the machine take. Inputs are as a small
denoiser's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mutoscope.engines.engine import Tensors
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.runtime.benchmarks.machine import describe_machine, format_machine

SECONDS_GRAPH: Final = 0.010
SIDE: Final = 256
SHAPE: Final = (1, 4, 16, 32, 32)
WARM_UPS: Final = 10
GRAPHS: Final = {"products": "a graph of about 10 ms", "nothing": "a graph that does nothing"}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout."""
    parser = argparse.ArgumentParser(description="Time the engine layer around onnxruntime.")
    parser.add_argument("--count", type=int, default=500, help="pairs of runs, default: 500")
    parser.add_argument("--num-threads", type=int, default=1, help="default: 1")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mutoscope-") as folder:
        rows = list(measure(Path(folder), options.count, options.num_threads))
    results = {
        "machine": describe_machine(),
        "num_threads": options.num_threads,
        "count": options.count,
        "rows": rows,
    }
    print(json.dumps(results, indent=1) if options.json else "\n".join(describe(results)))
    return 0


def measure(folder: Path, count: int, num_threads: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each graph and each way to run it."""
    feeds: Tensors = {
        "sample": np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32),
        "timestep": np.array([500], np.int64),
        "encoder_hidden_states": np.zeros((1, 77, 768), np.float32),
    }
    write_graph(folder / "one.onnx", 1)
    one = OnnxruntimeEngine(folder / "one.onnx", num_threads=num_threads)
    times = (time_call(lambda: one.run(feeds))[1] for _ in range(5 * WARM_UPS))
    seconds_one = statistics.median(times)
    num_products = {"products": max(1, round(SECONDS_GRAPH / seconds_one)), "nothing": 0}
    seconds_graph = 0.0
    for name in GRAPHS:
        write_graph(folder / f"{name}.onnx", num_products[name])
        engine = OnnxruntimeEngine(folder / f"{name}.onnx", num_threads=num_threads)
        for call, ours, theirs in make_calls(engine, feeds):
            row = compare(ours, theirs, count)
            seconds_graph = seconds_graph or row["onnxruntime_seconds_median"]
            share = row["seconds_added_median"] / seconds_graph
            yield {"graph": name, "call": call, **row, "share": share}


def write_graph(path: Path, num_products: int) -> None:
    """Write a graph with the inputs and the output of a denoiser, and so many products in it."""
    axes: list[str | int | None] = ["batch", 4, "num_frames", "height", "width"]
    inputs = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT, axes),
        helper.make_tensor_value_info("timestep", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info(
            "encoder_hidden_states", TensorProto.FLOAT, ["batch", 77, 768]
        ),
    ]
    weight = np.eye(SIDE, dtype=np.float32)
    tensors = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.array([SIDE, SIDE]), "matrix_shape"),
    ]
    nodes = [
        helper.make_node("Shape", ["sample"], ["shape"]),
        helper.make_node("Reshape", ["sample", "matrix_shape"], ["matrix_0"]),
    ]
    for index in range(num_products):
        names = [f"matrix_{index}", "weight"], [f"matrix_{index + 1}"]
        nodes.append(helper.make_node("MatMul", *names))
    nodes.append(helper.make_node("Reshape", [f"matrix_{num_products}", "shape"], ["out_sample"]))
    output = helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, axes)
    graph = helper.make_graph(nodes, "products", inputs, [output], tensors)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))


def make_calls(
    engine: OnnxruntimeEngine, feeds: Tensors
) -> Iterator[tuple[str, Callable[[], object], Callable[[], object]]]:
    """Yield the name of a way to run a graph, the engine's, and onnxruntime's own."""
    # The same session, so that only the layer differs.
    session = engine._session
    yield "run", lambda: engine.run(feeds), lambda: session.run(None, feeds)
    outputs = {"out_sample": np.empty(SHAPE, np.float32)}
    own = np.empty(SHAPE, np.float32)
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("out_sample", "cpu", 0, own.dtype, own.shape, own.ctypes.data)
    yield (
        "run into arrays",
        lambda: engine.run(feeds, outputs),
        lambda: session.run_with_iobinding(binding),
    )
    if not (np.array_equal(own, outputs["out_sample"]) and np.array_equal(own, feeds["sample"])):
        raise RuntimeError("the two sides gave different results")


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], count: int
) -> dict[str, float]:
    """Time both sides in turn; "added" is ours less theirs of the same pair, in seconds."""
    for _ in range(WARM_UPS):
        ours(), theirs()
    taken: list[list[tuple[float, float]]] = [[], []]
    for index in range(count):
        first = index % 2
        for side in (first, 1 - first):
            taken[side].append(time_call((ours, theirs)[side]))
    (mine, mine_cpu), (other, other_cpu) = (zip(*side, strict=True) for side in taken)
    added = [a - b for a, b in zip(mine, other, strict=True)]
    added_cpu = [a - b for a, b in zip(mine_cpu, other_cpu, strict=True)]
    quartiles = statistics.quantiles(added, n=4)
    return {
        "engine_seconds_median": statistics.median(mine),
        "engine_seconds_minimum": min(mine),
        "onnxruntime_seconds_median": statistics.median(other),
        "onnxruntime_seconds_minimum": min(other),
        "seconds_added_median": statistics.median(added),
        "seconds_added_lower_quartile": quartiles[0],
        "seconds_added_upper_quartile": quartiles[2],
        "seconds_added_of_minima": min(mine) - min(other),
        "cpu_seconds_added_median": statistics.median(added_cpu),
    }


def time_call(call: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that a call takes, and those of them in which its thread ran."""
    started, cpu_started = time.perf_counter(), time.thread_time()
    call()
    cpu_seconds = time.thread_time() - cpu_started
    return time.perf_counter() - started, cpu_seconds


def describe(results: dict[str, Any]) -> Iterator[str]:
    """Yield a table in Markdown."""
    yield format_machine(results["machine"])
    yield ""
    threads = f"{results['num_threads']} thread{'s' if results['num_threads'] > 1 else ''}"
    yield f"{results['count']} pairs of runs, {threads}"
    yield ""
    titles = ("graph", "call", "onnxruntime", "added, median", "quartiles", "of the minima")
    yield f"| {' | '.join((*titles, 'CPU time added', 'share'))} |"
    yield f"| --- | --- |{' ---: |' * len(titles)}"
    for row in results["rows"]:
        micro = {name: value * 1e6 for name, value in row.items() if "seconds" in name}
        yield (
            f"| {GRAPHS[row['graph']]} | {row['call']} "
            f"| {row['onnxruntime_seconds_median'] * 1e3:.3f} ms "
            f"| {micro['seconds_added_median']:.1f} us "
            f"| {micro['seconds_added_lower_quartile']:.1f} to "
            f"{micro['seconds_added_upper_quartile']:.1f} us "
            f"| {micro['seconds_added_of_minima']:.1f} us "
            f"| {micro['cpu_seconds_added_median']:.1f} us | {row['share']:.2%} |"
        )


if __name__ == "__main__":
    raise SystemExit(main())
