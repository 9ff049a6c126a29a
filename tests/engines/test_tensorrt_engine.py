"""What the TensorRT engine does with CUDA and TensorRT, on stand-ins of both.

The stand-ins (emulated_cuda.py, emulated_tensorrt.py) keep device memory on the host, compute by
onnxruntime and refuse what would be undefined on a GPU. This shows that shapes are bound, memory
is taken, kept and freed, runs are recorded, and errors are reported. It does not show that TensorRT
takes its plans, nor that it computes the right numbers, nor how fast: for that there is `mutoscope
verify` and tests/gpu, on a GPU.
"""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from mutoscope.engines.cuda_device import GpuRecord, list_gpus
from mutoscope.engines.engine import TensorSpec
from mutoscope.engines.errors import EngineError
from tests.engines.emulated_cuda import Misuse, cudaError_t
from tests.engines.emulated_tensorrt import (
    WEIGHTS_BYTES,
    save_plan,
)
from tests.engines.plan_runs import check_run, make_feeds


def test_a_run_gives_the_outputs_of_the_graph(trt, open_plan):
    engine = open_plan()
    for batch, length in ((1, 1), (2, 3), (8, 8), (1, 3)):
        check_run(engine, make_feeds(batch, length, seed=length))


def test_inputs_have_the_limits_of_the_profile(trt, open_plan):
    engine = open_plan()
    assert engine.inputs == {
        "x": TensorSpec("x", "float32", ("x_0", "x_1", 3), (1, 1, 3), (8, 8, 3)),
        "t": TensorSpec("t", "int64", ("t_0",), (1,), (8,)),
    }
    assert str(engine.outputs["y"]) == "float32[y_0, y_1, 4]"


def test_an_axis_that_the_profile_fixes_is_a_number(trt, open_plan, model, tmp_path):
    engine = open_plan(path=save_plan(tmp_path / "fixed.plan", model, minimum=2, maximum=2))
    assert engine.inputs["x"].shape == (2, 2, 3)
    check_run(engine, make_feeds(2, 2))


def test_a_shape_outside_of_the_profile_is_refused(trt, open_plan):
    engine = open_plan()
    with pytest.raises(EngineError, match=re.escape("built for [1 to 8, 1 to 8, 3]")):
        engine.run(make_feeds(2, 9))
    with pytest.raises(EngineError, match=re.escape("built for [1 to 8, 1 to 8, 3]")):
        engine.prepare({"x": (2, 9, 3), "t": (2,)})


def test_runs_of_the_same_shapes_take_no_memory(trt, cuda, open_plan):
    engine = open_plan()
    check_run(engine, make_feeds())
    taken = cuda.num_allocations
    for seed in range(3):
        check_run(engine, make_feeds(seed=seed))
    assert cuda.num_allocations == taken


def test_memory_is_kept_for_smaller_shapes_and_grows_for_larger_ones(trt, cuda, open_plan):
    engine = open_plan()
    check_run(engine, make_feeds(4, 4))
    taken, held = cuda.num_allocations, len(cuda.blocks)
    check_run(engine, make_feeds(2, 2))
    assert cuda.num_allocations == taken
    check_run(engine, make_feeds(8, 8))
    assert cuda.num_allocations > taken
    assert len(cuda.blocks) == held


def test_prepare_leaves_nothing_but_the_run(trt, cuda, open_plan):
    engine = open_plan(options={"cuda_graphs": True})
    feeds = make_feeds()
    engine.prepare({name: array.shape for name, array in feeds.items()})
    taken = cuda.num_allocations
    check_run(engine, feeds)
    assert (cuda.num_allocations, cuda.num_launches) == (taken, 1)


def test_results_are_written_to_the_arrays_that_are_given(trt, open_plan):
    engine, feeds = open_plan(), make_feeds()
    given = np.empty((2, 3, 4), np.float32)
    assert check_run(engine, feeds, {"y": given})["y"] is given


def test_an_array_of_another_shape_is_refused(trt, open_plan):
    with pytest.raises(EngineError, match=r"shape \[2, 5, 4\]; the result has \[2, 3, 4\]"):
        open_plan().run(make_feeds(), {"y": np.empty((2, 5, 4), np.float32)})


def test_inputs_may_lie_in_memory_in_any_way(trt, open_plan):
    feeds = make_feeds(2, 3)
    feeds["x"] = np.asfortranarray(feeds["x"])
    feeds["t"] = np.arange(8)[::4]
    check_run(open_plan(), feeds)


def test_a_recorded_run_is_played_again_for_other_values(trt, cuda, open_plan):
    engine = open_plan(options={"cuda_graphs": True})
    for seed in range(3):
        check_run(engine, make_feeds(seed=seed))
    assert (cuda.num_recordings, cuda.num_launches) == (1, 3)


def test_runs_of_other_shapes_are_recorded_again(trt, cuda, open_plan):
    engine = open_plan(options={"cuda_graphs": True})
    for batch, length in ((2, 2), (2, 8), (2, 2), (1, 1)):
        check_run(engine, make_feeds(batch, length))
        assert len(cuda.executables) == 1
    assert cuda.num_launches == 4


def test_nothing_is_recorded_unless_asked_for(trt, cuda, open_plan):
    check_run(open_plan(), make_feeds())
    assert cuda.num_launches == 0


def test_a_run_that_tensorrt_refuses_is_an_error_in_one_line(trt, open_plan):
    engine = open_plan()
    check_run(engine, make_feeds())
    for failure in ("no\n kernel", "no\n memory"):
        trt.failure = failure
        with pytest.raises(EngineError, match=rf"model\.plan failed: {failure[:2]} {failure[4:]}$"):
            engine.run(make_feeds())
    trt.failure = ""
    check_run(engine, make_feeds())


def test_memory_that_tensorrt_cannot_tell_is_an_error(trt, open_plan):
    engine = open_plan()
    trt.memory_failure = "no tactic"
    with pytest.raises(EngineError, match=r"cannot be prepared for these shapes: no tactic$"):
        engine.run(make_feeds())
    trt.memory_failure = ""
    check_run(engine, make_feeds())


def test_a_tensorrt_that_cannot_use_the_driver_is_an_error(trt, cuda, open_plan):
    trt.start_failure = "CUDA initialization failure with error: 35"
    with pytest.raises(EngineError, match=r"^TensorRT 10\.3\.0 does not start: CUDA init.*: 35$"):
        open_plan()
    cuda.check_all_freed()


def test_a_run_that_cannot_be_recorded_is_an_error_and_frees_the_stream(trt, cuda, open_plan):
    engine = open_plan(options={"cuda_graphs": True})
    real = cuda.cudaStreamBeginCapture

    def begin(stream, mode):
        result = real(stream, mode)
        trt.failure = "not while it records"
        return result

    cuda.cudaStreamBeginCapture = begin
    with pytest.raises(EngineError, match="failed: not while it records"):
        engine.run(make_feeds())
    trt.failure, cuda.cudaStreamBeginCapture = "", real
    check_run(engine, make_feeds())


def test_an_error_of_the_gpu_is_reported_by_the_run_that_it_belongs_to(trt, cuda, open_plan):
    engine = open_plan()
    cuda.error = cudaError_t.cudaErrorIllegalAddress
    message = r"running on the GPU failed: an emulated error, cudaErrorIllegalAddress$"
    with pytest.raises(EngineError, match=message):
        engine.run(make_feeds())


def test_too_little_memory_is_an_error_after_which_smaller_shapes_run(trt, cuda, open_plan):
    engine = open_plan(options={"cuda_graphs": True})
    check_run(engine, make_feeds(2, 2))
    cuda.capacity = 1500
    for _ in range(2):
        with pytest.raises(EngineError, match=r"MiB of the GPU's memory failed: out of memory"):
            engine.run(make_feeds(8, 8))
    check_run(engine, make_feeds(2, 2))


def test_all_is_freed_when_it_is_closed_and_a_run_then_is_an_error(trt, cuda, open_plan):
    engine = open_plan(options={"cuda_graphs": True})
    check_run(engine, make_feeds())
    engine.close()
    cuda.check_all_freed()
    engine.close()
    assert engine.memory_bytes == {}
    for use in (lambda: engine.run(make_feeds()), lambda: engine.prepare({})):
        with pytest.raises(EngineError, match=r"model\.plan is closed: open it again"):
            use()


def test_it_says_what_it_holds_on_the_gpu(trt, rtx, cuda, open_plan):
    for engine_name, weights in (("tensorrt", {}), ("tensorrt-rtx", {"weights": WEIGHTS_BYTES})):
        engine = open_plan(engine_name)
        assert engine.memory_bytes == {**weights, "activations": 0, "buffers": 0}
        feeds = make_feeds()
        results = check_run(engine, feeds)
        buffers = sum(array.nbytes for array in (*feeds.values(), *results.values()))
        assert engine.memory_bytes == {
            **weights,
            "activations": sum(block.size for block in cuda.blocks.values()) - buffers,
            "buffers": buffers,
        }
        engine.close()


def test_it_says_what_runs(trt, open_plan):
    assert open_plan().properties == {
        "engine": "tensorrt",
        "version": "10.3.0",
        "device": "Orin",
        "precision": "as the graph",
    }


def test_the_gpu_is_described(cuda):
    (gpu,) = list_gpus()
    assert gpu == GpuRecord("Orin", "sm87", cuda.capacity, True, gpu.driver_version)


def test_a_machine_without_a_driver_is_told_so(trt, cuda, open_plan):
    cuda.driver = 0
    with pytest.raises(EngineError, match=r"^no NVIDIA driver was found in this machine: "):
        open_plan()


def test_a_driver_that_is_too_old_is_named(trt, cuda, open_plan):
    cuda.cudaGetDeviceCount = lambda: (cudaError_t.cudaErrorInsufficientDriver, None)
    cuda.driver = 11040
    with pytest.raises(
        EngineError, match=r"driver is for CUDA 11\.4, cuda-bindings for CUDA 12\.6"
    ):
        open_plan()


def test_a_machine_without_a_gpu_is_told_so(trt, cuda, open_plan):
    cuda.cudaGetDeviceCount = lambda: (cudaError_t.cudaSuccess, 0)
    with pytest.raises(EngineError, match=r"^no NVIDIA GPU was found in this machine"):
        open_plan()


@pytest.mark.parametrize(
    ("package", "command"),
    [("tensorrt", "pip install tensorrt"), ("cuda", "pip install cuda-bindings")],
)
def test_a_missing_library_is_named_with_the_command_that_adds_it(
    trt, open_plan, monkeypatch, package, command
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "cuda.bindings" if package == "cuda" else "_", None)
    with pytest.raises(EngineError, match=rf"cannot be imported \(.*{command}"):
        open_plan()


def test_the_stand_in_finds_what_a_gpu_would_not_forgive(cuda):
    _, stream = cuda.cudaStreamCreateWithFlags(1)
    _, address = cuda.cudaMalloc(8)
    kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
    data = np.zeros(16, np.uint8)
    for misuse in (
        lambda: cuda.cudaMemcpyAsync(address, data.ctypes.data, 9, kind, stream),
        lambda: cuda.cudaFree(address + 1),
        lambda: cuda.cudaMemcpyAsync(address, data.ctypes.data, 8, kind, stream + 1),
    ):
        with pytest.raises(Misuse):
            misuse()
    with pytest.raises(AssertionError):
        cuda.check_all_freed()
    cuda.cudaFree(address)
    with pytest.raises(Misuse):
        cuda.cudaFree(address)
