"""Engines that were built of a bundle's graphs on this machine: where they lie, and which one fits.

They lie in the bundle, under engines/, or in the user's cache where the bundle cannot be written or
is the one that ships with mutoscope:

    engines/BUILD_KEY/COMPONENT-DIGEST/    model.onnx, its data, and build.json, which describes it

BUILD_KEY says what built engines are good for (`make_build_key`), DIGEST which graph and weights
they were built of. The manifest knows nothing of them: they can be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mutoscope.engines.engine import Array
from mutoscope.engines.onnxruntime_build import GRAPH_NAME, build_graph, make_build_key
from mutoscope.engines.options import DEFAULT_ENGINE, DEFAULT_EXECUTION_PROVIDER, EngineOptions
from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH, Bundle, list_graph_files
from mutoscope.runtime.cache import find_cache
from mutoscope.runtime.errors import BundleError, OutputError
from mutoscope.runtime.json_records import read_record, write_record
from mutoscope.runtime.outputs import new_folder

ENGINES_FOLDER = "engines"
RECORD_NAME = "build.json"

# Without a configuration of its own, Python writes warnings to stderr as they are.
_LOGGER = logging.getLogger(__name__)
_DIGEST_DIGITS = 16
# Prepacked weights lie beside those that they were made of.
_SPACE_FACTOR = 1.6


@dataclass(frozen=True)
class BuildRecord:
    """What a built engine is.

    Attributes:
        engine: What it was built for, e.g. "onnxruntime".
        component: A key of the manifest's components.
        graph: The graph that it was built of, by its path in the bundle.
        files: The size of each of its files, in bytes.
        seconds_load_before: Time to load that graph when it was built, in seconds.
        seconds_load_after: Time to load the built one.
        max_relative_error: How far their outputs were apart, relative to the largest value.
    """

    engine: str
    component: str
    graph: str
    files: dict[str, int]
    seconds_load_before: float
    seconds_load_after: float
    max_relative_error: float


@dataclass(frozen=True)
class BuiltEngine:
    """One built engine on disk.

    Attributes:
        folder: Where it lies.
        component: What it was built of.
        variant: The variant of the component that it was built of; None if that is not there now.
        problem: Why it is not used, in words; None if it is.
    """

    folder: Path
    component: str
    variant: str | None
    problem: str | None = None

    @property
    def graph(self) -> Path:
        """The file to load."""
        return self.folder / GRAPH_NAME

    @property
    def size_bytes(self) -> int:
        """What it takes on the disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


class GraphFinder:
    """Finds the graph to load for a component: a built one where there is one that fits."""

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

    def find(self, name: str) -> tuple[Path, bool]:
        """Return the path of a component's graph, and whether it is a built one.

        The log has one warning if an engine was built but does not fit any more.

        Raises:
            BundleError: A file of the component is damaged.
            ParameterError: The bundle has no such component.
        """
        options = self._options
        variant = self._bundle.find_component(name).choose_variant(self._variant)
        runs_built = options.execution_provider == DEFAULT_EXECUTION_PROVIDER
        if options.name == DEFAULT_ENGINE and runs_built:
            built = list(find_built(self._bundle, name, variant))
            for engine in built:
                if engine.problem is None:
                    return engine.graph, True
            if built and not self._noted:
                self._noted = True
                which = f" --variant {self._variant}" if self._variant else ""
                _LOGGER.warning(
                    "%s is loaded as it was exported, since what was built of it does not fit any "
                    "more: %s; to build it again: mutoscope build %s%s",
                    name, built[-1].problem, self._bundle.path, which,
                )  # fmt: skip
        return self._bundle.load_graph(name, variant, for_cpu=options.uses_cpu_graphs), False


def find_built(bundle: Bundle, name: str, variant: str | None = None) -> Iterator[BuiltEngine]:
    """Yield what was built of a component, whether it fits or not.

    Args:
        bundle: The bundle.
        name: A key of its components.
        variant: Leave out what was built of its other variants; None yields all.

    Raises:
        ParameterError: The bundle has no such component.
    """
    component = bundle.find_component(name)
    graphs = {component.find_cpu_graph(known): known for known in component.variants}
    digests = {_find_digest(bundle, name, graph): graph for graph in graphs}
    prefix = f"{quote(name, safe='')}-"
    for root in (bundle.path / ENGINES_FOLDER, find_cache() / ENGINES_FOLDER):
        for folder in sorted(root.glob(f"*/{prefix}*")):
            in_bundle, found = root.parent == bundle.path, folder.name.removeprefix(prefix)
            # The cache has the engines of other bundles too.
            if len(found) != _DIGEST_DIGITS or not (found in digests or in_bundle):
                continue
            built_of = graphs.get(digests.get(found) or _read_graph(folder))
            if variant is None or built_of in (variant, None):
                yield BuiltEngine(folder, name, built_of, _find_problem(folder, found in digests))


def _read_graph(folder: Path) -> str:
    """The graph that a built engine says that it was built of; none if it is damaged."""
    with suppress(BundleError):
        return load_record(folder).graph
    return ""


def _find_problem(folder: Path, same_graph: bool) -> str | None:
    if not same_graph:
        return "it was built of another graph or of other weights"
    if folder.parent.name != make_build_key():
        return f"it was built for {folder.parent.name}; this is {make_build_key()}"
    try:
        load_record(folder)
    except BundleError as err:
        return str(err)
    return None


def load_record(folder: Path) -> BuildRecord:
    """Return what a built engine says of itself; raises `BundleError` if it is damaged."""
    path = folder / RECORD_NAME
    try:
        record = read_record(BuildRecord, json.loads(path.read_bytes()), RECORD_NAME)
        sizes = {name: (folder / name).stat().st_size for name in record.files}
    except (OSError, ValueError) as err:
        raise BundleError(f"{path} or what it lists cannot be read ({err})") from err
    if sizes != record.files:
        raise BundleError(f"{folder} has files of other sizes than {RECORD_NAME} lists")
    return record


def build_component(
    bundle: Bundle, name: str, feeds: dict[str, Array], variant: str | None = None
) -> BuiltEngine:
    """Build a component for onnxruntime on this machine, again if need be, and return it.

    Args:
        bundle: The bundle.
        name: A key of its components.
        feeds: Inputs that the graph and what is built of it are compared with.
        variant: The variant to build, if the component has it; its default variant if not.

    Raises:
        BundleError: A file of the component is damaged.
        EngineError: The graph cannot be built, or what was built gives other results.
        OutputError: There is no space or permission.
        ParameterError: The bundle has no such component.
    """
    component = bundle.find_component(name)
    variant = component.choose_variant(variant)
    graph = component.find_cpu_graph(variant)
    root = _choose_root(bundle)
    digest = _find_digest(bundle, name, graph)
    folder = root / make_build_key() / f"{quote(name, safe='')}-{digest}"
    source = bundle.load_graph(name, variant, for_cpu=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_space(bundle, name, graph, root)
        with new_folder(folder) as temporary:
            report = build_graph(source, temporary, feeds)
            files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
            record = BuildRecord(
                DEFAULT_ENGINE, name, graph, files, report.seconds_load_before,
                report.seconds_load_after, report.max_relative_error,
            )  # fmt: skip
            (temporary / RECORD_NAME).write_text(json.dumps(write_record(record), indent=1))
    except OSError as err:
        raise OutputError(f"{folder} cannot be written: {err.strerror or err}") from err
    finally:
        _remove_empty(folder.parent)
    return BuiltEngine(folder, name, variant)


def remove_built(built: BuiltEngine) -> None:
    """Remove a built engine and the folders that are empty then; raises `OutputError`."""
    try:
        shutil.rmtree(built.folder)
    except OSError as err:
        raise OutputError(f"{built.folder} cannot be removed: {err.strerror or err}") from err
    _remove_empty(built.folder.parent)


def _find_digest(bundle: Bundle, name: str, graph: str) -> str:
    """The digest of a component's graph and its weights."""
    parts = {part: bundle.manifest.files[part].sha256 for part in _find_parts(bundle, name, graph)}
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_DIGITS]


def _find_parts(bundle: Bundle, name: str, graph: str) -> list[str]:
    return list_graph_files(bundle.manifest, bundle.find_component(name), graph)


def _choose_root(bundle: Bundle) -> Path:
    # Files beside those of an installed package would stay behind when it is removed.
    is_shipped = bundle.path.resolve() == DEFAULT_BUNDLE_PATH
    if not is_shipped and os.access(bundle.path, os.W_OK | os.X_OK):
        return bundle.path / ENGINES_FOLDER
    cache = find_cache() / ENGINES_FOLDER
    if not cache.is_absolute():
        raise OutputError(f"there is no folder for a cache, {cache}: set XDG_CACHE_HOME")
    return cache


def _check_space(bundle: Bundle, name: str, graph: str, root: Path) -> None:
    files, parts = bundle.manifest.files, _find_parts(bundle, name, graph)
    size = sum(files[part].size_bytes for part in parts)
    free, needed = shutil.disk_usage(root).free, round(_SPACE_FACTOR * size)
    if free < needed:
        raise OutputError(
            f"{root} has {free} bytes free; building {name} needs about {needed}: make space, or "
            "set XDG_CACHE_HOME to a folder on another disk and make the bundle read-only"
        )


def _remove_empty(folder: Path) -> None:
    """Remove a folder of built engines and the one above it, if there is nothing in them."""
    for empty in (folder, folder.parent):
        with suppress(OSError):
            empty.rmdir()
