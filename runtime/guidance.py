"""The denoiser with its conditions: one pass, or two that guidance combines.

Two passes one after the other are as fast on a CPU as one batch of two, with half the memory; a
device that a single clip does not fill may be faster with the batch.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from mutoscope.engines.engine import Array
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.components import Components
from mutoscope.runtime.conditioning import Values
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.manifest import LATENTS, TIMESTEP, ComponentRecord
from mutoscope.runtime.sampler import F32
from mutoscope.runtime.timings import Timings

GuidancePasses: TypeAlias = Literal["separate", "batched"]
GUIDANCE_PASSES: tuple[GuidancePasses, ...] = get_args(GuidancePasses)
_WAY_OUT = "use guidance_passes='separate'"

Feeds: TypeAlias = dict[str, Array]


class GuidedDenoiser:
    """The denoiser of a bundle as `denoise` calls it.

    All arrays are made once, at the start: what the graph is fed, what it returns and the model
    output are the same arrays in every step.
    """

    def __init__(
        self,
        bundle: Bundle,
        components: Components,
        passes: list[Values],
        latents_shape: tuple[int, ...],
        guidance: NDArray[np.float32],
        timings: Timings,
        *,
        guidance_passes: GuidancePasses = "separate",
    ) -> None:
        """Make the arrays; nothing is loaded or run yet.

        Args:
            bundle: The bundle.
            components: Its components.
            passes: All that the denoiser may take, by source: of the prompt and, for guidance, of
                the negative prompt.
            latents_shape: [1, C, F, h, w].
            guidance: The guidance scale, float32, of a shape that broadcasts to the latents'.
            timings: Where the time is added.
            guidance_passes: "separate" runs the graph for each of the passes, "batched" once for
                both. One pass is one run either way.

        Raises:
            EngineError: An input comes from a source that is not in `passes`.
            ParameterError: "batched" cannot be with this graph or these conditions.
        """
        self._components, self._name, self._timings = components, components.denoiser, timings
        self._guidance = guidance
        record = bundle.find_component(self._name)
        self._latents_inputs = _find_inputs(record, LATENTS)
        self._timestep_inputs = _find_inputs(record, TIMESTEP)
        placeholders: Values = {
            LATENTS: np.zeros(latents_shape, dtype=np.float32),
            TIMESTEP: np.zeros((), dtype=np.float64),
        }
        feeds = [components.make_feeds(self._name, {**values, **placeholders}) for values in passes]
        if guidance_passes == "batched" and len(feeds) == 2:
            feeds = [make_batch(record, *feeds)]
        self._output_name, output = next(iter(record.outputs.items()))
        batch = len(passes) // len(feeds)
        self._runs = [
            (feed, np.empty((batch, *latents_shape[1:]), dtype=output.dtype)) for feed in feeds
        ]
        self._model_output = np.empty(latents_shape, dtype=np.float32)

    def __call__(self, sample: F32, timestep: float) -> F32:
        """Return the model output, float32 [1, C, F, h, w], which the next call overwrites.

        Args:
            sample: The latents as the model sees them, float32 [1, C, F, h, w].
            timestep: As the schedule table has it.

        Raises:
            EngineError: The graph cannot be loaded or run.
        """
        outputs: list[Array] = []
        for feeds, output in self._runs:
            for name in self._latents_inputs:
                feeds[name][...] = sample
            for name in self._timestep_inputs:
                feeds[name][...] = timestep
            returned = self._components.run_feeds(
                self._name, self._timings, feeds, {self._output_name: output}
            )
            outputs.extend(np.split(returned[self._output_name], len(output)))
        return self._combine(*outputs)

    def _combine(self, conditional: Array, unconditional: Array | None = None) -> F32:
        """The model output of one pass or two, in place."""
        model_output = self._model_output
        if unconditional is None:
            np.copyto(model_output, conditional)
            return model_output
        # Whole arrays: blocks, as in the sampler, gained nothing up to [1, 4, 16, 64, 64].
        np.subtract(conditional, unconditional, out=model_output, dtype=np.float32)
        model_output *= self._guidance
        model_output += unconditional
        return model_output


def check_guidance_passes(record: ComponentRecord, guidance_passes: str) -> None:
    """Raise `ParameterError` unless a denoiser can run its passes in this way."""
    if guidance_passes not in GUIDANCE_PASSES:
        raise ParameterError(
            f"guidance_passes is {guidance_passes!r}; it must be one of "
            f"{', '.join(GUIDANCE_PASSES)}: use separate"
        )
    if guidance_passes == "batched":
        _find_batch_axis(record)


def _find_inputs(record: ComponentRecord, source: str) -> list[str]:
    return [name for name, tensor in record.inputs.items() if tensor.source == source]


def _find_batch_axis(record: ComponentRecord) -> str:
    """The name of the axis that clips are stacked along; raises `ParameterError`."""
    name = _find_inputs(record, LATENTS)[0]
    axis = record.inputs[name].shape[0]
    if isinstance(axis, int):
        raise ParameterError(
            f"guidance_passes is 'batched', but this bundle's denoiser takes {name} with a first "
            f"axis of {axis}, not of any length: {_WAY_OUT}"
        )
    return axis


def make_batch(record: ComponentRecord, first: Feeds, second: Feeds) -> Feeds:
    """Return the feeds of two passes as those of one.

    Args:
        record: The denoiser's.
        first: An array for each of its inputs.
        second: The same for the other pass; what has no batch axis must be equal in both.

    Raises:
        ParameterError: The denoiser or the arrays do not allow it.
    """
    batch_axis = _find_batch_axis(record)
    feeds: Feeds = {}
    for name, tensor in record.inputs.items():
        arrays = (first[name], second[name])
        shapes = " and ".join(str(list(array.shape)) for array in arrays)
        if batch_axis not in tensor.shape[:1]:
            if not np.array_equal(*arrays):
                raise ParameterError(
                    f"guidance_passes is 'batched', but {name} has no batch axis and differs "
                    f"between the passes: {_WAY_OUT}"
                )
            feeds[name] = first[name]
        elif arrays[0].shape != arrays[1].shape:
            raise ParameterError(
                f"guidance_passes is 'batched', but {name} is {shapes} in the two passes; one "
                f"batch needs equal shapes: {_WAY_OUT}"
            )
        else:
            feeds[name] = np.concatenate(arrays)
    return feeds
