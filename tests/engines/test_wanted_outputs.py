"""Engine.run with `wanted`: every engine returns these outputs and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mutoscope.engines import onnxruntime_engine
from mutoscope.engines.engine import Engine, TensorSpec
from mutoscope.engines.errors import EngineError
from mutoscope.engines.forwarding_engine import ForwardingEngine
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.engines.openvino_engine import OpenvinoEngine
from mutoscope.engines.output_arrays import choose_outputs
from tests.engines.plan_runs import find_expected, make_feeds

ENGINES = ("onnxruntime", "onnxruntime in buffers", "openvino", "tensorrt", "forwarding")
# Two libraries sum twelve numbers in another order.
TOLERANCE = 1e-5


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, model: Any, tmp_path: Path) -> Engine:
    """An engine of a graph with the outputs y and z."""
    if request.param == "tensorrt":
        request.getfixturevalue("trt")
        open_plan: Callable[..., Engine] = request.getfixturevalue("open_plan")
        return open_plan(options={"cuda_graphs": True})
    path = tmp_path / "graph" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, str(path))
    if request.param == "openvino":
        return OpenvinoEngine(path, num_threads=1)
    if request.param == "onnxruntime in buffers":
        monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
        monkeypatch.setattr(onnxruntime_engine, "_BUFFER_DEVICES", {"cpu": "cpu"})
    plain = OnnxruntimeEngine(path, num_threads=1)
    return ForwardingEngine(plain) if request.param == "forwarding" else plain


def check(engine: Engine, names: list[str], *, seed: int, **arguments: Any) -> dict[str, Any]:
    feeds = make_feeds(seed=seed)
    results, expected = engine.run(feeds, **arguments), find_expected(feeds)
    assert list(results) == names
    for name, array in results.items():
        np.testing.assert_allclose(array, expected[name], rtol=TOLERANCE, atol=TOLERANCE)
    return results


def test_a_run_returns_what_is_wanted_and_no_more(engine: Engine) -> None:
    for seed, wanted in enumerate((["y"], ["z"], ["y", "z"], ["z", "y"], ["y"], None)):
        names = ["y", "z"] if wanted is None else sorted(wanted)
        check(engine, names, seed=seed, wanted=wanted)


def test_wanted_outputs_go_to_the_arrays_that_are_given(engine: Engine) -> None:
    y, z = np.empty((2, 3, 4), np.float32), np.empty((2, 1, 1), np.float32)
    for seed, (outputs, wanted) in enumerate(
        (
            ({"y": y}, ["y"]),
            ({"y": y}, ["y"]),
            ({"y": y}, None),
            ({"y": y}, ["y", "z"]),
            ({"y": y, "z": z}, ["y", "z"]),
            ({"z": z}, {"z"}),
        )
    ):
        names = ["y", "z"] if wanted is None else sorted(wanted)
        results = check(engine, names, seed=seed, outputs=outputs, wanted=wanted)
        assert all(results[name] is array for name, array in outputs.items())


def test_an_unknown_output_is_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match="has no output 'w': it returns y, z"):
        engine.run(make_feeds(), wanted=["y", "w"])


def test_an_array_for_what_is_not_wanted_is_refused(engine: Engine) -> None:
    z = np.empty((2, 1, 1), np.float32)
    message = "there is an array for z, which is not among the wanted outputs y: leave it out"
    with pytest.raises(EngineError, match=message):
        engine.run(make_feeds(), {"z": z}, ["y"])


def test_onnxruntime_is_asked_for_what_is_wanted_alone(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path))
    engine = OnnxruntimeEngine(path, num_threads=1)
    asked: list[list[str]] = []

    class Session:
        def run(self, names: list[str], feeds: Any, options: Any) -> list[Any]:
            asked.append(names)
            return [np.zeros(1)] * len(names)

    engine._session = Session()
    engine.run(make_feeds(), wanted=("z",))
    engine.run(make_feeds())
    assert asked == [["z"], ["y", "z"]]


def test_outputs_are_chosen_in_the_order_of_the_graph() -> None:
    specs = {name: TensorSpec(name, "float32", ()) for name in ("c", "a", "b")}
    assert choose_outputs("g", specs, {}, ["b", "c"]) == ["c", "b"]
    assert choose_outputs("g", specs, {}, None) == ["c", "a", "b"]
