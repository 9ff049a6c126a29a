"""The denoisers of a schedule table with their conditions: one pass, or two that guidance combines.

Two passes one after the other are as fast on a CPU as one batch of two, with half the memory; a
device that a single clip does not fill may be faster with the batch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from mutoscope.engines.engine import Array
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.components import Components
from mutoscope.runtime.conditioning import Values
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.manifest import LATENTS, TIMESTEP, ComponentRecord
from mutoscope.runtime.row_plan import DenoiserUse, RowPlan
from mutoscope.runtime.sampler import F32
from mutoscope.runtime.schedule import ScheduleRow
from mutoscope.runtime.timings import Timings

GuidancePasses: TypeAlias = Literal["separate", "batched"]
GUIDANCE_PASSES: tuple[GuidancePasses, ...] = get_args(GuidancePasses)
_WAY_OUT = "use guidance_passes='separate'"
_BATCHED = "guidance_passes is 'batched' (asked for, or this bundle's default)"

Feeds: TypeAlias = dict[str, Array]
# The passes that one run of a graph is for, by index.
_Group: TypeAlias = tuple[int, ...]
_PROMPT_ALONE: Final[_Group] = (0,)
WHOLE_CLIP: Final = slice(None)


@dataclass(frozen=True)
class _Run:
    """A run of a denoiser, whose arrays are the same in every row.

    Attributes:
        feeds: All that the graph takes, but for what is carried.
        latents_inputs: Which of them are the sample.
        timestep_inputs: Which of them are the timestep.
        output_name: The model output.
        output: Where that goes.
    """

    feeds: Feeds
    latents_inputs: list[str]
    timestep_inputs: list[str]
    output_name: str
    output: Array


@dataclass
class _Carried:
    """What denoisers returned beside the model output, for some frames.

    Attributes:
        values: By its name and the first of the passes that it is of: it, and how many passes that
            are, stacked along the first axis.
        arrays: What each run of a denoiser returned last, by the name, and where it puts the next.
    """

    values: dict[tuple[str, int], tuple[Array, int]] = field(default_factory=dict)
    arrays: dict[tuple[str, _Group], Feeds] = field(default_factory=dict)

    def take(self, source: str, group: _Group) -> Array:
        """What a run takes; of both passes, the prompt's is the first half."""
        array, num_passes = self.values[source, group[0]]
        return array[: len(array) * len(group) // num_passes]


class GuidedDenoiser:
    """The denoisers of a bundle as `denoise` calls them.

    All arrays are made once, at the start or in the first row that has them: what a graph is fed,
    what it returns and the model output are the same arrays in every row.
    """

    def __init__(
        self,
        bundle: Bundle,
        components: Components,
        passes: list[Values],
        latents_shape: tuple[int, ...],
        guidance: NDArray[np.float32],
        timings: Timings,
        plan: RowPlan,
        *,
        guidance_passes: GuidancePasses = "separate",
    ) -> None:
        """Make the arrays; nothing is loaded or run yet.

        Args:
            bundle: The bundle.
            components: Its components.
            passes: All that denoisers may take, by source: of the prompt and, for guidance, of the
                negative prompt.
            latents_shape: [1, C, F, h, w] of a sample.
            guidance: The guidance scale, float32, of a shape that broadcasts to the latents'; of
                the whole clip, where a sample is a part of it.
            timings: Where the time is added.
            plan: Which denoiser runs each row.
            guidance_passes: "separate" runs a graph for each of the passes, "batched" once for
                both. One pass is one run either way.

        Raises:
            EngineError: An input comes from a source that is not in `passes`.
            ParameterError: "batched" cannot be with these graphs or these conditions.
        """
        self._components, self._timings, self._plan = components, timings, plan
        self._guidance = guidance
        indices = range(len(passes))
        is_batched = guidance_passes == "batched"
        self._groups: list[_Group] = [tuple(indices)] if is_batched else [(i,) for i in indices]
        # Runs that are fed with it in float32 share its memory.
        sample = np.zeros(latents_shape, dtype=np.float32)
        self._runs = {
            (name, group): self._make_run(bundle, name, [passes[i] for i in group], sample)
            for name, use in plan.uses.items()
            for group in self._list_groups(use)
        }
        self._model_output = np.empty(latents_shape, dtype=np.float32)
        self._carried: dict[int | None, _Carried] = {}

    def _list_groups(self, use: DenoiserUse) -> list[_Group]:
        """The groups of passes that the rows of a denoiser run, each once."""
        groups = self._groups if use.guided else []
        return list(dict.fromkeys([*groups, *([_PROMPT_ALONE] if use.unguided else [])]))

    def _make_run(self, bundle: Bundle, name: str, passes: list[Values], sample: F32) -> _Run:
        record, takes = bundle.find_component(name), self._plan.uses[name].takes
        placeholders: Values = {
            LATENTS: sample,
            TIMESTEP: np.zeros((), dtype=np.float64),
            **{source: np.empty(0) for source in takes.values()},
        }
        feeds, *others = (
            self._components.make_feeds(name, {**values, **placeholders}) for values in passes
        )
        for other in others:
            feeds = make_batch(record, feeds, other)
        output_name, output = next(iter(record.outputs.items()))
        return _Run(
            {input_name: array for input_name, array in feeds.items() if input_name not in takes},
            _find_inputs(record, LATENTS),
            _find_inputs(record, TIMESTEP),
            output_name,
            np.empty((len(passes), *sample.shape[1:]), dtype=output.dtype),
        )

    def __call__(self, sample: F32, row: ScheduleRow, frames: slice = WHOLE_CLIP) -> F32:
        """Return the model output, float32 [1, C, F, h, w], which the next call overwrites.

        Args:
            sample: The latents as the model sees them, float32 [1, C, F, h, w].
            row: The row of the schedule table.
            frames: Those of the clip that the sample is. What is carried goes from one row to
                another for the same frames.

        Raises:
            EngineError: A graph cannot be loaded or run.
        """
        carried = self._carried.setdefault(frames.start, _Carried())
        name = self._plan.find_denoiser(row)
        outputs: list[Array] = []
        for group in self._groups if row.guidance else [_PROMPT_ALONE]:
            output = self._run(name, group, sample, row.timestep, carried)
            outputs.extend(np.split(output, len(group)))
        return self._combine(frames, *outputs)

    def _run(
        self, name: str, group: _Group, sample: F32, timestep: float, carried: _Carried
    ) -> Array:
        """Run a denoiser for some passes, and keep what later rows take; returns the output."""
        run, use = self._runs[name, group], self._plan.uses[name]
        for input_name in run.latents_inputs:
            run.feeds[input_name][...] = sample
        for input_name in run.timestep_inputs:
            run.feeds[input_name][...] = timestep
        taken = {key: carried.take(source, group) for key, source in use.takes.items()}
        # What it takes cannot be what it writes to.
        kept = {} if taken else carried.arrays.get((name, group), {})
        returned = self._components.run_feeds(
            name,
            self._timings,
            {**run.feeds, **taken},
            {run.output_name: run.output, **kept},
            [run.output_name, *use.returns],
        )
        arrays = {output_name: returned[output_name] for output_name in use.returns}
        carried.arrays[name, group] = arrays
        for output_name, array in arrays.items():
            carried.values[output_name, group[0]] = array, len(group)
        return returned[run.output_name]

    def _combine(
        self, frames: slice, conditional: Array, unconditional: Array | None = None
    ) -> F32:
        """The model output of one pass or two, in place."""
        model_output = self._model_output
        if unconditional is None:
            np.copyto(model_output, conditional)
            return model_output
        # Whole arrays: blocks, as in the sampler, gained nothing up to [1, 4, 16, 64, 64].
        np.subtract(conditional, unconditional, out=model_output, dtype=np.float32)
        model_output *= self._guidance[:, :, frames]
        model_output += unconditional
        return model_output


def check_guidance_passes(record: ComponentRecord, guidance_passes: str) -> GuidancePasses:
    """Return how a denoiser runs its passes; raises `ParameterError` unless it can."""
    for known in GUIDANCE_PASSES:
        if known == guidance_passes:
            if known == "batched":
                _find_batch_axis(record)
            return known
    raise ParameterError(
        f"guidance_passes is {guidance_passes!r}; it must be one of "
        f"{', '.join(GUIDANCE_PASSES)}: use separate"
    )


def _find_inputs(record: ComponentRecord, source: str) -> list[str]:
    return [name for name, tensor in record.inputs.items() if tensor.source == source]


def _find_batch_axis(record: ComponentRecord) -> str:
    """The name of the axis that clips are stacked along; raises `ParameterError`."""
    name = _find_inputs(record, LATENTS)[0]
    axis = record.inputs[name].shape[0]
    if isinstance(axis, int):
        raise ParameterError(
            f"{_BATCHED}, but this bundle's denoiser takes {name} with a first axis of {axis}, "
            f"not of any length: {_WAY_OUT}"
        )
    return axis


def make_batch(
    record: ComponentRecord, first: Feeds, second: Feeds, carried: Collection[str] = ()
) -> Feeds:
    """Return the feeds of two passes as those of one.

    Args:
        record: The denoiser's.
        first: An array for each of its inputs.
        second: The same for the other pass; what has no batch axis must be equal in both.
        carried: Inputs that are of each pass, whatever their first axis is called.

    Raises:
        ParameterError: The denoiser or the arrays do not allow it.
    """
    batch_axis = _find_batch_axis(record)
    feeds: Feeds = {}
    for name, tensor in record.inputs.items():
        arrays = (first[name], second[name])
        shapes = " and ".join(str(list(array.shape)) for array in arrays)
        if name not in carried and batch_axis not in tensor.shape[:1]:
            if not np.array_equal(*arrays):
                raise ParameterError(
                    f"{_BATCHED}, but {name} has no batch axis and differs between the passes: "
                    f"{_WAY_OUT}"
                )
            feeds[name] = first[name]
        elif arrays[0].shape != arrays[1].shape:
            raise ParameterError(
                f"{_BATCHED}, but {name} is {shapes} in the two passes; one batch needs equal "
                f"shapes: {_WAY_OUT}"
            )
        else:
            feeds[name] = np.concatenate(arrays)
    return feeds
