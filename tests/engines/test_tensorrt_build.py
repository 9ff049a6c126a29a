"""Builds by TensorRT for RTX, which needs no GPU for them; TensorRT's builder is a stand-in."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from mutoscope.engines.errors import CancelledError, EngineError
from mutoscope.engines.tensorrt_build import (
    ShapeRange,
    TensorrtBuildOptions,
    TensorrtBuildReport,
    build_plan,
    check_build_options,
)
from mutoscope.engines.tensorrt_files import write_file
from mutoscope.engines.tensorrt_plan import TensorrtPlan
from mutoscope.engines.tensorrt_progress import NUM_TICKS, BuildProgress, make_monitor
from tests.engines.emulated_builder import CACHE, BuilderFlag, EmulatedBuilder
from tests.engines.emulated_cuda import EmulatedCuda

RTX = "tensorrt-rtx"
SM86 = TensorrtBuildOptions(target="sm86")
# Each step depends on the one before, so that TensorRT has something to do.
GRAPH = """<ir_version: 8, opset_import: ["": 20]>
g (float[b, 4] x) => (float[b, 4] y)
<float[4, 4] W = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}>
{ a = MatMul (x, W) s = Softmax (a) y = MatMul (s, W) }"""
RANGES = {"x": ShapeRange((1, 4), (2, 4), (8, 4))}
PLAN_OPTIONS = {
    "engine_name": RTX,
    "weights": None,
    "weight_budget_bytes": None,
    "allow_host_code": False,
}


def save_text(folder, text=GRAPH):
    path = folder / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.fixture
def graph(tmp_path):
    return save_text(tmp_path)


@pytest.fixture
def build(graph, tmp_path):
    """A function that builds the graph by TensorRT for RTX and returns the plan's bytes."""
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13 (Linux, x86-64)")

    def run(options=SM86, *, ranges=RANGES, **choices):
        target = tmp_path / "model.plan"
        report = build_plan(RTX, graph, ranges, options, target, **choices)
        data = target.read_bytes()
        assert report == TensorrtBuildReport(report.seconds, len(data))
        return data

    return run


@pytest.fixture
def emulated(monkeypatch):
    """TensorRT 10.3 with a GPU, both stand-ins."""
    EmulatedCuda().install(monkeypatch)
    builder = EmulatedBuilder("tensorrt")
    builder.install(monkeypatch)
    return builder


def list_files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_plan_is_for_the_gpu_that_was_asked_for(build):
    plans = {
        build(),
        build(TensorrtBuildOptions(target="sm89")),
        build(TensorrtBuildOptions(hardware_compatible=True)),
        build(TensorrtBuildOptions(target="sm86", weight_streaming=True)),
    }
    assert len(plans) == 4
    assert build() in plans


def test_progress_only_grows_and_ends_at_its_total(build):
    reports = []
    build(on_progress=lambda *report: reports.append(report))
    assert all(phase for phase, _, _ in reports)
    done = [done for _, done, _ in reports]
    assert done == sorted(done)
    assert len(set(done)) > 10
    assert reports[-1][1:] == (NUM_TICKS, NUM_TICKS)


@pytest.mark.parametrize("num_reports", [1, 20])
def test_a_build_that_is_cancelled_leaves_no_file(build, tmp_path, num_reports):
    count = 0

    def cancel(phase, done, total):
        nonlocal count
        count += 1
        return count < num_reports

    with pytest.raises(CancelledError, match=r"model\.onnx was cancelled; nothing was written"):
        build(on_progress=cancel)
    assert count == num_reports
    assert list_files(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_a_callback_raises_is_raised(build, tmp_path, error):
    def fail(phase, done, total):
        raise error("here")

    with pytest.raises(error, match="here"):
        build(on_progress=fail)
    assert list_files(tmp_path) == ["model.onnx"]


def test_phases_within_phases_are_one_count():
    reports = []
    progress = BuildProgress(lambda *report: reports.append(report))
    progress.start_phase("outer", None, 2)
    progress.start_phase("inner", "outer", 5)
    progress.complete_step("inner", 2)
    # TensorRT may end a phase before its last step.
    progress.finish_phase("inner")
    progress.complete_step("outer", 0)
    progress.start_phase("inner", "outer", 1)
    progress.complete_step("nobody began this", 3)
    progress.finish_phase("inner")
    progress.finish_phase("outer")
    assert [done for _, done, _ in reports] == [0, 0, 300, 500, 500, 500, 1000, 1000]


@pytest.mark.parametrize("answer", [None, True, False])
def test_tensorrt_is_told_to_go_on_or_to_stop(emulated, answer):
    monitor = make_monitor(emulated, BuildProgress(lambda phase, done, total: answer))
    monitor.phase_start("phase", None, 2)
    assert monitor.step_complete("phase", 0) is (answer is not False)


def test_a_graph_that_is_right_for_one_in_a_batch_only_is_found(tmp_path):
    # What onnxscript 0.7.2 makes of repeat_interleave; export/translations.py has its own.
    pytest.importorskip("tensorrt_rtx")
    path = save_text(
        tmp_path,
        """<ir_version: 8, opset_import: ["": 20]> g
        (float[batch, 4] text, float[batch, frames, 4] sample) => (float[n, 4] per_frame) {
            shape = Shape <start = 1> (sample)
            per_frame = Expand (text, shape)
        }""",
    )
    ranges = {
        "text": ShapeRange((1, 4), (2, 4), (2, 4)),
        "sample": ShapeRange((1, 1, 4), (2, 8, 4), (2, 16, 4)),
    }
    target = tmp_path / "model.plan"
    with pytest.raises(EngineError, match=r"cannot be built: .*violate shape constraints"):
        build_plan(RTX, path, ranges, SM86, target)
    assert not target.exists()
    of_one = {name: ShapeRange(r.minimum, r.minimum, r.minimum) for name, r in ranges.items()}
    build_plan(RTX, path, of_one, SM86, target)
    assert target.exists()


def test_a_graph_that_tensorrt_cannot_read_is_found(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    text = """<ir_version: 8, opset_import: ["": 20]>
    g (float[2] x) => (float[2] y) { y = NoSuchOperator (x) }"""
    with pytest.raises(EngineError, match=r"cannot be parsed: NoSuchOperator: ") as caught:
        build_plan(RTX, save_text(tmp_path, text), {}, SM86, tmp_path / "model.plan")
    assert "\n" not in str(caught.value)


def test_too_little_working_memory_is_the_builders_error(build):
    options = TensorrtBuildOptions(target="sm86", workspace_bytes=1)
    with pytest.raises(EngineError, match=r"cannot be built: .*workspace"):
        build(options)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({}, r"takes x; shapes were given for : give one range for each input"),
        ({"x": RANGES["x"], "y": RANGES["x"]}, r"shapes were given for x, y"),
        ({"x": ShapeRange((4, 4), (2, 4), (8, 4))}, r"not take these shapes: x \[4, 4\]"),
        (
            {"x": ShapeRange((1, 4), (2, 5), (8, 6))},
            r"cannot be built: .*axis 1, profile has min=4, opt=5",
        ),
    ],
)
def test_shapes_that_do_not_fit_the_graph_are_refused(build, ranges, message):
    with pytest.raises(EngineError, match=message):
        build(ranges=ranges)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "sm87"}, r"target is 'sm87'; .* builds for current, sm75, sm80, sm86"),
        ({"target": "value"}, r"target is 'value'"),
        ({"target": "sm86", "optimization_level": 3}, r"optimization_level is 3; .* no levels"),
        ({"target": "sm86", "version_compatible": True}, r"^version_compatible is not to be had"),
    ],
)
def test_what_rtx_does_not_have_is_refused(build, options, message):
    with pytest.raises(EngineError, match=message):
        build(TensorrtBuildOptions(**options))


def test_a_gpu_that_rtx_leaves_out_is_named(build, monkeypatch):
    EmulatedCuda().install(monkeypatch)
    with pytest.raises(
        EngineError, match=r"GPU here is sm87; .*builds for sm75.*engine 'tensorrt'"
    ):
        build(TensorrtBuildOptions())


@pytest.mark.parametrize("options", [{}, {"refit": True}, {"strip_weights": True}])
def test_what_needs_a_gpu_says_so_without_one(build, monkeypatch, options):
    cuda = EmulatedCuda()
    cuda.driver = 0
    cuda.install(monkeypatch)
    target = "sm86" if options else "current"
    with pytest.raises(EngineError, match=r"RTX needs a GPU to build this: no NVIDIA driver was"):
        build(TensorrtBuildOptions(target=target, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimization_level": 6}, r"optimization_level is 6; it must be 0 to 5"),
        ({"workspace_bytes": 0}, r"workspace_bytes is 0; it must be at least 1"),
        ({"hardware_compatible": True, "target": "sm86"}, r"target is 'sm86': leave out one"),
    ],
)
def test_what_no_tensorrt_can_build_is_refused(options, message):
    with pytest.raises(EngineError, match=message):
        TensorrtBuildOptions(**options)


def test_a_damaged_plan_is_refused(build, tmp_path):
    data = build()
    path = tmp_path / "damaged.plan"
    for damaged, reason in (
        (data[: len(data) // 2], "blobSize"),
        (b"\0" * 64 + data[64:], "MAGIC_TAG"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(EngineError, match=r"is not loaded by TensorRT for RTX") as caught:
            TensorrtPlan(path, **PLAN_OPTIONS)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_plan_that_cannot_be_written_is_an_error(build, graph, tmp_path):
    with pytest.raises(EngineError, match=r"model\.plan cannot be written: No such file"):
        build_plan(RTX, graph, RANGES, SM86, tmp_path / "no" / "model.plan")


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path):
    (tmp_path / "model.plan").mkdir()
    with pytest.raises(EngineError, match=r"model\.plan cannot be written: Is a directory"):
        write_file(tmp_path / "model.plan", b"plan")
    assert list_files(tmp_path) == ["model.plan"]


def test_tensorrt_builds_for_the_gpu_of_this_machine_only(emulated):
    with pytest.raises(EngineError, match=r"target is 'sm86'; .*engine 'tensorrt-rtx'"):
        check_build_options("tensorrt", SM86)
    check_build_options("tensorrt", TensorrtBuildOptions())


def test_all_options_reach_the_builder(emulated, graph, tmp_path):
    options = TensorrtBuildOptions(
        optimization_level=5,
        workspace_bytes=2**20,
        refit=True,
        strip_weights=True,
        weight_streaming=True,
        version_compatible=True,
        hardware_compatible=True,
    )
    build_plan("tensorrt", graph, RANGES, options, tmp_path / "model.plan")
    assert (tmp_path / "model.plan").read_bytes() == b"PLAN"
    config = emulated.config
    assert config.flags == set(BuilderFlag) - {BuilderFlag.REFIT_IDENTICAL}
    assert config.builder_optimization_level == 5
    assert config.hardware_compatibility_level == "ampere and newer"
    assert config.limits == {"workspace": 2**20}
    assert config.profiles == [{"x": ((1, 4), (2, 4), (8, 4))}]


def test_options_that_are_left_out_leave_the_builder_alone(emulated, graph, tmp_path):
    build_plan("tensorrt", graph, RANGES, TensorrtBuildOptions(), tmp_path / "model.plan")
    config = emulated.config
    assert (config.flags, config.limits, config.cache) == (set(), {}, None)
    assert not hasattr(config, "builder_optimization_level")
    assert not hasattr(config, "hardware_compatibility_level")


def test_a_plan_without_weights_takes_those_of_its_graph(emulated, graph, tmp_path):
    options = TensorrtBuildOptions(strip_weights=True)
    build_plan("tensorrt", graph, RANGES, options, tmp_path / "model.plan")
    assert emulated.config.flags == {BuilderFlag.STRIP_PLAN, BuilderFlag.REFIT_IDENTICAL}


@pytest.fixture
def build_with_timings(emulated, graph, tmp_path):
    """A function that builds by TensorRT with these timings, and returns its notes."""

    def run(path):
        options, target = TensorrtBuildOptions(), tmp_path / "model.plan"
        report = build_plan("tensorrt", graph, RANGES, options, target, timing_cache=path)
        assert target.read_bytes() == b"PLAN"
        return report.notes

    return run


def test_timings_are_kept_for_the_next_build(emulated, build_with_timings, tmp_path):
    path = tmp_path / "folder" / "timings"
    path.parent.mkdir()
    path.write_bytes(CACHE)
    assert build_with_timings(path) == ()
    assert emulated.config.cache.data == CACHE
    assert path.read_bytes() == CACHE + b" and more"
    assert list_files(path.parent) == ["timings"]


def test_timings_are_made_with_their_folder(build_with_timings, tmp_path):
    path = tmp_path / "folder" / "timings"
    assert build_with_timings(path) == ()
    assert path.read_bytes() == b" and more"


def test_damaged_timings_are_reported_and_replaced(build_with_timings, tmp_path):
    path = tmp_path / "timings"
    path.write_bytes(b"damaged")
    (note,) = build_with_timings(path)
    assert note == f"{path} is damaged or was made elsewhere: measured anew"
    assert path.read_bytes() == b" and more"


def test_timings_that_cannot_be_kept_are_reported(build_with_timings, tmp_path):
    (tmp_path / "file").touch()
    (note,) = build_with_timings(tmp_path / "file" / "timings")
    assert note.startswith("timings are not kept: ")
