"""Choose what runs each component: a graph of the bundle, or an engine that was built of one."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mutoscope.engines.cuda_device import list_gpus
from mutoscope.engines.engine import Engine
from mutoscope.engines.onnxruntime_providers import (
    list_execution_providers,
    look_up_execution_provider,
)
from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import (
    AUTO,
    DEFAULT_ENGINE,
    DEFAULT_EXECUTION_PROVIDER,
    TENSORRT_MODULES,
    EngineOptions,
)
from mutoscope.engines.tensorrt_build import ShapeRange
from mutoscope.runtime.built_engines import BuiltEngine, find_built
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.cache import find_cache
from mutoscope.runtime.errors import EngineError
from mutoscope.runtime.shape_ranges import make_shape_ranges, takes

# What "auto" runs graphs on that nothing was built of, if it is there.
_CUDA = "cuda"
_RUNTIME_CACHE_NAME = "runtime.cache"
# Without a configuration of its own, Python writes warnings to stderr as they are.
_LOGGER = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class FoundGraph:
    """What runs a component.

    Attributes:
        path: The graph, or what was built of it.
        variant: The variant of the component.
        options: What opens it; its engine is never "auto".
        is_built: Whether it was built on this machine.
        weights: The graph that has the weights of an engine that was built without.
        cache: Where what is compiled when it is loaded or run is kept.
        allow_host_code: Whether what was built may bring code for the processor.
        seconds_run: How long a run took when it was proved; None where that was not measured.
    """

    path: Path
    variant: str
    options: EngineOptions
    is_built: bool = False
    weights: Path | None = None
    cache: Path | None = None
    allow_host_code: bool = False
    seconds_run: float | None = None

    def __str__(self) -> str:
        """Return what runs in words: `float16 with tensorrt, 31.2 ms a run`."""
        return _describe(self.variant, self.options, self.seconds_run)


class GraphFinder:
    """Finds what to load for a component: what was built of it where there is something that fits.

    With the engines that run nothing else, "tensorrt" and "tensorrt-rtx", and with "auto", it is
    the fastest of what was built and proved. "auto" runs with onnxruntime what nothing was built
    of.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions, variant: str | None = None) -> None:
        """Prepare to find the graphs that these options run of a variant; see `Components`.

        Raises:
            ParameterError: No component has this variant.
        """
        bundle.check_variant(variant)
        self._bundle = bundle
        self._options = options
        self._variant = variant
        self._noted = False

    def find(self, name: str, shapes: Shapes | None = None) -> FoundGraph:
        """Return what runs a component; the files of the bundle are checked.

        The log has one warning if something was built that fits but for a reason that it names.

        Args:
            name: A key of the bundle's components.
            shapes: Those of the inputs, for an engine that takes them; None for any.

        Raises:
            BundleError: A file of the component is damaged.
            EngineError: Nothing was built that fits, for an engine that runs nothing else.
            ParameterError: The bundle has no such component.
        """
        built = self.find_plan(name, shapes)
        if built is not None:
            return use_built(self._bundle, built, self._options)
        options = self.graph_options
        component = self._bundle.find_component(name)
        variant = component.choose_variant(self._variant)
        is_for_cpu = options.execution_provider == DEFAULT_EXECUTION_PROVIDER
        if options.name == DEFAULT_ENGINE and is_for_cpu:
            all_built = list(find_built(self._bundle, name, variant, DEFAULT_ENGINE))
            for built in all_built:
                if built.problem is None:
                    return use_built(self._bundle, built, options)
            if all_built:
                self._warn(name, all_built[-1])
        path = self._bundle.load_graph(name, variant, for_cpu=options.uses_cpu_graphs)
        return FoundGraph(path, variant, options, cache=_find_provider_cache(options))

    def find_variant(self, name: str) -> str:
        """Return the variant that a component runs, without a look into its files; as `find`."""
        built = self.find_plan(name)
        if built is not None and built.variant is not None:
            return built.variant
        return self._bundle.find_component(name).choose_variant(self._variant)

    def describe(self, name: str) -> str:
        """Return what runs a component in words, without a look into its files; as `find`."""
        variant, built = self.find_variant(name), self.find_plan(name)
        if built is None:
            return _describe(variant, self.graph_options)
        return _describe(
            variant, replace(self._options, engine=built.engine), _get_seconds_run(built)
        )

    @functools.cached_property
    def graph_options(self) -> EngineOptions:
        """What runs graphs that nothing was built of."""
        if self._options.engine != AUTO:
            return self._options
        provider = DEFAULT_EXECUTION_PROVIDER
        # A build of onnxruntime lists CUDA on machines without a GPU too.
        if _CUDA in list_execution_providers() and _has_gpu():
            provider = _CUDA
        return replace(
            self._options,
            engine=DEFAULT_ENGINE,
            execution_provider=provider,
            cuda_graphs=False,
            weight_budget_bytes=None,
        )

    def find_plan(self, name: str, shapes: Shapes | None = None) -> BuiltEngine | None:
        """Return the fastest engine for TensorRT, of those that take the shapes if there are any.

        None where the options run graphs; the arguments and what is raised are those of `find`.
        """
        chosen = self._options.engine
        if not self._options.runs_plans:
            return None
        variant = self._variant and self._bundle.find_component(name).choose_variant(self._variant)
        engines = TENSORRT_MODULES if chosen == AUTO else (chosen,)
        all_built = [b for e in engines for b in find_built(self._bundle, name, variant, e)]
        usable = [built for built in all_built if built.problem is None]
        if not usable and chosen != AUTO:
            raise EngineError(self._explain_absence(name, chosen, all_built))
        if not usable and all_built:
            self._warn(name, all_built[-1])
        fitting = [built for built in usable if takes(self._make_ranges(built), shapes or {})]
        # Times are of the usual size of each.
        best = [built for built in fitting if self._is_best_at(built, shapes or {})]
        return min(best or fitting or usable, key=_get_seconds_run, default=None)

    def check(self, name: str, shapes: Shapes) -> None:
        """Raise `EngineError` unless something runs a component on inputs of these shapes."""
        built = self.find_plan(name, shapes)
        if built is None or takes(self._make_ranges(built), shapes):
            return
        clips = built.tensorrt.clips if built.tensorrt else None
        batch = f", {clips.batch} at once" if clips else ""
        listed = ", ".join(f"{key} {list(shape)}" for key, shape in shapes.items())
        raise EngineError(
            f"{name} was built for {built.engine} for clips of {clips}{batch}, which does not take "
            f"{listed}: use such a clip, or mutoscope build {self._bundle.path} --engine "
            f"{built.engine} with the --shapes and --guidance-passes of this one"
        )

    def _make_ranges(self, built: BuiltEngine) -> dict[str, ShapeRange]:
        if built.tensorrt is None:
            return {}
        return make_shape_ranges(self._bundle, built.component, built.tensorrt.clips)

    def _is_best_at(self, built: BuiltEngine, shapes: Shapes) -> bool:
        ranges = self._make_ranges(built)
        return all(ranges[name].optimum == tuple(shape) for name, shape in shapes.items())

    def _explain_absence(self, name: str, engine: str, all_built: list[BuiltEngine]) -> str:
        if not all_built:
            variant = self._bundle.find_component(name).choose_variant(self._variant)
            return (
                f"nothing was built of {name} for {engine}: mutoscope build {self._bundle.path} "
                f"--engine {engine} --variant {variant}"
            )
        return f"{name} cannot run: {self._describe_problem(all_built[-1])}"

    def _warn(self, name: str, built: BuiltEngine) -> None:
        if not self._noted:
            self._noted = True
            _LOGGER.warning(
                "%s is loaded as it was exported: %s", name, self._describe_problem(built)
            )

    def _describe_problem(self, built: BuiltEngine) -> str:
        """Why an engine is not used, and the command that would change it."""
        if built.engine in TENSORRT_MODULES and not _has_gpu():
            return f"what was built of it is not used, since {built.problem}"
        if built.proof is not None:
            return (
                f"what was built of it is not used, since {built.problem}: use another variant, or "
                f"engine {DEFAULT_ENGINE!r}"
            )
        command = f"mutoscope {'build' if built.misfit else 'verify'} {self._bundle.path}"
        if built.engine in TENSORRT_MODULES:
            command += f" --engine {built.engine}"
        if self._variant:
            command += f" --variant {self._variant}"
        return f"what was built of it is not used, since {built.problem}: {command}"


def use_built(bundle: Bundle, built: BuiltEngine, options: EngineOptions) -> FoundGraph:
    """Return how to run an engine that was built of a bundle's graph, with these options."""
    if built.record is None or built.variant is None:
        raise EngineError(f"{built.folder} cannot be used: {built.problem}")
    if built.tensorrt is None:
        return FoundGraph(built.path, built.variant, options, is_built=True)
    is_stripped = built.tensorrt.options.strip_weights
    weights = bundle.load_graph(built.component, built.variant) if is_stripped else None
    return FoundGraph(
        built.path,
        built.variant,
        replace(options, engine=built.engine, execution_provider=DEFAULT_EXECUTION_PROVIDER),
        is_built=True,
        weights=weights,
        cache=_find_runtime_cache(built.folder),
        allow_host_code=built.tensorrt.options.version_compatible,
        seconds_run=built.proof.seconds_run if built.proof else None,
    )


def _find_runtime_cache(folder: Path) -> Path | None:
    # What cannot be written would be an error when the engine is closed.
    return folder / _RUNTIME_CACHE_NAME if os.access(folder, os.W_OK) else None


def _find_provider_cache(options: EngineOptions) -> Path | None:
    """The folder where an execution provider keeps what it compiled, under keys of its own."""
    if options.name != DEFAULT_ENGINE or options.execution_provider == DEFAULT_EXECUTION_PROVIDER:
        return None
    folder = find_cache() / "execution-providers"
    name = look_up_execution_provider(options.execution_provider).name
    return folder / name if folder.is_absolute() else None


def open_found(found: FoundGraph) -> Engine:
    """Return an engine of what was found; raises `EngineError`."""
    return open_engine(
        found.path,
        found.options,
        is_built=found.is_built,
        weights=found.weights,
        cache=found.cache,
        allow_host_code=found.allow_host_code,
    )


def _has_gpu() -> bool:
    try:
        return bool(list_gpus())
    except EngineError:
        return False


def _describe(variant: str, options: EngineOptions, seconds_run: float | None = None) -> str:
    engine = options.engine
    if engine == DEFAULT_ENGINE:
        engine += f" on {options.execution_provider}"
    time = f", {1e3 * seconds_run:.1f} ms a run" if seconds_run else ""
    return f"{variant} with {engine}{time}"


def _get_seconds_run(built: BuiltEngine) -> float:
    return built.proof.seconds_run if built.proof else float("inf")
