"""From a prompt or an image to a video, with the components of a bundle."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mutoscope.engines.engine import Engine
from mutoscope.engines.opening import check_available
from mutoscope.engines.options import (
    DEFAULT_ENGINE,
    DEFAULT_EXECUTION_PROVIDER,
    EngineOptions,
    Memory,
)
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.components import Components
from mutoscope.runtime.conditioning import (
    ConditionEncoder,
    PromptInput,
    check_array,
    make_values,
)
from mutoscope.runtime.decoder import decode_in_chunks, decode_latents, make_decode_plan
from mutoscope.runtime.decoding import DecodePlan, OnRun
from mutoscope.runtime.denoising import ClipDenoiser
from mutoscope.runtime.errors import CancelledError, EngineError, ParameterError
from mutoscope.runtime.guidance import GuidancePasses
from mutoscope.runtime.manifest import PREVIEW_DECODER, VAE_DECODER
from mutoscope.runtime.noise import NoiseGenerator
from mutoscope.runtime.preview import OnPreview, check_preview, make_preview_step
from mutoscope.runtime.sampler import F32, OnStep
from mutoscope.runtime.settings import Settings, find_guidance_refusal, make_settings
from mutoscope.runtime.timings import Timings
from mutoscope.runtime.video import Video

if TYPE_CHECKING:
    from mutoscope.runtime.images import ImageInput

OnFrames: TypeAlias = Callable[[Video], object]


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
        engine: str = DEFAULT_ENGINE,
        execution_provider: str = DEFAULT_EXECUTION_PROVIDER,
        num_threads: int | None = None,
        memory: Memory = "normal",
        memory_limit_bytes: int | None = None,
        variant: str | None = None,
        **engine_options: Any,
    ) -> None:
        """Make a pipeline from an opened bundle; see `open` for the arguments."""
        options = EngineOptions(engine, execution_provider, num_threads, memory, **engine_options)
        check_available(options)
        self.bundle = bundle
        self._components = Components(bundle, options, variant)
        self._conditions = ConditionEncoder(bundle, self._components)
        self._memory_limit_bytes = memory_limit_bytes

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        engine: str = DEFAULT_ENGINE,
        execution_provider: str = DEFAULT_EXECUTION_PROVIDER,
        num_threads: int | None = None,
        memory: Memory = "normal",
        memory_limit_bytes: int | None = None,
        variant: str | None = None,
        **engine_options: Any,
    ) -> VideoPipeline:
        """Open the bundle in a folder.

        Args:
            path: The folder; None takes the bundle that ships with mutoscope.
            engine: What runs the graphs: "onnxruntime"; "openvino:f32" or "openvino:bf16", which
                need `pip install mutoscope[openvino]`; "tensorrt" or "tensorrt-rtx", for what
                `mutoscope build` made; or "auto", for the fastest of that, else onnxruntime.
            execution_provider: What onnxruntime runs the graphs on: "cpu", "cuda", "tensorrt" and
                others, as `mutoscope generate --help` lists them.
            num_threads: Threads for one operator on the CPU; None takes one for each core.
            memory: "low" keeps one component in memory at a time, and with onnxruntime its weights
                in the file where the operating system can drop them; each generation loads again.
            memory_limit_bytes: What the process may use while it decodes; None for no limit. A
                frame that does not fit is decoded in tiles: the same within 1 of 255, slower. Tiles
                are float32, whichever variant is asked for.
            variant: What the graphs compute in, as the manifest lists it: "float32", "float16" or
                "int8". Components that do not have it run their default variant; None takes that
                of each, and with engines that were built the fastest of them.
            engine_options: The other fields of `EngineOptions`, such as cuda_graphs.

        Raises:
            BundleError: There is no bundle that this version can read.
            EngineError: The engine or the execution provider is not available, num_threads is
                below 1, or memory is unknown.
            ParameterError: No component has this variant.
        """
        return cls(
            Bundle.default() if path is None else Bundle.open(path),
            engine=engine,
            execution_provider=execution_provider,
            num_threads=num_threads,
            memory=memory,
            memory_limit_bytes=memory_limit_bytes,
            variant=variant,
            **engine_options,
        )

    def __enter__(self) -> VideoPipeline:
        """Return the pipeline itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the pipeline."""
        self.close()

    def close(self) -> None:
        """Free all memory; a later call to generate loads again."""
        for name in self._components.loaded:
            self._components.unload(name)

    @property
    def engine_properties(self) -> dict[str, str]:
        """What runs the graphs: "engine", "version" and more; empty before the first is loaded."""
        return self._components.engine_properties

    @property
    def variants(self) -> dict[str, str]:
        """The variant that each component runs, by its name in the bundle.

        Left out are components that nothing was built of, for an engine that runs nothing else.
        """
        return self._ask_all(self._components.find_variant)

    def describe_engines(self) -> dict[str, str]:
        """Return what runs each component in words, by its name in the bundle.

        What ran, or what would run if nothing did yet; left out are the components that `variants`
        leaves out.
        """
        return self._ask_all(self._components.describe)

    def _ask_all(self, ask: Callable[[str], str]) -> dict[str, str]:
        found = {}
        for name in self.bundle.manifest.components:
            with suppress(EngineError):
                found[name] = ask(name)
        return found

    def unload(self, component_name: str) -> None:
        """Free the memory of one component; it is loaded again when it is next used."""
        self.bundle.find_component(component_name)
        self._components.unload(component_name)

    def replace_engine(self, component_name: str, engine: Engine) -> None:
        """Let a component run on another engine, such as a graph that is not in the bundle.

        The pipeline closes it when the component is unloaded, or replaced again. With low memory
        that is after each generation.

        Raises:
            EngineError: It does not take and return what the manifest says of the component.
            ParameterError: The bundle has no such component.
        """
        self._components.replace(component_name, engine)

    def generate(
        self,
        prompt: str | None = None,
        *,
        image: ImageInput | None = None,
        negative_prompt: str | None = None,
        prompt_embeds: F32 | Mapping[str, F32] | None = None,
        negative_prompt_embeds: F32 | Mapping[str, F32] | None = None,
        latents: F32 | None = None,
        seed: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        min_guidance_scale: float | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        frame_rate: float | None = None,
        conditions: Mapping[str, float] | None = None,
        scheduler: str | None = None,
        guidance_passes: GuidancePasses | None = None,
        context_length: int | None = None,
        context_stride: int | None = None,
        on_step: OnStep | None = None,
        on_preview: OnPreview | None = None,
        on_decode: OnRun | None = None,
        on_frames: OnFrames | None = None,
    ) -> Video:
        """Return a video of a prompt, an image or both, as the bundle takes them.

        Whatever is None is taken from the bundle's defaults. All arguments are checked before any
        work starts.

        Args:
            prompt: The text; an empty one is allowed.
            image: The picture that an image-to-video bundle starts from: a path, a PIL image, or
                uint8 [H, W, 3] RGB.
            negative_prompt: What to guide away from. Only with a guidance_scale above 1, and a
                scheduler that takes guidance: "few-step" does not, "ddim" does.
            prompt_embeds: What the text encoder would make of the prompt, in place of it: float32
                [1, S, D], or a mapping of its outputs by name if it has several.
            negative_prompt_embeds: The same, in place of negative_prompt.
            latents: Start noise, float32 [1, C, F, H, W], standard normal (the schedule table
                scales it), in place of the one that the seed gives. It sets the size of the clip.
            seed: From 0 to 2^64 - 1. None draws one; `video.seed` has it.
            num_inference_steps: A number of steps that the bundle has a table for; without it, the
                default one, or where the scheduler has no table of that for the denoiser that runs
                by default, the most up to 25.
            guidance_scale: Weight of the prompt, at least 1; 1 is off and takes half the time.
                Only with a scheduler that takes guidance.
            min_guidance_scale: Guidance of the first frame, at least 1; from there it rises evenly
                to guidance_scale at the last.
            num_frames: Frames; 1 makes an image. Above what the bundle's denoiser takes at once,
                it works in context windows.
            height: Pixels.
            width: Pixels.
            frame_rate: Frames per second of the video; some denoisers are told.
            conditions: Numbers that the bundle's denoiser takes, by name, such as
                {"motion_bucket_id": 127}.
            scheduler: A scheduler of the bundle, by class name or short name ("euler-ancestral");
                without it, the default one, or the first that has a table of num_inference_steps.
            guidance_passes: How the denoiser runs where guidance is on: "separate" for the prompt
                and the negative prompt one after the other, "batched" for both at once; the same
                within rounding, with twice the memory, and faster only on some devices.
            context_length: Frames of latents that the denoiser sees at once, in windows over the
                clip; without it, all, or the most that the bundle allows.
            context_stride: From the start of a window to that of the next; without it, half a
                window.
            on_step: Called after each step with a `StepInfo`; returns False to cancel.
            on_preview: Called after each step with a `PreviewInfo`, the frames as the model takes
                them to be; for a bundle with a preview decoder.
            on_decode: Called after each run of the decoder with a `DecodeProgress`; returns False
                to cancel.
            on_frames: Called with a part of the video as soon as its frames are decoded, all else
                being that of the whole; returns False to cancel. The frames are not kept for the
                video that is returned, so that memory does not grow with the clip.

        Raises:
            BundleError: A file of the bundle is damaged.
            CancelledError: on_step, on_decode or on_frames asked to stop.
            EngineError: A graph cannot be loaded or run.
            ParameterError: An argument is not allowed; the message names a value that is.

        Source: equals the checkpoint's pipeline in diffusers with the generator
        torch.Generator("cpu").manual_seed(seed) (tests/runtime/test_diffusers_parity.py).
        """
        timings = Timings()
        with timings.measure("seconds_total"):
            if latents is not None:
                check_array("latents", latents, ("1", "C", "F", "H", "W"))
            settings = make_settings(
                self.bundle,
                latents_shape=None if latents is None else latents.shape,
                seed=seed,
                scheduler=scheduler,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                min_guidance_scale=min_guidance_scale,
                height=height,
                width=width,
                num_frames=num_frames,
                frame_rate=frame_rate,
                conditions=conditions,
                context_length=context_length,
                context_stride=context_stride,
            )
            prompts = self._make_prompts(
                settings, prompt, prompt_embeds, negative_prompt, negative_prompt_embeds
            )
            with timings.measure("seconds_load"):
                denoiser = ClipDenoiser(self.bundle, self._components, settings, guidance_passes)
            values = make_values(self.bundle.manifest, settings, image)
            plan = make_decode_plan(self.bundle, settings.latents_shape, self._memory_limit_bytes)
            denoiser.check_engines()
            self._check_decoder(settings, plan)
            if on_preview is not None:
                check_preview(self.bundle.manifest.components, denoiser.table)
                on_step = self._make_preview_step(settings, timings, on_preview, on_step)
            # One stream, as in diffusers: the noise of the encoders, of the start, of the steps.
            generator = NoiseGenerator(settings.seed)
            passes = self._conditions.encode(prompts, values, generator, timings)
            clean = denoiser.denoise(passes, latents, generator, timings, on_step)
            make_video = functools.partial(
                self._make_video, prompt, prompts, settings, timings, clean
            )
            if on_frames is None:
                frames = decode_latents(self._components, clean, plan, timings, on_run=on_decode)
            else:
                frames = np.empty((0, settings.height, settings.width, 3), np.uint8)
                chunks = decode_in_chunks(self._components, clean, plan, timings, on_run=on_decode)
                with closing(chunks):
                    for done, chunk in enumerate(chunks, start=1):
                        with timings.measure("seconds_output"):
                            goes_on = on_frames(make_video(chunk)) is not False
                        if not goes_on:
                            raise CancelledError(f"cancelled after part {done} of the frames")
        timings.seconds_total -= timings.seconds_output
        return make_video(frames)

    def _make_video(
        self,
        prompt: str | None,
        prompts: list[PromptInput],
        settings: Settings,
        timings: Timings,
        latents: F32,
        frames: NDArray[np.uint8],
    ) -> Video:
        """A part of a generation, or the whole."""
        return Video(
            frames=frames,
            latents=latents,
            frame_rate=settings.frame_rate,
            prompt=prompt,
            negative_prompt=prompts[1].text if len(prompts) == 2 else None,
            settings=settings,
            timings=timings,
            variants=self.variants,
        )

    def _check_decoder(self, settings: Settings, plan: DecodePlan) -> None:
        """Raise `EngineError` for what would fail after all steps."""
        one, channels, num_frames, height, width = settings.latents_shape
        if plan.tiles is not None:
            self._components.check_tiles(VAE_DECODER)
            return
        most = min(plan.frames_per_chunk, num_frames)
        for count in {most, num_frames % most or most}:
            self._components.check_latents(VAE_DECODER, (one, channels, count, height, width))

    def _make_prompts(
        self,
        settings: Settings,
        prompt: str | None,
        prompt_embeds: F32 | Mapping[str, F32] | None,
        negative_prompt: str | None,
        negative_prompt_embeds: F32 | Mapping[str, F32] | None,
    ) -> list[PromptInput]:
        """The prompt and, with guidance, the negative prompt; raises `ParameterError`."""
        encoder, manifest = self._conditions, self.bundle.manifest
        prompts = [encoder.make_prompt("prompt", prompt, prompt_embeds)]
        if encoder.takes_prompt and prompt is None and prompt_embeds is None:
            raise ParameterError("prompt is missing: give prompt or prompt_embeds")
        if settings.uses_guidance:
            has_none = negative_prompt is None and negative_prompt_embeds is None
            if has_none and encoder.takes_prompt and not manifest.force_zeros_for_empty_prompt:
                negative_prompt = manifest.defaults.negative_prompt
            prompts.append(
                encoder.make_prompt("negative_prompt", negative_prompt, negative_prompt_embeds)
            )
        elif negative_prompt or negative_prompt_embeds is not None:
            self._refuse_negative_prompt(settings)
        return prompts

    def _refuse_negative_prompt(self, settings: Settings) -> NoReturn:
        """Raise `ParameterError` for a negative prompt without guidance."""
        table = self.bundle.load_schedule(settings.scheduler, settings.num_inference_steps)
        refusal = find_guidance_refusal(self.bundle, settings.scheduler, table)
        if refusal is not None:
            raise ParameterError(f"negative_prompt has no effect; {refusal}")
        raise ParameterError(
            f"negative_prompt has no effect at guidance_scale {settings.guidance_scale:g}: "
            "leave it out, or use a guidance_scale above 1"
        )

    def _make_preview_step(
        self, settings: Settings, timings: Timings, on_preview: OnPreview, on_step: OnStep | None
    ) -> OnStep:
        """What on_step becomes where previews are wanted."""
        plan = make_decode_plan(self.bundle, settings.latents_shape, name=PREVIEW_DECODER)

        def decode(latents: F32) -> NDArray[np.uint8]:
            return decode_latents(self._components, latents, plan, timings, name=PREVIEW_DECODER)

        return make_preview_step(decode, on_preview, on_step)
