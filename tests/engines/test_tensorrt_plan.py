"""How plans are loaded: weights, budgets, caches; on the stand-ins of test_tensorrt_engine.py."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import onnx
import onnx.parser
import pytest

from mutoscope.engines.errors import EngineError
from mutoscope.engines.tensorrt_module import ErrorLog
from tests.engines.emulated_tensorrt import (
    STREAMABLE_BYTES,
    WEIGHTS_BYTES,
    Context,
    CudaGraphStrategy,
    Engine,
    KernelStrategy,
    TensorLocation,
    save_plan,
)
from tests.engines.plan_runs import check_run, make_feeds


@pytest.mark.parametrize("data", [b"", b"something else"])
def test_a_damaged_plan_is_refused_and_leaves_nothing(trt, cuda, open_plan, tmp_path, data):
    path = tmp_path / "damaged.plan"
    path.write_bytes(data)
    with pytest.raises(EngineError, match=r"damaged\.plan .*build the engine again") as caught:
        open_plan(path=path)
    assert "\n" not in str(caught.value)
    cuda.check_all_freed()


def test_weights_come_from_the_graph(trt, open_plan, model, tmp_path):
    onnx.save(model, tmp_path / "model.onnx")
    (weight,) = model.graph.initializer
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((3, 4), np.float32), "W"))
    stripped = save_plan(tmp_path / "stripped.plan", model)
    check_run(open_plan(path=stripped, weights=tmp_path / "model.onnx"), make_feeds())
    trt.can_refit = False
    with pytest.raises(EngineError, match=r"does not take the weights of .*model\.onnx"):
        open_plan(path=stripped, weights=tmp_path / "model.onnx")


def test_weights_of_another_graph_are_refused(trt, open_plan, model, tmp_path):
    model.graph.initializer[0].name = "V"
    onnx.save(model, tmp_path / "other.onnx")
    message = r"does not take the weights of .*other\.onnx: other weights: V: build it again"
    with pytest.raises(EngineError, match=message):
        open_plan(weights=tmp_path / "other.onnx")


def test_a_part_of_the_weights_stays_off_the_gpu(rtx, open_plan):
    rtx.can_stream = True
    held = []
    for budget in (0, 100, 5000):
        engine = open_plan("tensorrt-rtx", options={"weight_budget_bytes": budget})
        held.append(engine.memory_bytes["weights"])
    fixed = WEIGHTS_BYTES - STREAMABLE_BYTES
    assert held == [fixed, fixed + 100, WEIGHTS_BYTES]


def test_a_budget_is_refused_where_weights_cannot_be_streamed(trt, open_plan):
    with pytest.raises(EngineError, match=r"cannot stream its weights.*build it with"):
        open_plan(options={"weight_budget_bytes": 100})


def test_outputs_whose_shapes_depend_on_values_are_refused(trt, open_plan):
    trt.is_data_dependent = True
    with pytest.raises(EngineError, match=r"the shape of y depends on values"):
        open_plan().run(make_feeds())


def test_inputs_that_are_shapes_are_refused(trt, open_plan):
    trt.location = TensorLocation.HOST
    with pytest.raises(EngineError, match="x is a shape"):
        open_plan()


def test_outputs_that_are_shapes_are_refused(trt, open_plan, monkeypatch):
    def locate(engine, name):
        return TensorLocation.HOST if name == "y" else TensorLocation.DEVICE

    monkeypatch.setattr(Engine, "get_tensor_location", locate)
    with pytest.raises(EngineError, match="y is a shape"):
        open_plan()


def test_inputs_that_do_not_go_together_are_one_line(trt, open_plan, monkeypatch):
    def fail(context):
        raise RuntimeError("infer_shapes error code: 3")

    engine = open_plan()
    monkeypatch.setattr(Context, "infer_shapes", fail)
    with pytest.raises(EngineError, match="does not take inputs of these shapes together"):
        engine.run(make_feeds())


def test_all_plans_of_a_module_share_a_logger_that_outlives_them(trt):
    first, second = ErrorLog(trt), ErrorLog(trt)
    assert first.logger is second.logger
    reference = weakref.ref(first.logger)
    del first, second
    gc.collect()
    assert reference() is not None


def test_a_plan_may_bring_code_for_the_processor_only_if_that_is_allowed(trt, open_plan):
    for is_allowed in (False, True):
        open_plan(allow_host_code=is_allowed)
        assert trt.runtime.engine_host_code_allowed is is_allowed


def test_rtx_records_by_itself_and_compiles_before_it_runs(rtx, cuda, open_plan):
    check_run(open_plan("tensorrt-rtx", options={"cuda_graphs": True}), make_feeds())
    assert cuda.num_launches == 0
    assert rtx.config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert rtx.config.dynamic_shapes_kernel_specialization_strategy is KernelStrategy.EAGER
    open_plan("tensorrt-rtx")
    assert rtx.config.cuda_graph_strategy is CudaGraphStrategy.DISABLED


def test_what_rtx_compiled_is_kept_for_the_next_time(rtx, open_plan, tmp_path):
    path = tmp_path / "runtime.cache"
    open_plan("tensorrt-rtx", runtime_cache=path).close()
    assert path.read_bytes() == b"KERNELS compiled"
    path.write_bytes(b"KERNELS of before")
    engine = open_plan("tensorrt-rtx", runtime_cache=path)
    assert rtx.config.cache.kernels == b"KERNELS of before"
    path.unlink()
    engine.close()
    # It was not written: nothing is new.
    assert list(tmp_path.glob("runtime.cache*")) == []


def test_a_damaged_runtime_cache_is_replaced(rtx, open_plan, tmp_path):
    path = tmp_path / "runtime.cache"
    path.write_bytes(b"damaged")
    check_run(engine := open_plan("tensorrt-rtx", runtime_cache=path), make_feeds())
    engine.close()
    assert path.read_bytes() == b"KERNELS compiled"


def test_a_runtime_cache_that_cannot_be_written_is_an_error_that_frees_all(
    rtx, cuda, open_plan, tmp_path
):
    engine = open_plan("tensorrt-rtx", runtime_cache=tmp_path / "no" / "runtime.cache")
    check_run(engine, make_feeds())
    with pytest.raises(EngineError, match=r"runtime\.cache cannot be written: No such file"):
        engine.close()
    cuda.check_all_freed()
