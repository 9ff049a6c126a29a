"""Measure the components of a bundle, one after the other."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from mutoscope.engines.engine import Tensors
from mutoscope.runtime.benchmarks.contestants import Contestant, choose_variants
from mutoscope.runtime.benchmarks.machine import describe_machine
from mutoscope.runtime.benchmarks.measuring import ComponentBenchmark, Measured, Report
from mutoscope.runtime.benchmarks.records import Results
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.component_inputs import make_inputs
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.guidance import make_batch
from mutoscope.runtime.manifest import ComponentRecord, is_denoiser
from mutoscope.runtime.row_plan import find_carried
from mutoscope.runtime.settings import Settings


def measure_bundle(
    bundle: Bundle,
    settings: Settings,
    contestants: list[Contestant],
    *,
    components: Sequence[str] = (),
    num_threads: int | None = None,
    compares_guidance: bool = True,
    warm_ups: int,
    count: int,
    report: Report,
) -> Results:
    """Return what the contestants take for the components of a bundle.

    Args:
        bundle: The bundle.
        settings: The sizes of the clip, and the seed of the inputs.
        contestants: In the order of the table.
        components: The names of those to measure; none for all.
        num_threads: What the contestants were given, for the record.
        compares_guidance: Time both ways of guidance too, where the bundle knows it.
        warm_ups: Runs of each before those that count, 1 or more.
        count: Runs of each that count.
        report: Told what goes on.

    Raises:
        BundleError: A file of the bundle is damaged.
        EngineError: The inputs cannot be made.
    """
    report("making the inputs")
    feeds = make_inputs(bundle, settings, num_threads)

    def measure() -> Iterator[Measured]:
        for name in bundle.manifest.components:
            if components and name not in components:
                continue
            compares = compares_guidance and is_denoiser(name) and bundle.manifest.guidance
            record = bundle.find_component(name)
            batch = _make_batch(bundle, record, feeds[name]) if compares else None
            with tempfile.TemporaryDirectory(prefix="mutoscope-") as folder:
                rivals = choose_variants(contestants, record)
                benchmark = ComponentBenchmark(
                    name, rivals, feeds[name], batch, Path(folder), report
                )
                yield benchmark.run(warm_ups=warm_ups, count=count)

    rows, guidance, failures = zip(*measure(), strict=True)
    return Results(
        machine=describe_machine(),
        bundle=bundle.manifest.name,
        family=bundle.manifest.family,
        num_frames=settings.num_frames,
        height=settings.height,
        width=settings.width,
        warm_ups=warm_ups,
        rows=tuple(itertools.chain(*rows)),
        guidance=tuple(itertools.chain(*guidance)),
        failures=tuple(itertools.chain(*failures)),
        num_threads=num_threads,
    )


def _make_batch(bundle: Bundle, record: ComponentRecord, feeds: Tensors) -> Tensors | None:
    """A denoiser's inputs twice, as guidance batches them; None if it takes one clip at a time."""
    sources = find_carried(bundle.manifest)
    carried = [name for name, tensor in record.inputs.items() if tensor.source in sources]
    try:
        return make_batch(record, feeds, feeds, carried)
    except ParameterError:
        return None
