from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.observed_engine import ObservedEngine
from mutoscope.calibration.observed_graph import NUM_SAMPLES, ObservedGraph, make_observed_graph
from mutoscope.calibration.observers import ComponentStatistics
from mutoscope.engines.engine import TensorSpec
from mutoscope.engines.errors import EngineError
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.manifest import ComponentRecord, TensorRecord
from mutoscope.runtime.pipeline import VideoPipeline
from tests.calibration.small_graph import CHANNEL_AXES, compute_values, make_feeds, save_small_graph

# Sums in another order, through a graph that amplifies them.
ROUNDING = 1e-4
# One level of uint8 pixels.
PIXEL = 1
# Values that are 8 MB each, in a chain of this many layers.
CHAIN_LENGTH, CHAIN_ROWS, CHAIN_CHANNELS = 24, 2**15, 64

COMPONENT = ComponentRecord(
    {"float32": "net/model.onnx"},
    "float32",
    {
        "sample": TensorRecord("float32", ("B", 4, "h", "w"), "latents"),
        "timestep": TensorRecord("float32", (1,), "timestep"),
    },
    {"out_sample": TensorRecord("float32", ("B", "w", "F", "h", 2))},
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_graph(tmp_path_factory.mktemp("small") / "model.onnx")


@pytest.fixture
def graph(source: Path) -> ObservedGraph:
    return make_observed_graph(source)


@pytest.fixture
def statistics(graph: ObservedGraph) -> ComponentStatistics:
    return ComponentStatistics(graph.points)


@pytest.fixture
def engine(graph: ObservedGraph, statistics: ComponentStatistics) -> ObservedEngine:
    return ObservedEngine(graph, statistics, COMPONENT, num_threads=1)


def test_it_takes_and_returns_what_the_component_does(engine: ObservedEngine) -> None:
    assert list(engine.inputs) == ["sample", "timestep"]
    assert engine.outputs == {
        "out_sample": TensorSpec("out_sample", "float32", ("B", "w", "F", "h", 2))
    }
    assert engine.device == "cpu"
    assert engine.properties["engine"] == "onnxruntime"


def test_its_outputs_are_those_of_the_plain_graph(source: Path, engine: ObservedEngine) -> None:
    feeds, plain = make_feeds(1), OnnxruntimeEngine(source, num_threads=1)
    found, expected = engine.run(feeds), plain.run(feeds)
    assert list(found) == ["out_sample"]
    np.testing.assert_allclose(
        found["out_sample"], expected["out_sample"], rtol=ROUNDING, atol=ROUNDING
    )


def test_it_writes_to_the_array_that_it_is_given(engine: ObservedEngine) -> None:
    feeds = make_feeds(1)
    expected = engine.run(feeds)["out_sample"]
    array = np.empty_like(expected)
    assert engine.run(feeds, {"out_sample": array})["out_sample"] is array
    np.testing.assert_array_equal(array, expected)


def test_it_returns_what_is_wanted_and_observes_the_same(
    engine: ObservedEngine, statistics: ComponentStatistics
) -> None:
    feeds = make_feeds(1)
    expected = engine.run(feeds)["out_sample"]
    wanted = engine.run(feeds, wanted=["out_sample"])
    assert list(wanted) == ["out_sample"]
    np.testing.assert_array_equal(wanted["out_sample"], expected)
    assert statistics.num_runs == 2
    with pytest.raises(EngineError, match="has no output 'feature': it returns out_sample"):
        engine.run(feeds, wanted=["feature"])


def test_what_the_layers_saw_goes_to_the_step_of_the_run(
    source: Path, engine: ObservedEngine, statistics: ComponentStatistics
) -> None:
    feeds = {step: make_feeds(int(step), timestep=step) for step in (3.0, 1.0)}
    for given in feeds.values():
        engine.run(given)
    steps, minimum, maximum = statistics.steps
    assert steps.tolist() == [3.0, 1.0]
    (index,) = [i for i, p in enumerate(statistics.points) if "net.q.weight" in p.inputs_of]
    for row, step in enumerate((3.0, 1.0)):
        rows = compute_values(source, feeds[step])["rows"]
        assert maximum[row, index] == pytest.approx(rows.max(), rel=ROUNDING)
        assert minimum[row, index] == rows.min() == 0.0  # behind a Relu
    largest = max(compute_values(source, given)["rows"].max() for given in feeds.values())
    assert statistics.input_channel_maximum("net.v.weight").max() == pytest.approx(
        largest, rel=ROUNDING
    )
    assert statistics.num_runs == 2
    assert len(statistics.points) == len(CHANNEL_AXES)


def test_a_component_without_a_timestep_has_the_step_0(graph: ObservedGraph) -> None:
    inputs = {"sample": COMPONENT.inputs["sample"], "timestep": TensorRecord("float32", (1,), "x")}
    component = ComponentRecord({}, "", inputs, COMPONENT.outputs)
    statistics = ComponentStatistics(graph.points)
    ObservedEngine(graph, statistics, component, 1).run(make_feeds(1, timestep=5.0))
    assert statistics.steps[0].tolist() == [0.0]


def test_each_run_samples_other_places(
    engine: ObservedEngine, statistics: ComponentStatistics
) -> None:
    feeds = make_feeds(1, size=64)
    engine.run(feeds)
    first = statistics.values.counts.copy()
    engine.run(feeds)
    (index,) = [i for i, p in enumerate(statistics.points) if "net.conv.weight" in p.inputs_of]
    second = statistics.values.counts[index] - first[index]
    assert second.sum() == NUM_SAMPLES
    assert (second != first[index]).any()


def test_values_that_are_not_finite_stop_the_run(engine: ObservedEngine) -> None:
    feeds = make_feeds(1)
    feeds["sample"][1, 2, 3, 4] = np.inf
    with pytest.raises(CalibrationError, match=r"the input of net.conv.weight .* at step 2: "):
        engine.run(feeds)


def test_statistics_of_another_graph_are_refused(graph: ObservedGraph) -> None:
    statistics = ComponentStatistics(graph.points[1:])
    with pytest.raises(CalibrationError, match="is of another graph: remove it"):
        ObservedEngine(graph, statistics, COMPONENT)


def test_wrong_inputs_and_a_closed_engine_are_refused(engine: ObservedEngine) -> None:
    feeds = make_feeds(1)
    with pytest.raises(EngineError, match="needs an input 'timestep'"):
        engine.run({"sample": feeds["sample"]})
    array = np.zeros((2, 2, 2, 2, 2), np.float32)
    feeds["sample"] = array.reshape(2, 4, 2, 2)
    with pytest.raises(EngineError, match="shares memory with sample"):
        engine.run(feeds, {"out_sample": array})
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="is closed: open it again"):
        engine.run(feeds)


def test_a_failing_run_is_an_engine_error(source: Path, tmp_path: Path) -> None:
    model = onnx.load(source)
    (matrix,) = [w for w in model.graph.initializer if w.name == "matrix"]
    matrix.CopyFrom(numpy_helper.from_array(np.array([7, 1]), "matrix"))
    onnx.save(model, tmp_path / "model.onnx")
    graph = make_observed_graph(tmp_path / "model.onnx")
    engine = ObservedEngine(graph, ComponentStatistics(graph.points), COMPONENT, 1)
    with pytest.raises(EngineError, match=r"the observed net failed: .*Reshape"):
        engine.run(make_feeds(1))


def test_a_pipeline_makes_the_same_clip_on_an_observed_denoiser() -> None:
    bundle, settings = Bundle.default(), {"seed": 3, "num_inference_steps": 2, "num_frames": 2}
    settings["scheduler"] = "ddim"
    with VideoPipeline(bundle, num_threads=1) as pipeline:
        expected = pipeline.generate("a red circle moves left", **settings)
        graph = make_observed_graph(bundle.load_graph("unet", for_cpu=True))
        statistics = ComponentStatistics(graph.points)
        component = bundle.find_component("unet")
        pipeline.replace_engine("unet", ObservedEngine(graph, statistics, component, 1))
        found = pipeline.generate("a red circle moves left", **settings)
    np.testing.assert_allclose(
        found.frames.astype(np.float32), expected.frames.astype(np.float32), atol=PIXEL
    )
    table = bundle.load_schedule("ddim", 2)
    assert statistics.steps[0].tolist() == [row.timestep for row in table.rows]


def save_chain(path: Path) -> None:
    """A chain of linear layers whose values together are much larger than two of them."""
    weight = np.eye(CHAIN_CHANNELS, dtype=np.float32)
    nodes = []
    for index in range(CHAIN_LENGTH):
        names = [f"x{index}", f"net.{index}.weight"]
        nodes.append(helper.make_node("MatMul", names, [f"p{index}"]))
        nodes.append(helper.make_node("Sigmoid", [f"p{index}"], [f"x{index + 1}"]))
    nodes.append(helper.make_node("ReduceMax", [f"x{CHAIN_LENGTH}"], ["y"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", 1, ["B", CHAIN_CHANNELS])],
        [helper.make_tensor_value_info("y", 1, [])],
        [numpy_helper.from_array(weight, f"net.{index}.weight") for index in range(CHAIN_LENGTH)],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)


_MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from mutoscope.calibration.observed_engine import ObservedEngine
from mutoscope.calibration.observed_graph import make_observed_graph
from mutoscope.calibration.observers import ComponentStatistics
from mutoscope.runtime.manifest import ComponentRecord
graph = make_observed_graph(Path(sys.argv[1]))
statistics = ComponentStatistics(graph.points)
engine = ObservedEngine(graph, statistics, ComponentRecord({}, "", {}, {}), 1)
feeds = {"x0": np.zeros((int(sys.argv[2]), int(sys.argv[3])), np.float32)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
engine.run(feeds)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_values_are_freed_while_the_graph_runs(tmp_path: Path) -> None:
    save_chain(tmp_path / "model.onnx")
    arguments = [tmp_path / "model.onnx", CHAIN_ROWS, CHAIN_CHANNELS]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    value_bytes = CHAIN_ROWS * CHAIN_CHANNELS * 4
    # Two or three values at a time, and what is small; all of them would be twice the chain.
    assert int(done.stdout) * 1024 < CHAIN_LENGTH / 2 * value_bytes
