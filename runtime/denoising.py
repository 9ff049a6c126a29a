"""From noise to clean latents, for the settings of one generation."""

from __future__ import annotations

from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.components import Components
from mutoscope.runtime.conditioning import Values
from mutoscope.runtime.guidance import GuidancePasses, GuidedDenoiser, check_guidance_passes
from mutoscope.runtime.noise import NoiseGenerator, make_noise_source
from mutoscope.runtime.row_plan import DenoiserUse, plan_rows
from mutoscope.runtime.sampler import F32, OnStep, Predict, denoise
from mutoscope.runtime.settings import Settings
from mutoscope.runtime.timings import Timings
from mutoscope.runtime.windows import WindowedDenoiser, shuffle_start_noise


class ClipDenoiser:
    """Runs the schedule table of a generation over the denoisers that its rows name."""

    def __init__(
        self,
        bundle: Bundle,
        components: Components,
        settings: Settings,
        guidance_passes: GuidancePasses | None = None,
    ) -> None:
        """Read the table; nothing is loaded or run yet.

        Args:
            bundle: The bundle.
            components: Its components.
            settings: Those of the generation.
            guidance_passes: See `GuidedDenoiser`; None takes the bundle's default.

        Raises:
            BundleError: The file of the table is damaged.
            ParameterError: A denoiser cannot run its passes in this way.
            ScheduleError: It is no table, or none for this bundle.
        """
        self._bundle, self._components, self._settings = bundle, components, settings
        manifest, steps = bundle.manifest, settings.num_inference_steps
        self.table = bundle.load_schedule(settings.scheduler, steps)
        path = bundle.find_schedule(settings.scheduler, steps)
        self._plan = plan_rows(manifest, self.table, path)
        chosen = manifest.defaults.guidance_passes if guidance_passes is None else guidance_passes
        for name in self._plan.uses:
            self._guidance_passes = check_guidance_passes(bundle.find_component(name), chosen)
        windows = settings.windows
        one, channels, num_frames, height, width = settings.latents_shape
        length = num_frames if settings.context_length is None else settings.context_length
        self._windows, self._sample_shape = windows, (one, channels, length, height, width)

    def check_engines(self) -> None:
        """Raise `EngineError` unless something runs each denoiser on what the rows give it."""
        for name, use in self._plan.uses.items():
            for batch in self._list_batches(use):
                self._components.check_latents(name, (batch, *self._sample_shape[1:]))

    def _list_batches(self, use: DenoiserUse) -> set[int]:
        """The numbers of passes that rows run at once."""
        is_batched = self._settings.uses_guidance and self._guidance_passes == "batched"
        guided = {2 if is_batched else 1} if use.guided else set()
        return guided | ({1} if use.unguided else set())

    def denoise(
        self,
        passes: list[Values],
        latents: F32 | None,
        generator: NoiseGenerator,
        timings: Timings,
        on_step: OnStep | None = None,
    ) -> F32:
        """Return clean latents, a new float32 [1, C, F, h, w].

        Args:
            passes: All that denoisers may take, by source; see `ConditionEncoder.encode`.
            latents: Start noise; None draws it.
            generator: Draws the noise of the start and of the steps.
            timings: Where the time is added.
            on_step: Called after each row; see `mutoscope.runtime.sampler.denoise`.

        Raises:
            CancelledError: on_step asked to stop.
            EngineError: A graph cannot be loaded or run.
        """
        shape, record = self._settings.latents_shape, self._bundle.manifest.latents
        spent = _sum_inner_seconds(timings)
        with timings.measure("seconds_sampler"):
            predict = self._make_predict(passes, timings)
            if latents is None:
                latents = self._draw_start_noise(generator)
            draw = make_noise_source(generator, shape, frames_first=record.step_noise_frames_first)
            clean = denoise(
                latents, self.table, predict, noise=lambda _step_index: draw(), on_step=on_step
            )
        timings.seconds_sampler -= _sum_inner_seconds(timings) - spent
        for name in self._plan.uses:
            self._components.release(name)
        return clean

    def _make_predict(self, passes: list[Values], timings: Timings) -> Predict:
        guided = GuidedDenoiser(
            self._bundle,
            self._components,
            passes,
            self._sample_shape,
            self._settings.frame_guidance,
            timings,
            self._plan,
            guidance_passes=self._guidance_passes,
        )
        if not self._windows:
            return guided
        return WindowedDenoiser(guided, self._settings.latents_shape, self._windows)

    def _draw_start_noise(self, generator: NoiseGenerator) -> F32:
        """Start noise, float32 [1, C, F, h, w]."""
        settings, record = self._settings, self._bundle.manifest.latents
        noise = make_noise_source(
            generator, settings.latents_shape, frames_first=record.start_noise_frames_first
        )()
        if settings.context_length is not None and settings.context_stride is not None:
            shuffle_start_noise(noise, settings.context_length, settings.context_stride, generator)
        return noise


def _sum_inner_seconds(timings: Timings) -> float:
    """What parts of their own measure inside the loop of the sampler."""
    return timings.seconds_load + timings.seconds_denoiser + timings.seconds_preview_decoder
