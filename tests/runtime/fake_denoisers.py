"""The denoisers of `reuse_bundle` in numpy: as engines that record their runs, and as a loop."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mutoscope.engines.engine import Array, TensorSpec
from mutoscope.runtime.manifest import ComponentRecord
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.sampler import F32
from mutoscope.runtime.schedule import MODEL_OUTPUT, ScheduleTable
from tests.runtime.hand_made_bundle import SAMPLE_WEIGHT, TEXT_WEIGHT, TIMESTEP_WEIGHT
from tests.runtime.reuse_bundle import FEATURE, FEATURE_SCALE, FEW_STEP_WEIGHT, REUSE_WEIGHT

OUTPUT = "out_sample"


@dataclass(frozen=True)
class Call:
    """One run of a denoiser."""

    name: str
    batch: int
    num_frames: int
    timestep: int
    wanted: list[str] = field(default_factory=list)


class FakeDenoiser:
    """An engine that computes as the graph does, each clip of a batch by itself."""

    device = "cpu"
    properties: Mapping[str, str] = {"engine": "fake"}
    memory_bytes: Mapping[str, int] = {}

    def __init__(self, name: str, record: ComponentRecord, calls: list[Call]) -> None:
        def make_specs(tensors: Any) -> dict[str, TensorSpec]:
            return {key: TensorSpec(key, t.dtype, t.shape) for key, t in tensors.items()}

        self.inputs, self.outputs = make_specs(record.inputs), make_specs(record.outputs)
        self.name, self.calls, self.is_closed = name, calls, False
        self.features: list[Array] = []

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Nothing."""

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> dict[str, Array]:
        sample, timestep = feeds["sample"], int(feeds["timestep"])
        assert wanted is not None
        self.calls.append(Call(self.name, len(sample), sample.shape[2], timestep, list(wanted)))
        output = predict(
            self.name,
            sample,
            timestep,
            feeds["encoder_hidden_states"].mean(axis=(1, 2)).reshape(-1, 1, 1, 1, 1),
            _unstack(feeds[FEATURE], sample.shape) if FEATURE in feeds else None,
        )
        results = {OUTPUT: output, FEATURE: _stack(FEATURE_SCALE * output)}
        if FEATURE in wanted:
            self.features.append(results[FEATURE].copy())
        given = dict(outputs or {})
        for name, array in given.items():
            array[...] = results[name]
        return {name: given.get(name, results[name]) for name in wanted}

    def close(self) -> None:
        self.is_closed = True


def predict(
    name: str, sample: Array, timestep: float, text: Array | float, deep: Array | None
) -> F32:
    """The model output of a denoiser, float32 [B, C, F, h, w]."""
    weight = FEW_STEP_WEIGHT if name == "unet_few_step" else SAMPLE_WEIGHT
    output = weight * sample + TEXT_WEIGHT * text + TIMESTEP_WEIGHT * timestep
    if deep is not None:
        output = output + REUSE_WEIGHT * deep
    return np.asarray(output, dtype=np.float32)


def use_fakes(pipeline: VideoPipeline) -> tuple[list[Call], dict[str, FakeDenoiser]]:
    """Let a pipeline run its denoisers on fakes; returns what they will have run, and them."""
    calls: list[Call] = []
    fakes = {
        name: FakeDenoiser(name, pipeline.bundle.find_component(name), calls)
        for name in ("unet", "unet_reuse", "unet_few_step")
    }
    for name, fake in fakes.items():
        pipeline.replace_engine(name, fake)
    return calls, fakes


def sample_in_numpy(
    table: ScheduleTable,
    start: F32,
    texts: list[float],
    guidance: F32,
    windows: list[slice] | None = None,
) -> F32:
    """The latents of a table whose rows have one update, after a loop without any cleverness.

    Args:
        table: The table.
        start: Start noise, float32 [1, C, F, h, w].
        texts: The mean of what the denoiser takes of the prompt and, for guidance, of the other.
        guidance: The scale of each frame, float32 [1, 1, F, 1, 1].
        windows: The frames of each window; None for one over all, without weights.
    """
    latents = table.init_noise_sigma * start.astype(np.float64)
    carried: dict[tuple[int | None, int], Any] = {}
    for row in table.rows:
        sample, name = row.input_scale * latents, row.denoiser or table.denoiser or "unet"
        total, weight_sum = np.zeros_like(latents), np.zeros_like(latents)
        for frames in windows or [slice(None)]:
            outputs = []
            for index, text in enumerate(texts if row.guidance else texts[:1]):
                place = frames.start, index
                deep = carried[place] if name == "unet_reuse" else None
                outputs.append(predict(name, sample[:, :, frames], row.timestep, text, deep))
                if name == "unet":
                    carried[place] = FEATURE_SCALE * outputs[-1]
            output = outputs[-1] + guidance[:, :, frames] * (outputs[0] - outputs[-1])
            weights = np.ones((1, 1, output.shape[2], 1, 1))
            if windows:
                for frame in range(output.shape[2]):
                    weights[:, :, frame] = min(frame + 1, output.shape[2] - frame)
            total[:, :, frames] += weights * output
            weight_sum[:, :, frames] += weights
        model_output = total / weight_sum
        (update,) = row.updates
        sources: dict[Any, Any] = {0: latents, MODEL_OUTPUT: model_output}
        latents = sum(coefficient * sources[source] for source, coefficient in update.terms)
    return np.asarray(latents, dtype=np.float32)


def _stack(clips: Array) -> Array:
    """[B, C, F, h, w] as [B * F, C, h, w]."""
    return np.ascontiguousarray(clips.transpose(0, 2, 1, 3, 4)).reshape(-1, *_rest(clips.shape))


def _unstack(feature: Array, shape: tuple[int, ...]) -> Array:
    batch, _, num_frames, _, _ = shape
    assert len(feature) == batch * num_frames
    return feature.reshape(batch, num_frames, *feature.shape[1:]).transpose(0, 2, 1, 3, 4)


def _rest(shape: tuple[int, ...]) -> tuple[int, ...]:
    _, channels, _, height, width = shape
    return channels, height, width
