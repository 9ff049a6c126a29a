"""Engines that were built of a bundle's graphs: where they lie, and which of them fit this machine.

They lie in the bundle, under engines/, or in the user's cache where the bundle cannot be written or
is the one that ships with mutoscope:

    engines/KEY/COMPONENT-DIGEST/    the files of the engine; build.json, which describes it;
                                     proof.json, what its results were compared with

KEY says what the engines are good for, DIGEST which graph and weights they were built of. The
manifest knows nothing of them: they can be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mutoscope.engines.cuda_device import list_gpus
from mutoscope.engines.onnxruntime_build import GRAPH_NAME, BuildReport, make_build_key
from mutoscope.engines.options import DEFAULT_ENGINE, TENSORRT_MODULES
from mutoscope.engines.tensorrt_build import TensorrtBuildOptions
from mutoscope.engines.tensorrt_platform import EnginePlatform, find_misfit, make_platform
from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH, Bundle, list_graph_files
from mutoscope.runtime.cache import find_cache
from mutoscope.runtime.errors import BundleError, OutputError
from mutoscope.runtime.json_records import read_record, write_record
from mutoscope.runtime.outputs import new_folder
from mutoscope.runtime.shape_ranges import ClipRange

ENGINES_FOLDER = "engines"
RECORD_NAME = "build.json"
PROOF_NAME = "proof.json"
PLAN_NAME = "model.plan"

_DIGEST_DIGITS = 16
# Prepacked weights lie beside those that they were made of.
_SPACE_FACTOR = 1.6


@dataclass(frozen=True)
class TensorrtRecord:
    """How an engine was built for TensorRT.

    Attributes:
        platform: What it is good for.
        clips: The clips that it takes.
        options: How it was built.
        seconds_build: How long that took.
    """

    platform: EnginePlatform
    clips: ClipRange
    options: TensorrtBuildOptions
    seconds_build: float


@dataclass(frozen=True)
class BuildRecord:
    """What a built engine is.

    Attributes:
        engine: What it was built for: "onnxruntime", "tensorrt" or "tensorrt-rtx".
        component: A key of the manifest's components.
        graph: The graph that it was built of, by its path in the bundle.
        files: The size of each of its files, in bytes.
        load: Of an engine for onnxruntime.
        tensorrt: Of an engine for TensorRT.
    """

    engine: str
    component: str
    graph: str
    files: dict[str, int]
    load: BuildReport | None = None
    tensorrt: TensorrtRecord | None = None


@dataclass(frozen=True)
class ProofRecord:
    """How close an engine came to onnxruntime on the CPU, on one device.

    Attributes:
        psnr_db: Of the worst of its outputs.
        minimum_psnr_db: What is needed for the engine to be used.
        seconds_run: Median time of a run of the usual size, copies included.
        memory_bytes: What it held on the device, by what for, with clips of the usual size.
        device: Where it ran, in words.
        platform: What it ran with; a proof is good for the same version and GPU only.
    """

    psnr_db: float
    minimum_psnr_db: float
    seconds_run: float
    memory_bytes: dict[str, int]
    device: str
    platform: EnginePlatform

    @property
    def is_passed(self) -> bool:
        """Whether the engine may be used; written so that it is False for NaN."""
        return self.psnr_db >= self.minimum_psnr_db


@dataclass(frozen=True)
class BuiltEngine:
    """One built engine on disk.

    Attributes:
        folder: Where it lies.
        component: What it was built of.
        variant: The variant of the component that it was built of; None if that is not there now.
        record: What it says of itself; None if that cannot be read.
        misfit: Why it cannot be loaded here, in words; None if it can.
        is_of_graph: Whether it was built of a graph that the bundle has now.
        proof: What its results were on this kind of device; None if they were not compared.
    """

    folder: Path
    component: str
    variant: str | None
    record: BuildRecord | None
    misfit: str | None = None
    is_of_graph: bool = True
    proof: ProofRecord | None = None

    @property
    def problem(self) -> str | None:
        """Why it is not used, in words; None if it is."""
        if self.misfit or self.tensorrt is None:
            return self.misfit
        if self.proof is None:
            return "its results were not compared yet"
        if not self.proof.is_passed:
            return (
                f"its results come to {self.proof.psnr_db:.1f} dB of onnxruntime's on the CPU, "
                f"{self.proof.minimum_psnr_db:g} are needed"
            )
        return None

    @property
    def tensorrt(self) -> TensorrtRecord | None:
        """How it was built for TensorRT; None if it was not, or if that cannot be read."""
        return self.record.tensorrt if self.record is not None else None

    @property
    def engine(self) -> str:
        """What it was built for, also where its record cannot be read."""
        return _find_engine(self.folder.parent.name) or DEFAULT_ENGINE

    @property
    def path(self) -> Path:
        """The file to load."""
        return self.folder / (GRAPH_NAME if self.tensorrt is None else PLAN_NAME)

    @property
    def size_bytes(self) -> int:
        """What it takes on the disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


def find_built(
    bundle: Bundle, name: str, variant: str | None = None, engine: str | None = None
) -> Iterator[BuiltEngine]:
    """Yield what was built of a component, whether it fits or not.

    Args:
        bundle: The bundle.
        name: A key of its components.
        variant: Leave out what was built of its other variants; None yields all.
        engine: Leave out what was built for others; None yields all.

    Raises:
        ParameterError: The bundle has no such component.
    """
    component = bundle.find_component(name)
    graphs = {component.find_cpu_graph(known): known for known in component.variants}
    graphs |= {graph: known for known, graph in component.variants.items()}
    digests = {find_digest(bundle, name, graph): graph for graph in graphs}
    prefix = f"{quote(name, safe='')}-"
    for root in (bundle.path / ENGINES_FOLDER, find_cache() / ENGINES_FOLDER):
        for folder in sorted(root.glob(f"*/{prefix}*")):
            in_bundle, found = root.parent == bundle.path, folder.name.removeprefix(prefix)
            # The cache has the engines of other bundles too.
            if len(found) != _DIGEST_DIGITS or not (found in digests or in_bundle):
                continue
            # By its name: to find out whether one of TensorRT fits takes TensorRT.
            if engine not in (_find_engine(folder.parent.name), None):
                continue
            built = _read_built(folder, name, digests.get(found), graphs)
            if variant is None or built.variant in (variant, None):
                yield built


def _find_engine(key: str) -> str | None:
    """What engines with this key were built for: `tensorrt-rtx` of `tensorrt-rtx-1.7-...`."""
    known = [name for name in (DEFAULT_ENGINE, *TENSORRT_MODULES) if key.startswith(f"{name}-")]
    return max(known, key=len, default=None)


def _read_built(folder: Path, name: str, graph: str | None, graphs: dict[str, str]) -> BuiltEngine:
    """What lies in a folder, which is named after this graph of the bundle or after none."""
    record = proof = None
    try:
        record = load_record(folder)
        misfit = _find_misfit(folder, record) if graph else None
        proof = None if misfit else load_proof(folder, record)
    except BundleError as err:
        misfit = str(err)
    if graph is None:
        misfit = "it was built of another graph or of other weights"
    variant = graphs.get(graph or (record.graph if record else ""))
    return BuiltEngine(folder, name, variant, record, misfit, graph is not None, proof)


def _find_misfit(folder: Path, record: BuildRecord) -> str | None:
    if record.tensorrt is not None:
        return find_misfit(record.tensorrt.platform)
    if folder.parent.name != make_build_key():
        return f"it was built for {folder.parent.name}; this is {make_build_key()}"
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
    if (record.load is None) == (record.tensorrt is None):
        raise BundleError(f"{path} cannot be read (it is not of one kind of engine)")
    return record


def load_proof(folder: Path, record: BuildRecord) -> ProofRecord | None:
    """Return what an engine's results were with what would run it here.

    None if they were not compared, or with something else, or if the file is damaged: then they
    are to be compared again.

    Raises:
        EngineError: There is nothing here that would run it.
    """
    if record.tensorrt is None:
        return None
    try:
        value = json.loads((folder / PROOF_NAME).read_bytes())
        proof = read_record(ProofRecord, value, PROOF_NAME)
    except (OSError, ValueError, BundleError):
        return None
    here = make_platform(record.engine, TensorrtBuildOptions())
    is_here = proof.platform == here and proof.device == list_gpus()[0].name
    return proof if is_here else None


def write_built(
    bundle: Bundle,
    name: str,
    graph: str,
    key: str,
    make: Callable[[Path], BuildRecord],
) -> Path:
    """Write an engine in place of the one with the same key, if there is one; return its folder.

    Args:
        bundle: The bundle.
        name: The component that it is built of.
        graph: The graph, by its path in the bundle.
        key: What the engine is good for.
        make: Writes the files of the engine into a folder, and returns what it is; its `files` are
            found here.

    Raises:
        OutputError: There is no space or permission.
    """
    root = _choose_root(bundle)
    folder = root / key / f"{quote(name, safe='')}-{find_digest(bundle, name, graph)}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_space(bundle, name, graph, root)
        with new_folder(folder) as temporary:
            record = write_record(make(temporary))
            record["files"] = {f.name: f.stat().st_size for f in sorted(temporary.iterdir())}
            (temporary / RECORD_NAME).write_text(json.dumps(record, indent=1))
    except OSError as err:
        raise OutputError(f"{folder} cannot be written: {err.strerror or err}") from err
    finally:
        _remove_empty(folder.parent)
    return folder


def remove_built(built: BuiltEngine) -> None:
    """Remove a built engine and the folders that are empty then; raises `OutputError`."""
    try:
        shutil.rmtree(built.folder)
    except OSError as err:
        raise OutputError(f"{built.folder} cannot be removed: {err.strerror or err}") from err
    _remove_empty(built.folder.parent)


def find_digest(bundle: Bundle, name: str, graph: str) -> str:
    """Return the digest of a component's graph and its weights."""
    files = bundle.manifest.files
    parts = {part: files[part].sha256 for part in _list_parts(bundle, name, graph)}
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_DIGITS]


def _list_parts(bundle: Bundle, name: str, graph: str) -> list[str]:
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
    files, parts = bundle.manifest.files, _list_parts(bundle, name, graph)
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
