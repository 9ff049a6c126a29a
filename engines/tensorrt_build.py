"""Build a TensorRT plan of an ONNX graph, by TensorRT or TensorRT for RTX.

Networks are strongly typed: what a graph says is float16 is computed in FP16, what stands between
QuantizeLinear and DequantizeLinear in INT8, and nothing else. float32 may be computed in TF32,
which is TensorRT's default.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mutoscope.engines.cuda_device import list_gpus
from mutoscope.engines.errors import EngineError
from mutoscope.engines.tensorrt_files import write_file
from mutoscope.engines.tensorrt_module import (
    TENSORRT_RTX,
    TITLES,
    ErrorLog,
    describe_parser_errors,
    load_tensorrt,
)
from mutoscope.engines.tensorrt_progress import BuildProgress, OnBuildProgress, make_monitor
from mutoscope.engines.tensorrt_timings import TimingCache
from mutoscope.engines.versions import parse_target

if TYPE_CHECKING:
    import tensorrt

# The GPU of this machine.
CURRENT = "current"
OPTIMIZATION_LEVELS = range(6)


@dataclass(frozen=True)
class ShapeRange:
    """What an engine is to take of one input: its smallest, usual and largest shape."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


@dataclass(frozen=True)
class TensorrtBuildOptions:
    """How a plan is built.

    Attributes:
        target: "current" for the GPU of this machine, or one such as "sm86", which TensorRT for RTX
            alone builds for.
        optimization_level: 0 to 5; higher takes longer to find something faster; None is 3.
            TensorRT for RTX has no levels.
        workspace_bytes: The most that a layer may use while it runs; None is all of the GPU's.
        refit: Whether other weights can be put into the plan later.
        strip_weights: Whether the plan holds no weights, and takes those of the graph when it is
            loaded.
        weight_streaming: Whether a part of the weights can stay outside of the GPU's memory.
        version_compatible: Whether newer versions of TensorRT can run it; not with RTX.
        hardware_compatible: Whether all GPUs from Ampere on can run it, perhaps slower; TensorRT
            cannot do this on a Jetson.
    """

    target: str = CURRENT
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    refit: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False

    def __post_init__(self) -> None:
        """Raise `EngineError` for what no TensorRT can build."""
        if self.optimization_level not in (None, *OPTIMIZATION_LEVELS):
            raise EngineError(
                f"optimization_level is {self.optimization_level}; it must be 0 to 5: use 3"
            )
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise EngineError(
                f"workspace_bytes is {self.workspace_bytes}; it must be at least 1: leave it out"
            )
        if self.hardware_compatible and self.target != CURRENT:
            raise EngineError(
                f"hardware_compatible is for all GPUs from Ampere on, target is {self.target!r}: "
                "leave out one of the two"
            )


@dataclass(frozen=True)
class TensorrtBuildReport:
    """What a build gave.

    Attributes:
        seconds: How long it took.
        plan_bytes: The size of the plan.
        notes: What the user should hear, such as that a timing cache was damaged.
    """

    seconds: float
    plan_bytes: int
    notes: tuple[str, ...] = ()


def check_build_options(engine_name: str, options: TensorrtBuildOptions) -> None:
    """Raise `EngineError` unless this TensorRT on this machine has what the options ask for."""
    trt = load_tensorrt(engine_name)
    if engine_name == TENSORRT_RTX:
        _check_options_of_rtx(trt, options)
    elif options.target != CURRENT:
        raise EngineError(
            f"target is {options.target!r}; TensorRT builds for the GPU of this machine only: use "
            f"target '{CURRENT}' on the machine that is to run it, or engine '{TENSORRT_RTX}'"
        )
    if not _needs_gpu(engine_name, options):
        return
    try:
        gpu = list_gpus()[0]
    except EngineError as err:
        raise EngineError(f"{TITLES[engine_name]} needs a GPU to build this: {err}") from err
    if engine_name == TENSORRT_RTX and options.target == CURRENT:
        _check_gpu_of_rtx(trt, gpu.compute_capability)


def build_plan(
    engine_name: str,
    graph: Path,
    ranges: Mapping[str, ShapeRange],
    options: TensorrtBuildOptions,
    target: Path,
    *,
    timing_cache: Path | None = None,
    on_progress: OnBuildProgress | None = None,
) -> TensorrtBuildReport:
    """Write the plan of the graph at `graph` to `target`.

    Args:
        engine_name: "tensorrt" or "tensorrt-rtx".
        graph: The ONNX file; its external data is found beside it.
        ranges: The shapes of each input.
        options: How to build.
        target: The plan, in a folder that exists.
        timing_cache: Where TensorRT keeps what it measured, for the next build; made if absent.
            TensorRT for RTX measures nothing before it runs, and leaves it alone.
        on_progress: Told the phase, a count that only grows, and what it ends at; False cancels.

    Raises:
        EngineError: The options are not to be had, or TensorRT does not take the graph.
        CancelledError: on_progress asked to stop; nothing was written but the timing cache.
    """
    check_build_options(engine_name, options)
    started = time.perf_counter()
    trt = load_tensorrt(engine_name)
    log = ErrorLog(trt)
    name = f"{graph.parent.name}/{graph.name}"
    builder = trt.Builder(log.logger)
    log.check(f"{TITLES[engine_name]} {trt.__version__} does not start")
    # Always on from TensorRT 11, which ignores the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(graph)):
        raise EngineError(f"{name} cannot be parsed: {describe_parser_errors(parser, log)}")
    config = builder.create_builder_config()
    _set_options(trt, config, engine_name, options)
    _add_profile(name, builder, network, config, ranges)
    timings = None
    if timing_cache is not None and engine_name != TENSORRT_RTX:
        timings = TimingCache(config, timing_cache)
    progress = BuildProgress(on_progress or (lambda phase, done, total: None))
    config.progress_monitor = make_monitor(trt, progress)
    log.errors.clear()
    plan = builder.build_serialized_network(network, config)
    if timings is not None:
        timings.save()
    progress.check(name)
    if plan is None:
        raise EngineError(f"{name} cannot be built: {log.join()}")
    write_file(target, plan)
    notes = tuple(timings.notes) if timings is not None else ()
    return TensorrtBuildReport(time.perf_counter() - started, plan.nbytes, notes)


def _check_options_of_rtx(trt: tensorrt.Tensorrt, options: TensorrtBuildOptions) -> None:
    """Raise `EngineError` for what TensorRT has and TensorRT for RTX has not."""
    if options.optimization_level is not None:
        raise EngineError(
            f"optimization_level is {options.optimization_level}; TensorRT for RTX has no levels: "
            "leave it out"
        )
    if options.version_compatible:
        raise EngineError(
            "version_compatible is not to be had of TensorRT for RTX: leave it out, and build "
            "again for each version"
        )
    if options.target not in (CURRENT, *_list_targets(trt)):
        raise EngineError(
            f"target is {options.target!r}; TensorRT for RTX {trt.__version__} builds for "
            f"{CURRENT}, {', '.join(_list_targets(trt))}"
        )


def _check_gpu_of_rtx(trt: tensorrt.Tensorrt, compute_capability: str) -> None:
    """Raise `EngineError` for a GPU that TensorRT for RTX leaves out, as those of data centres."""
    targets = _list_targets(trt)
    # GPUs that are newer than all that it names may be among what it builds for.
    is_newer = parse_target(compute_capability) > parse_target(targets[-1])
    if compute_capability not in targets and not is_newer:
        raise EngineError(
            f"the GPU here is {compute_capability}; TensorRT for RTX {trt.__version__} builds for "
            f"{', '.join(targets)}: use engine 'tensorrt', or a target of these"
        )


def _list_targets(trt: tensorrt.Tensorrt) -> list[str]:
    """What TensorRT for RTX builds for, the oldest first."""
    names = (name.lower() for name in dir(trt.ComputeCapability) if name.startswith("SM"))
    return sorted(names, key=parse_target)


def _needs_gpu(engine_name: str, options: TensorrtBuildOptions) -> bool:
    """Whether a build asks the GPU of this machine something."""
    if engine_name != TENSORRT_RTX:
        return True
    # TensorRT for RTX 1.7 compiles and runs kernels for engines that can be refitted.
    if options.refit or options.strip_weights:
        return True
    return options.target == CURRENT and not options.hardware_compatible


def _set_options(
    trt: tensorrt.Tensorrt,
    config: tensorrt.IBuilderConfig,
    engine_name: str,
    options: TensorrtBuildOptions,
) -> None:
    """Tell the builder what the options ask for."""
    flag = trt.BuilderFlag
    wanted = {
        flag.REFIT: options.refit,
        flag.STRIP_PLAN: options.strip_weights,
        # The weights that come back are those of the build, unless others are wanted too.
        flag.REFIT_IDENTICAL: options.strip_weights and not options.refit,
        flag.WEIGHT_STREAMING: options.weight_streaming,
        flag.VERSION_COMPATIBLE: options.version_compatible,
    }
    for name, is_wanted in wanted.items():
        if is_wanted:
            config.set_flag(name)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if engine_name != TENSORRT_RTX:
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    # TensorRT for RTX builds for all GPUs from Ampere on unless it is told one.
    elif not options.hardware_compatible:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, options.target.upper()), 0)


def _add_profile(
    name: str,
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    ranges: Mapping[str, ShapeRange],
) -> None:
    """Give the builder the shapes of all inputs; raises `EngineError` if they do not fit."""
    profile = builder.create_optimization_profile()
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    names = [tensor.name for tensor in inputs]
    if set(names) != set(ranges):
        raise EngineError(
            f"{name} takes {', '.join(names)}; shapes were given for {', '.join(ranges)}: "
            "give one range for each input"
        )
    for tensor in inputs:
        shapes = ranges[tensor.name]
        if tensor.is_shape_tensor:
            raise EngineError(
                f"{name}: {tensor.name} is a shape, of which values and not lengths are to be "
                "known: export the graph so that shapes follow from the other inputs"
            )
        try:
            profile.set_shape(tensor.name, shapes.minimum, shapes.optimum, shapes.maximum)
        except (ValueError, RuntimeError) as err:
            raise EngineError(f"{name}: {shapes} does not fit {tensor.name}: {err}") from err
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(
            f"{name} does not take these shapes: "
            + ", ".join(
                f"{key} {list(r.minimum)} to {list(r.maximum)}" for key, r in ranges.items()
            )
        )
