"""What a clip tells of its rows while it is made: model outputs, and what other ways would change.

Both stand in the place of the denoiser, and know the row by being told of its end.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mutoscope.calibration.plan_search import F64
from mutoscope.engines.engine import Array, Engine, Tensors
from mutoscope.engines.forwarding_engine import ForwardingEngine
from mutoscope.runtime.manifest import ComponentRecord
from mutoscope.runtime.sampler import F32

# The model output of each pass of a row: of the prompt and, with guidance, of the negative prompt.
RowOutputs: TypeAlias = "list[Array]"


@dataclass(frozen=True)
class ShallowDenoiser:
    """The part of a denoiser that takes what the whole one made in another row.

    Attributes:
        engine: What runs it.
        record: It in the manifest.
        whole: The whole denoiser in the manifest.
    """

    engine: Engine
    record: ComponentRecord
    whole: ComponentRecord

    def run(self, feeds: Mapping[str, Array], made: Tensors) -> Array:
        """Return its model output.

        Args:
            feeds: What the whole denoiser gets in the same pass.
            made: What the whole denoiser returned in another row.
        """
        known = {tensor.source: feeds[name] for name, tensor in self.whole.inputs.items()}
        known.update(made)
        own = {name: known[tensor.source] for name, tensor in self.record.inputs.items()}
        output = next(iter(self.record.outputs))
        return self.engine.run(own, wanted=[output])[output]


@dataclass
class RowRecord:
    """What was seen of the rows of one clip.

    Attributes:
        outputs: Of each row.
        errors: float64 [A + 1, 2] of each row: how far its model output is from the unchanged one
            (L2) with features of another age, without guidance and with what guidance it has;
            infinite where that cannot be, or changes nothing.
        features: What the whole denoiser returned beside its model output, in the last pass.
        feeds: What it got in each pass of the last row, in the arrays of the caller, which every
            row shares.
        seconds_whole: Of each pass of the whole denoiser.
        seconds_shallow: Of each pass of the shallow one.
    """

    outputs: list[RowOutputs] = field(default_factory=list)
    errors: list[F64] = field(default_factory=list)
    features: Tensors = field(default_factory=dict)
    feeds: list[Tensors] = field(default_factory=list)
    seconds_whole: list[float] = field(default_factory=list)
    seconds_shallow: list[float] = field(default_factory=list)


class RecordingDenoiser(ForwardingEngine):
    """A denoiser that, beside each pass, tries the shallow one with the features of other rows."""

    def __init__(self, whole: Engine, shallow: ShallowDenoiser | None, max_age: int) -> None:
        """Stand for the whole denoiser; nothing is recorded yet.

        Args:
            whole: The denoiser.
            shallow: None tries no features of other rows.
            max_age: How many rows old they may be.
        """
        super().__init__(whole)
        self._shallow, self._max_age = shallow, max_age if shallow else 0
        self.record = RowRecord()
        # What was made in the last rows, the newest first, by the pass.
        self._made: list[list[Tensors]] = []
        self._begin_row()

    def _begin_row(self) -> None:
        # The model outputs of each pass, by the age of the features.
        self._passes: list[list[Array]] = []
        self._feeds: list[Tensors] = []
        self._made = [[], *self._made][: self._max_age + 1]

    def end_row(self, guidance: NDArray[np.float32]) -> None:
        """Say that the passes which follow are those of the next row.

        Args:
            guidance: The scale, of a shape that broadcasts to the latents'.
        """
        outputs = [passes[0] for passes in self._passes]
        right = _guide(outputs, guidance)
        errors = np.full((self._max_age + 1, 2), np.inf)
        for age, of_age in enumerate(zip(*self._passes, strict=True)):
            errors[age, 1] = _measure_distance(_guide(of_age, guidance), right)
            if len(of_age) == 2:
                errors[age, 0] = _measure_distance(of_age[0], right)
        self.record.outputs.append(outputs)
        self.record.errors.append(errors)
        self.record.feeds = self._feeds
        self._begin_row()

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> Tensors:
        """As the denoiser does."""
        started = time.perf_counter()
        returned = super().run(feeds, outputs)
        self.record.seconds_whole.append(time.perf_counter() - started)
        (_, output), *beside = returned.items()
        # Arrays that the caller gave are used again in the next pass.
        made = {other: array.copy() for other, array in beside}
        tried = [output.copy()]
        if self._shallow is not None:
            index = len(self._passes)
            for before in self._made[1:]:
                started = time.perf_counter()
                tried.append(self._shallow.run(feeds, before[index]).copy())
                self.record.seconds_shallow.append(time.perf_counter() - started)
            self._made[0].append(made)
            self.record.features = made
        self._passes.append(tried)
        self._feeds.append(dict(feeds))
        return {key: array for key, array in returned.items() if wanted is None or key in wanted}


class ReplayingDenoiser(ForwardingEngine):
    """A denoiser that returns what it did before, for the first rows of a clip."""

    def __init__(self, whole: Engine, record: RowRecord, num_rows: int) -> None:
        """Stand for the whole denoiser in one clip.

        Args:
            whole: The denoiser.
            record: Of the clip with the same sample.
            num_rows: How many rows are replayed. What they return beside the model output is that
                of another row: no row may take it.
        """
        super().__init__(whole)
        self._record, self._num_rows = record, num_rows
        self._row, self._pass = 0, 0

    def end_row(self) -> None:
        """Say that the passes which follow are those of the next row."""
        self._row, self._pass = self._row + 1, 0

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> Tensors:
        """As the denoiser does, or did."""
        if self._row >= self._num_rows:
            return super().run(feeds, outputs, wanted)
        given, name = outputs or {}, next(iter(self.outputs))
        returned = {name: self._record.outputs[self._row][self._pass], **self._record.features}
        self._pass += 1
        for key, array in given.items():
            np.copyto(array, returned[key])
        # A copy for each pass: the next run writes to what this one returned.
        return {
            key: given[key] if key in given else array.copy()
            for key, array in returned.items()
            if wanted is None or key in wanted
        }


def _guide(outputs: Sequence[Array], guidance: NDArray[np.float32]) -> F32:
    """The model output of one pass, or of two that guidance combines."""
    conditional = outputs[0].astype(np.float32)
    if len(outputs) == 1:
        return conditional
    unconditional = outputs[1].astype(np.float32)
    return unconditional + guidance * (conditional - unconditional)


def _measure_distance(output: Array, right: F32) -> float:
    return float(np.linalg.norm(output.astype(np.float64) - right))
