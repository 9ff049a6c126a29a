"""Build the graphs of a bundle for TensorRT."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from mutoscope.engines.tensorrt_build import CURRENT, TensorrtBuildOptions, build_plan
from mutoscope.engines.tensorrt_module import TENSORRT_RTX
from mutoscope.engines.tensorrt_platform import EnginePlatform, make_platform
from mutoscope.runtime.built_engines import (
    PLAN_NAME,
    BuildRecord,
    BuiltEngine,
    TensorrtRecord,
    find_built,
    write_built,
)
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.cache import find_cache
from mutoscope.runtime.errors import EngineError
from mutoscope.runtime.json_records import write_record
from mutoscope.runtime.shape_ranges import ClipRange, make_shape_ranges

_DIGEST_DIGITS = 8
# Without a configuration of its own, Python writes warnings to stderr as they are.
_LOGGER = logging.getLogger(__name__)

OnPhase = Callable[[str, int, int], "bool | None"]


def build_for_tensorrt(
    bundle: Bundle,
    name: str,
    variant: str,
    engine: str,
    clips: ClipRange,
    options: TensorrtBuildOptions,
    on_progress: OnPhase | None = None,
) -> BuiltEngine:
    """Build a component for TensorRT, again if it is there, and return it; it has no proof yet.

    Args:
        bundle: The bundle.
        name: A key of its components.
        variant: The variant to build.
        engine: "tensorrt" or "tensorrt-rtx".
        clips: What it is to take.
        options: For which device, and how.
        on_progress: Called with what is being done, how much of it is and of how much; returns
            False to cancel.

    Raises:
        BundleError: A file of the component is damaged.
        CancelledError: on_progress asked to stop.
        EngineError: TensorRT is not installed, or cannot build the graph.
        OutputError: There is no space or permission.
        ParameterError: The bundle has no such component or variant.
    """
    source = bundle.load_graph(name, variant)
    graph = bundle.find_component(name).variants[variant]
    platform = _find_platform(engine, options)
    ranges = make_shape_ranges(bundle, name, clips)
    timing_cache = find_cache() / "timing" / f"{name_platform(platform)}.cache"

    def make(folder: Path) -> BuildRecord:
        report = build_plan(
            engine,
            source,
            ranges,
            options,
            folder / PLAN_NAME,
            timing_cache=timing_cache,
            on_progress=on_progress,
        )
        for note in report.notes:
            _LOGGER.warning("%s", note)
        record = TensorrtRecord(platform, clips, options, report.seconds)
        return BuildRecord(engine, name, graph, {}, tensorrt=record)

    folder = write_built(bundle, name, graph, make_key(platform, clips, options), make)
    return next(
        built for built in find_built(bundle, name, variant, engine) if built.folder == folder
    )


def find_same(
    bundle: Bundle,
    name: str,
    variant: str,
    engine: str,
    clips: ClipRange,
    options: TensorrtBuildOptions,
) -> tuple[BuiltEngine | None, str | None]:
    """Return what was built of a component in this very way; if nothing, why others do not do.

    The arguments are those of `build_for_tensorrt`; EngineError is raised as there.
    """
    platform, reason = _find_platform(engine, options), None
    key = make_key(platform, clips, options)
    for built in find_built(bundle, name, variant, engine):
        record = built.tensorrt
        if not record or not built.is_of_graph:
            reason = built.misfit
        elif built.folder.parent.name == key:
            return built, None
        elif record.platform != platform:
            reason = f"it was built for {name_platform(record.platform)}"
        elif record.clips != clips:
            reason = f"it was built for {record.clips}"
        else:
            reason = "it was built with other options"
    return None, reason


def make_key(platform: EnginePlatform, clips: ClipRange, options: TensorrtBuildOptions) -> str:
    """Return the name of the folder of engines that were built in this way."""
    how = {"clips": write_record(clips), "options": write_record(options)}
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()
    return f"{name_platform(platform)}-{digest[:_DIGEST_DIGITS]}"


def name_platform(platform: EnginePlatform) -> str:
    """Return what engines are good for in one word: `tensorrt-10.3.0-linux-aarch64-sm87`."""
    return f"{platform.engine}-{platform.version}-{platform.system}-{platform.target}"


def _find_platform(engine: str, options: TensorrtBuildOptions) -> EnginePlatform:
    """What is built here is good for; raises `EngineError`."""
    try:
        return make_platform(engine, options)
    except EngineError as err:
        if engine != TENSORRT_RTX or options.target != CURRENT:
            raise
        raise EngineError(f"{err}; or build for another machine, such as --target sm86") from err
