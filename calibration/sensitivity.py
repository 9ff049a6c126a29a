"""What int8 in one group of layers does to the output of the component, and which to give up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mutoscope.calibration.graph_session import open_graph
from mutoscope.calibration.layer_timing import GroupTiming
from mutoscope.calibration.quantized_graphs import (
    LayerQuantization,
    make_int8_graph_for_processors,
)
from mutoscope.engines.engine import Tensors
from mutoscope.runtime.metrics import relative_error

# Groups are tried one at a time: (how many are done, of how many).
OnGroup = Callable[[int, int], None]
# A group that costs no time in float is still one after those that cost nothing at all.
_LEAST_SECONDS = 1e-7


def measure_sensitivity(
    source: Path,
    groups: Sequence[GroupTiming],
    layers: Mapping[str, LayerQuantization],
    feeds: Sequence[Tensors],
    on_group: OnGroup | None = None,
    num_threads: int | None = None,
) -> list[float]:
    """Return how far the output moves when one group alone is in int8, for each group.

    Args:
        source: The float32 graph that processors run.
        groups: What is tried.
        layers: How each of their layers becomes int8.
        feeds: Inputs of real passes.
        on_group: Called after each group.
        num_threads: Threads for one operator; None takes one for each core.

    Returns:
        Relative errors (L2) of the first output, the mean over the feeds.
    """
    references = _run(source, {}, feeds, num_threads)
    errors = []
    for index, group in enumerate(groups):
        chosen = {name: layers[name] for name in group.layers}
        outputs = _run(source, chosen, feeds, num_threads)
        pairs = zip(references, outputs, strict=True)
        errors.append(float(np.mean([relative_error(*pair) for pair in pairs])))
        if on_group is not None:
            on_group(index + 1, len(groups))
    return errors


def order_for_float(groups: Sequence[GroupTiming], errors: Sequence[float]) -> list[GroupTiming]:
    """Return groups in the order in which float buys most quality for its time.

    Errors of groups add up as squares, since they have nothing to do with each other.
    """
    seconds = [max(group.seconds_saved, _LEAST_SECONDS) for group in groups]
    worth = [error**2 / second for error, second in zip(errors, seconds, strict=True)]
    ranked = sorted(range(len(groups)), key=lambda index: -worth[index])
    return [groups[index] for index in ranked]


def find_fewest(limit: int, suffices: Callable[[int], bool]) -> int | None:
    """Return the smallest number up to `limit` that suffices, or None if not even that does.

    More is taken to be better, so that half of what is left is ruled out at each try.
    """
    if suffices(0):
        return 0
    if not suffices(limit):
        return None
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def _run(
    source: Path,
    layers: Mapping[str, LayerQuantization],
    feeds: Sequence[Tensors],
    num_threads: int | None,
) -> list[np.ndarray]:
    """The first output for each of the feeds, with these layers in int8."""
    model = make_int8_graph_for_processors(source, layers)
    session = open_graph(model, source.parent, num_threads)
    return [session.run(None, dict(feed))[0] for feed in feeds]
