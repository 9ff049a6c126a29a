"""From a prompt to a video, with the components of a bundle."""

from __future__ import annotations

import os
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from mutoscope.engines.engine import Array
from mutoscope.engines.onnxruntime_engine import DEFAULT_EXECUTION_PROVIDER, find_execution_provider
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.components import TEXT_ENCODER, VAE_DECODER, Components
from mutoscope.runtime.errors import EngineError, ParameterError
from mutoscope.runtime.noise import NoiseGenerator
from mutoscope.runtime.sampler import F32, OnStep, Predict, denoise
from mutoscope.runtime.settings import Settings, make_settings
from mutoscope.runtime.timings import Timings
from mutoscope.runtime.tokenizer import TextTokenizer
from mutoscope.runtime.video import Video


class VideoPipeline:
    """A bundle that is ready to generate.

    Components are loaded when they are first used and stay in memory until `unload` or `close`.
    A pipeline may be used from one thread at a time.

        with VideoPipeline.open("bundle") as pipeline:
            pipeline.generate("a red circle moves left", seed=7).save("out.mp4")
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        execution_provider: str = DEFAULT_EXECUTION_PROVIDER,
        num_threads: int | None = None,
        low_memory: bool = False,
    ) -> None:
        """Make a pipeline from an opened bundle; see `open` for the arguments."""
        find_execution_provider(execution_provider)
        if num_threads is not None and num_threads < 1:
            raise ParameterError(f"num_threads is {num_threads}; it must be at least 1: use 1")
        self.bundle = bundle
        self._components = Components(bundle, execution_provider, num_threads)
        self._low_memory = low_memory
        self._tokenizer: TextTokenizer | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        execution_provider: str = DEFAULT_EXECUTION_PROVIDER,
        num_threads: int | None = None,
        low_memory: bool = False,
    ) -> VideoPipeline:
        """Open the bundle in a folder.

        Args:
            path: The folder; None takes the bundle that ships with mutoscope.
            execution_provider: What onnxruntime runs the graphs on: "cpu", "cuda", "tensorrt" and
                others, as `mutoscope generate --help` lists them.
            num_threads: Threads for one operator on the CPU; None takes one for each core.
            low_memory: Free each component right after its part of a generation, and load it again
                for the next.

        Raises:
            BundleError: There is no bundle that this version can read.
            ExecutionProviderError: The execution provider is not available.
            ParameterError: num_threads is below 1.
        """
        return cls(
            Bundle.default() if path is None else Bundle.open(path),
            execution_provider=execution_provider,
            num_threads=num_threads,
            low_memory=low_memory,
        )

    def __enter__(self) -> VideoPipeline:
        """Return the pipeline itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the pipeline."""
        self.close()

    def close(self) -> None:
        """Free all memory; a later call to generate loads again."""
        for name in self._components.loaded:
            self._components.unload(name)

    def unload(self, component_name: str) -> None:
        """Free the memory of one component; it is loaded again when it is next used."""
        self.bundle.find_component(component_name)
        self._components.unload(component_name)

    def generate(
        self,
        prompt: str | None = None,
        *,
        negative_prompt: str | None = None,
        prompt_embeds: F32 | None = None,
        negative_prompt_embeds: F32 | None = None,
        latents: F32 | None = None,
        seed: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        frame_rate: float | None = None,
        scheduler: str | None = None,
        on_step: OnStep | None = None,
    ) -> Video:
        """Return a video for a prompt. Whatever is None is taken from the bundle's defaults.

        All arguments are checked before any work starts.

        Args:
            prompt: The text; an empty one is allowed.
            negative_prompt: What to guide away from. Only with a guidance_scale above 1.
            prompt_embeds: The output of the text encoder, float32 [1, S, D], in place of prompt.
            negative_prompt_embeds: The same, in place of negative_prompt.
            latents: Start noise, float32 [1, C, F, H, W], standard normal (the schedule table
                scales it), in place of the one that the seed gives. It sets the size of the clip.
            seed: From 0 to 2^64 - 1. None draws one; `video.seed` has it.
            num_inference_steps: A number of steps that the bundle has a table for.
            guidance_scale: Weight of the prompt, at least 1; 1 is off and takes half the time.
            num_frames: Frames; 1 makes an image.
            height: Pixels.
            width: Pixels.
            frame_rate: Frames per second of the video; the model does not see it.
            scheduler: A scheduler of the bundle, by class name or short name ("euler-ancestral").
            on_step: Called after each step with a `StepInfo`; returns False to cancel.

        Raises:
            BundleError: A file of the bundle is damaged.
            CancelledError: on_step asked to stop.
            EngineError: A graph cannot be loaded or run.
            ParameterError: An argument is not allowed; the message names a value that is.

        Source: equals diffusers.AnimateDiffPipeline with the generator
        torch.Generator("cpu").manual_seed(seed) (tests/runtime/test_diffusers_parity.py).
        """
        timings = Timings()
        with timings.measure("seconds_total"):
            if latents is not None:
                _check_array("latents", latents, ("1", "C", "F", "H", "W"))
            settings = make_settings(
                self.bundle,
                latents_shape=None if latents is None else latents.shape,
                seed=seed,
                scheduler=scheduler,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                height=height,
                width=width,
                num_frames=num_frames,
                frame_rate=frame_rate,
            )
            self._check_texts(prompt, prompt_embeds, "prompt", required=True)
            if settings.uses_guidance:
                self._check_texts(negative_prompt, negative_prompt_embeds, "negative_prompt")
                if negative_prompt is None and negative_prompt_embeds is None:
                    negative_prompt = self.bundle.manifest.defaults.negative_prompt
            elif negative_prompt or negative_prompt_embeds is not None:
                raise ParameterError(
                    f"negative_prompt has no effect at guidance_scale {settings.guidance_scale:g}: "
                    "leave it out, or use a guidance_scale above 1"
                )
            conditions = [(prompt, prompt_embeds, "prompt")]
            if settings.uses_guidance:
                conditions.append((negative_prompt, negative_prompt_embeds, "negative_prompt"))
            embeds = self._encode(conditions, timings)
            clean = self._denoise(settings, latents, embeds, timings, on_step)
            frames = self._decode(clean, timings)
        return Video(
            frames=frames,
            frame_rate=settings.frame_rate,
            prompt=prompt,
            negative_prompt=negative_prompt if settings.uses_guidance else None,
            settings=settings,
            timings=timings,
        )

    def _check_texts(
        self, text: str | None, embeds: F32 | None, name: str, *, required: bool = False
    ) -> None:
        """Raise `ParameterError` unless there is a text or its embeddings, as needed."""
        if text is not None and embeds is not None:
            raise ParameterError(f"{name} and {name}_embeds are both given: leave one out")
        if required and text is None and embeds is None:
            raise ParameterError(f"{name} is missing: give {name} or {name}_embeds")
        if embeds is not None:
            shape = self._prompt_embeds_shape()
            _check_array(f"{name}_embeds", embeds, ("1", "S", shape))
        elif text is not None and not isinstance(text, str):
            raise ParameterError(f"{name} is a {type(text).__name__}; it must be a string")

    def _prompt_embeds_shape(self) -> str:
        """The feature length that the denoiser takes, as text; "D" if it does not say."""
        denoiser = self.bundle.find_component(self._components.denoiser)
        for record in denoiser.inputs.values():
            if record.source == "prompt_embeds":
                return str(record.shape[-1])
        return "D"

    def _encode(
        self, conditions: list[tuple[str | None, F32 | None, str]], timings: Timings
    ) -> list[F32]:
        """The embeddings of each condition: given, or from the text encoder."""
        ids = [
            None if text is None else self._load_tokenizer(timings).encode(name, text)
            for text, _, name in conditions
        ]
        results: list[F32] = []
        for (_, embeds, _), token_ids in zip(conditions, ids, strict=True):
            if embeds is None:
                assert token_ids is not None
                sources = {"input_ids": token_ids}
                embeds = self._components.run(TEXT_ENCODER, timings, sources)
            results.append(embeds)
        if self._low_memory:
            self._components.unload(TEXT_ENCODER)
        return results

    def _denoise(
        self,
        settings: Settings,
        latents: F32 | None,
        embeds: list[F32],
        timings: Timings,
        on_step: OnStep | None,
    ) -> F32:
        """Clean latents, float32 [1, C, F, H, W]."""
        name = self._components.denoiser
        with timings.measure("seconds_load"):
            table = self.bundle.load_schedule(settings.scheduler, settings.num_inference_steps)
        self._components.load(name, timings)
        spent = timings.seconds_denoiser
        with timings.measure("seconds_sampler"):
            # One stream, as in diffusers: first the start noise, then that of the steps.
            generator = NoiseGenerator(settings.seed)
            start = generator.normal(settings.latents_shape) if latents is None else latents
            clean = denoise(
                start,
                table,
                self._make_predict(name, embeds, settings.guidance_scale, timings),
                noise=lambda step_index: generator.normal(start.shape),
                on_step=on_step,
            )
        timings.seconds_sampler -= timings.seconds_denoiser - spent
        if self._low_memory:
            self._components.unload(name)
        return clean

    def _make_predict(
        self, name: str, embeds: list[F32], guidance_scale: float, timings: Timings
    ) -> Predict:
        """The denoiser with its conditions: one pass, or two that are combined by guidance."""

        def run(sample: F32, timestep: float, prompt_embeds: F32) -> F32:
            sources: dict[str, Array] = {
                "latents": sample,
                "timestep": np.asarray(timestep, dtype=np.float64),
                "prompt_embeds": prompt_embeds,
            }
            return self._components.run(name, timings, sources).astype(np.float32, copy=False)

        def predict(sample: F32, timestep: float) -> F32:
            # Two passes, not one batch of two: on a CPU as fast, with half the memory.
            model_output = run(sample, timestep, embeds[0])
            if len(embeds) == 2:
                unconditional = run(sample, timestep, embeds[1])
                model_output -= unconditional
                model_output *= np.float32(guidance_scale)
                model_output += unconditional
            return model_output

        return predict

    def _decode(self, latents: F32, timings: Timings) -> NDArray[np.uint8]:
        """The frames, uint8 [F, H, W, 3]."""
        frames = self._components.run(VAE_DECODER, timings, {"latents": latents})
        if self._low_memory:
            self._components.unload(VAE_DECODER)
        if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[0] != 1:
            raise EngineError(
                f"vae_decoder returned {frames.dtype}{list(frames.shape)}; a bundle's decoder "
                "returns uint8 [1, F, H, W, 3]: export again"
            )
        return np.asarray(frames[0], dtype=np.uint8)

    def _load_tokenizer(self, timings: Timings) -> TextTokenizer:
        if self._tokenizer is None:
            with timings.measure("seconds_load"):
                record = self.bundle.manifest.tokenizer
                self._tokenizer = TextTokenizer(self.bundle.load_file(record.file), record)
        return self._tokenizer


def _check_array(name: str, array: F32, shape: tuple[str, ...]) -> None:
    """Raise `ParameterError` unless an array is float32, finite and of this shape."""
    rule = f"float32 [{', '.join(shape)}]"
    if not isinstance(array, np.ndarray):
        raise ParameterError(f"{name} is a {type(array).__name__}; it must be a numpy {rule}")
    fits = array.ndim == len(shape) and all(
        not wanted.isdigit() or int(wanted) == length
        for wanted, length in zip(shape, array.shape, strict=True)
    )
    if array.dtype != np.float32 or not fits:
        raise ParameterError(f"{name} is {array.dtype}{list(array.shape)}; it must be {rule}")
    if not np.isfinite(array).all():
        raise ParameterError(f"{name} has values that are not finite")
