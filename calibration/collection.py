"""Collect what the layers of components see while the float model makes clips.

After each sample, what was collected so far is kept in a state folder, so that a calibration that
was interrupted goes on from there, and one with more samples begins where the last one ended.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.observed_engine import ObservedEngine
from mutoscope.calibration.observed_graph import ObservedGraph
from mutoscope.calibration.observers import ComponentStatistics
from mutoscope.calibration.samples import (
    FLOAT,
    CalibrationSample,
    SamplingOptions,
    generate_sample,
    open_float_pipeline,
)
from mutoscope.calibration.sampling_progress import OnProgress, report_step
from mutoscope.runtime.bundle import Bundle, list_graph_files
from mutoscope.runtime.cache import find_cache
from mutoscope.runtime.errors import OutputError
from mutoscope.runtime.outputs import new_folder
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.sampler import StepInfo

# Without a configuration of its own, Python writes warnings to stderr as they are.
_LOGGER = logging.getLogger(__name__)
_KEY_DIGITS = 16
_SAMPLES_NAME = "samples.json"


def collect(
    bundle: Bundle,
    graphs: Mapping[str, ObservedGraph],
    samples: Sequence[CalibrationSample],
    options: SamplingOptions | None = None,
    *,
    num_threads: int | None = None,
    state: Path | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, ComponentStatistics]:
    """Make clips with the float model and return what the layers of its components saw.

    All of the components are observed in the same clips. Memory does not grow with the samples.

    Args:
        bundle: The bundle; it is not changed.
        graphs: The observed graph of each component to look at.
        samples: The clips to make, at least one.
        options: Steps, scheduler and sizes; None takes the bundle's defaults.
        num_threads: Threads for one operator; None takes one for each core.
        state: The folder where what was collected is kept after each sample, from
            `find_state_folder`; None keeps nothing. `discard` removes it.
        on_progress: Called after each step; returns False to cancel.

    Raises:
        BundleError: A file of the bundle is damaged.
        CalibrationError: The bundle has no float32 graphs, or a value was NaN or infinite.
        CancelledError: on_progress asked to stop; whole samples are kept in `state`.
        EngineError: A graph cannot be loaded or run.
        OutputError: The state cannot be written.
        ParameterError: An option is not allowed.
    """
    options = options or SamplingOptions()
    statistics = {name: ComponentStatistics(graph.points) for name, graph in graphs.items()}
    done = 0
    if state is not None:
        done, statistics = _resume(state, statistics, samples)
    with open_float_pipeline(bundle, num_threads) as pipeline:
        for name, graph in graphs.items() if done < len(samples) else ():
            component = bundle.find_component(name)
            engine = ObservedEngine(graph, statistics[name], component, num_threads)
            pipeline.replace_engine(name, engine)
        for index in range(done, len(samples)):
            _run_sample(pipeline, samples, index, options, on_progress)
            if state is not None:
                _save(state, statistics, samples[: index + 1])
    return statistics


def find_state_folder(bundle: Bundle, options: SamplingOptions | None = None) -> Path:
    """Return where calibrations of a bundle keep what they have so far: a folder in the cache.

    It is another one if the float graphs change, or steps, scheduler or sizes do; see
    `make_state_key` for what it raises beside `OutputError`, if there is no folder for a cache.
    """
    root = find_cache() / "calibration"
    if not root.is_absolute():
        raise OutputError(f"there is no folder for a cache, {root}: set XDG_CACHE_HOME")
    return root / make_state_key(bundle, options)


def make_state_key(bundle: Bundle, options: SamplingOptions | None = None) -> str:
    """Return a digest of all that the float model's clips depend on, but for the samples.

    Raises:
        ParameterError: An option is not allowed.
    """
    settings = (options or SamplingOptions()).make_settings(bundle)
    table = bundle.find_schedule(settings.scheduler, settings.num_inference_steps)
    manifest = bundle.manifest
    names = [table, *(record.file for record in manifest.tokenizers.values())]
    if manifest.prompts is not None:
        names.append(manifest.prompts)
    for component in manifest.components.values():
        graph = component.variants[component.choose_variant(FLOAT)]
        names += list_graph_files(manifest, component, graph)
    parts = {
        "files": {name: manifest.files[name].sha256 for name in names},
        "settings": asdict(settings),
        "negative_prompt": manifest.defaults.negative_prompt,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return digest[:_KEY_DIGITS]


def discard(state: Path) -> None:
    """Remove a state folder, which is of no more use; raises `OutputError`."""
    try:
        if state.exists():
            shutil.rmtree(state)
    except OSError as err:
        raise OutputError(f"{state} cannot be removed: {err.strerror or err}") from err


def _run_sample(
    pipeline: VideoPipeline,
    samples: Sequence[CalibrationSample],
    index: int,
    options: SamplingOptions,
    on_progress: OnProgress | None,
) -> None:
    """Make one clip, of which nothing but the statistics is kept."""

    def on_step(info: StepInfo) -> bool | None:
        return report_step(info, index, len(samples), on_progress)

    try:
        generate_sample(pipeline, samples[index], options, on_step=on_step)
    except CalibrationError as err:
        raise CalibrationError(f"{err} (sample {samples[index].describe()})") from err


def _resume(
    state: Path, empty: Mapping[str, ComponentStatistics], samples: Sequence[CalibrationSample]
) -> tuple[int, dict[str, ComponentStatistics]]:
    """How many samples were collected already, and what; 0 and the empty ones where none were."""
    for folder in _list_saved(state, empty):
        try:
            found = json.loads((folder / _SAMPLES_NAME).read_bytes())
            statistics = {
                name: ComponentStatistics.load(_name_file(folder, name)) for name in empty
            }
        except (OSError, ValueError, CalibrationError) as err:
            _LOGGER.warning("what was collected before is damaged and not used: %s", err)
            continue
        known = [sample.identify() for sample in samples[: len(found)]]
        if found != known:
            _LOGGER.warning(
                "what was collected before is of other samples and not used: %s", folder
            )
        elif any(statistics[name].points != empty[name].points for name in empty):
            _LOGGER.warning("what was collected before is of other layers and not used: %s", folder)
        else:
            return len(found), statistics
    return 0, dict(empty)


def _save(
    state: Path,
    statistics: Mapping[str, ComponentStatistics],
    samples: Sequence[CalibrationSample],
) -> None:
    """Keep what was collected of these samples, in the place of what was kept before."""
    folder = state / f"{_name_state(statistics)}-{len(samples):06d}"
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"{state} cannot be written: {err.strerror or err}") from err
    old = _list_saved(state, statistics)
    # The rename of a whole folder is what makes it count: a crash leaves the old one or both.
    with new_folder(folder) as temporary:
        for name, collected in statistics.items():
            collected.save(_name_file(temporary, name))
        text = json.dumps([sample.identify() for sample in samples])
        (temporary / _SAMPLES_NAME).write_text(text, encoding="utf-8")
    for other in old:
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _list_saved(state: Path, names: Iterable[str]) -> list[Path]:
    """What was kept of these components together, that of most samples first."""
    return sorted(state.glob(f"{_name_state(names)}-[0-9]*"), reverse=True)


def _name_state(names: Iterable[str]) -> str:
    return "+".join(sorted(quote(name, safe="") for name in names))


def _name_file(folder: Path, name: str) -> Path:
    return folder / f"{quote(name, safe='')}.npz"
